"""The forms in which people have models and adapters: form, what is done with it or why it is refused, its test."""

from __future__ import annotations

__all__ = ["ADAPTER_FORMS", "MODEL_FORMS"]

_FORMS, _BROKEN = "test_model_forms.py", "test_what_cannot_be_loaded_is_told_alike_by_the_check_and_by_loading"
_LORA, _PARTS = "test_lora.py", "test_what_would_be_put_on_in_part_is_refused_with_a_count_and_a_name"
_WHOLE = f"{_LORA}::test_every_layer_of_a_file_is_put_on_at_its_strength_and_in_silence"

#: (form, what is done with it, test file::function)
MODEL_FORMS: tuple[tuple[str, str, str], ...] = (
    (
        "a folder in diffusers' format with safetensors",
        "loaded, without a connection",
        "test_loading.py::test_a_folder_loads_as_stock_float32_on_the_cpu",
    ),
    (
        "`.bin` weights in that folder, without safetensors",
        "loaded as tensors alone (`weights_only`); one that holds more is refused, and not run",
        f"{_FORMS}::test_bin_weights_are_loaded_as_tensors_alone",
    ),
    ("weights in shards", "loaded; a missing shard is refused by name", f"{_FORMS}::test_shards_are_loaded"),
    (
        "one variant only, such as `*.fp16.safetensors`, in all parts or in some",
        "loaded; several variants without plain weights need `--variant`",
        f"{_FORMS}::test_a_folder_with_one_variant_only_is_loaded",
    ),
    (
        "plain weights and a variant side by side",
        "the plain ones, or those of `--variant`; `--dtype auto` follows the file that is loaded",
        f"{_FORMS}::test_the_precision_is_that_of_the_file_that_is_loaded",
    ),
    (
        "a checkpoint in one `.safetensors` file",
        "loaded, with settings and tokenizers of `--config` (a folder or hub id), else of the hub id diffusers knows",
        "test_single_file.py::test_it_is_loaded_with_the_settings_of_a_folder_and_its_own_weights",
    ),
    (
        "a single file whose tensors have names of no original repository, or without a part of the model",
        "refused",
        "test_single_file.py::test_files_that_are_no_checkpoint",
    ),
    (
        "one file of `.ckpt`, `.pt`, `.bin`, `.gguf`",
        "refused, with the way to convert it",
        "test_single_file.py::test_files_that_are_no_checkpoint",
    ),
    (
        "a hub id",
        "loaded from the cache or the hub; a name with the ending of a file, or of something here, is never one",
        f"{_FORMS}::test_a_path_never_goes_to_the_hub",
    ),
    (
        "a pipeline or part that the installed diffusers or transformers does not have",
        "refused by name and version",
        f"{_FORMS}::{_BROKEN}",
    ),
    ("a pipeline or part with code of its own", "refused: code from a model is not run", f"{_FORMS}::{_BROKEN}"),
    ("a missing part, its settings or its weights", "refused by name", f"{_FORMS}::{_BROKEN}"),
    ("git-lfs pointers in place of files", "refused: run `git lfs pull`", f"{_FORMS}::{_BROKEN}"),
    ("weights that are cut short or empty", "refused by name", f"{_FORMS}::{_BROKEN}"),
    (
        "weights that lack tensors of the model",
        "refused; the libraries would fill them with random numbers",
        f"{_FORMS}::test_weights_that_a_file_lacks_are_not_made_up",
    ),
    (
        "a folder that is one part of a model, a model of transformers, or a LoRA",
        "refused, saying which",
        f"{_FORMS}::test_it_is_told_what_it_is_instead",
    ),
    (
        "another scheduler than the model's own",
        "`--scheduler NAME[:key=value,...]`, a part of the run",
        "test_scheduler_choice.py::test_a_scheduler_takes_the_models_noise_and_the_given_settings",
    ),
)

ADAPTER_FORMS: tuple[tuple[str, str, str], ...] = (
    ("LoRA with the names of diffusers and peft", "put on; the scale in the file's metadata counts", _WHOLE),
    ("LoRA of kohya, `lora_unet_`, `lora_te_`, `lora_te1_`, `lora_te2_`", "put on, with its alphas", _WHOLE),
    ("LoRA on convolutions (LoCon)", "put on", _WHOLE),
    ("LoRA with the names of diffusers of 2023", "put on", _WHOLE),
    (
        "LoRA of kohya or XLabs for FLUX.1, query, key and value in one",
        "put on",
        f"{_LORA}::test_a_joint_query_key_and_value_is_split",
    ),
    (
        "LoRA with a text-encoder part",
        "put on; refused where the model has no such encoder",
        f"{_LORA}::test_the_text_encoders_part_stays",
    ),
    (
        "DoRA in peft's form (`lora_magnitude_vector`)",
        "put on",
        f"{_LORA}::test_dora_in_pefts_form_gives_the_weights_of_its_formula",
    ),
    ("DoRA of kohya (`dora_scale`)", "refused: diffusers would leave the magnitudes out", f"{_LORA}::{_PARTS}"),
    ("LoHa, LoKr, OFT, IA3, whole differences, biases, norms, a Tucker core", "refused", f"{_LORA}::{_PARTS}"),
    ("textual inversion beside a LoRA", "refused", f"{_LORA}::{_PARTS}"),
    ("a LoRA that lacks halves of its pairs, or alphas without a pair", "refused", f"{_LORA}::{_PARTS}"),
    (
        "a LoRA with prefixes that are not read, of more blocks, of another width",
        "refused with the number of layers that would be left out, and the first",
        f"{_LORA}::{_PARTS}",
    ),
    ("one network as peft saves it (`adapter_model.safetensors`)", "refused", f"{_LORA}::{_PARTS}"),
    (
        "damaged files, git-lfs pointers, `.bin`, `.pt`",
        "refused by name",
        f"{_LORA}::test_files_that_cannot_be_read",
    ),
    (
        "two LoRAs",
        "refused: merge them into one file first",
        "test_model_options.py::test_a_second_one_does_not_take_the_firsts_place",
    ),
)

"""Every option of a command that makes a run either changes the run's configuration or changes no result.

A new option fails `test_every_option_is_classified` until it stands in one of the tables below.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from peft import LoraConfig, get_peft_model_state_dict
from tiny_index import book
from typer.testing import CliRunner

from diffkit import cli
from diffkit.cli import app
from diffkit.loading import load_pipeline
from diffkit.rewards import REWARDS
from diffkit.rewards.base import Reward, as_reward
from diffkit.runs import Run
from diffkit.runs.identity import differing_keys

DATA = Path(__file__).parent / "data" / "v0_1_0"
COMMON = {"out", "device", "format", "dry_run", "debug"}  # where, and how it is shown; what a device rounds differently

#: Options that change no result, and why: what is done with it afterwards, or how the work is cut.
NO_RESULT: dict[str, dict[str, str]] = {
    "audit": {"fail_on": "the exit code"},
    "audit detect": {"fail_on": "the exit code"},
    "audit compare": {},
    "audit trend": {},
    "locality": {},
    "mitigate": {"save_pipeline": "a copy of the result"},
    "ttsnap collect": {},
    "ttsnap compare": {"group": "prompts searched at once, which changes no result unless they share one budget"},
    "ttsnap distill": {"tracker": "where losses are logged"},
    "ttsnap generate": {},
}
#: Commands that write a file anew each time, or nothing; the lab's training and the demonstration have no such options.
NO_RUN = {"audit verify", "demo", "lab info", "lab train", "ttsnap fit", "ttsnap rescore", "ttsnap simulate"}

MODEL_AND_IMAGES = ["--model", "tiny", "--suspects", "suspects/suspects.jsonl"]
LORA = "lora/weights.safetensors"
SMALL = [*MODEL_AND_IMAGES, "--controls", "suspects/suspects.jsonl"]
BASE: dict[str, list[str]] = {
    "audit": [*SMALL, "--size", "32x32", "--detector", "none"],
    "audit trend": [LORA, "--lora", LORA, "--base", "tiny", *SMALL[2:], "--size", "32x32"],
    "audit detect": [*SMALL],
    "audit compare": ["audit", "audit", "--names", "before,after", "--quality", "suspects/ordinary.txt"],
    "locality": [*SMALL, "--ordinary", "suspects/ordinary.txt"],
    "mitigate": ["nemo", *MODEL_AND_IMAGES, "--set", "captions=suspects/ordinary.txt"],
    "ttsnap collect": ["--model", "tiny", "--prompts", "suspects/ordinary.txt", "--steps", "3", "--candidates", "2",
                       "--rewards", "test-identity-red"],
    "ttsnap compare": ["--model", "tiny", "--prompts", "suspects/ordinary.txt", "--searches", "ttsp", "--budget",
                       "2x", "--noise-aware", "none", "--schedule", "1:0.5", "--steps", "3",
                       "--reward", "test-identity-red"],
    "ttsnap distill": ["collect", "--batch", "4", "--held-out", "0", "--steps-per-stage", "2"],
    "ttsnap generate": ["a dog", "cat", "--model", "tiny", "--steps", "3", "--budget", "4x", "--enough", "9",
                        "--reward", "test-identity-red"],
}  # fmt: skip

SUSPECTS = {"--suspects": ("suspects/controls.jsonl", "data_sha256"), "--limit": ("1", "items")}
CONTROLS = {"--controls": ("none", "items"), "--limit-controls": ("1", "items")}
LOADED = {"--variant": (None, "variant"), "--config": (None, "model_config"), "--scheduler": ("euler", "scheduler")}
MODEL = LOADED | {"--model": ("lab", "model"), "--dtype": ("bfloat16", "dtype"), "--revision": (None, "model")}
SAMPLING = {"--seed": ("1", "settings.seed"), "--steps": ("2", "settings.num_inference_steps"),
            "--guidance": ("2", "settings.guidance_scale")}  # fmt: skip
ATTACKS = {
    "--budgets": ("0,2", "settings.budgets"), "--starts": ("other", "settings.starts"),
    "--generations": ("3", "settings.generations"), "--attack-generations": ("2", "settings.attack_generations"),
    "--alpha": ("0.1", "settings.alpha"), "--correction": ("holm", "settings.correction"),
    "--attack": ("words", "settings.attacks"), "--learning-rates": ("0.2", "settings.learning_rates"),
    "--draws": ("2", "settings.draws"), "--pooled": ("attacked", "settings.pooled"),
    "--size": ("64x64", "settings.size"), "--reference-model": ("lab", "reference"),
    "--copies": ("latent", "settings.copies"), "--threshold": ("0.5", "settings.threshold"),
    "--other-captions": ("suspects/ordinary.txt", "settings.other_captions"),
    "--batch": ("2", "settings.items_at_once"), "--micro-batch": ("2", "settings.micro_batch"),
}  # fmt: skip
SEARCH = LOADED | {"--model": ("lab", "model"), "--dtype": ("bfloat16", "dtype"), "--revision": (None, "revision"),
          "--limit": ("1", "prompts"), "--seed": ("1", "seed"),
          "--preview-vae": ("tiny/vae", "preview_vae")}  # fmt: skip

#: Command -> option -> another value and the key that differs then. None: needs a hub, or more than one option.
IDENTITY: dict[str, dict[str, tuple[str | None, str]]] = {
    "audit": SUSPECTS | CONTROLS | MODEL | SAMPLING | ATTACKS | {
        "--lora": ("LORA", "lora"), "--mitigation": ("delta", "mitigation"),
        "--detector": ("seed_agreement", "settings.detectors"), "--edited-controls": ("crop", "settings.edits"),
        "--masks": ("", "settings.masks"), "--preset": ("lab", "settings.other_captions"),
        "--save-triggers": ("", "save_triggers"), "--attack-all": ("", "settings.attack_all"),
        "--triage": ("seed_agreement:0.5", "settings.triage"),
    },
    "audit trend": SUSPECTS | CONTROLS | LOADED | SAMPLING | ATTACKS | {
        "--base": ("lab", "base"), "--revision": (None, "base"), "--dtype": ("bfloat16", "dtype"),
        "--lora": ("LORA", "checkpoints"), "--training-steps": ("5,10", "checkpoints"),
        "--with-base": ("", "checkpoints"), "--preset": ("lab", "preset"),
    },
    "audit detect": SUSPECTS | CONTROLS | MODEL | SAMPLING | {
        "--lora": ("LORA", "model_sha256"), "--mitigation": ("delta", "mitigation"),
        "--detectors": ("seed_agreement", "settings.detectors"), "--seeds": ("2", "settings.seeds"),
        "--threshold": (None, "settings.threshold"), "--fpr": ("0.1", "settings.fpr"),
        "--micro-batch": ("2", "settings.micro_batch"),
    },
    "audit compare": {
        "--names": ("a,b", "audits.a"), "--quality": ("lab:held-out", "quality.prompts"),
        "--quality-limit": ("2", "quality.limit"), "--quality-seeds": ("2", "quality.seeds"),
        "--rewards": ("lab", "quality.rewards"), "--dtype": ("bfloat16", "quality.dtype"),
    },
    "locality": SUSPECTS | CONTROLS | MODEL | SAMPLING | {
        "--mitigation": ("delta", "mitigation"), "--starts": ("3", "settings.starts"),
        "--attack-steps": ("2", "settings.attack_steps"), "--group": ("2", "settings.group"),
        "--lines": ("2", "settings.lines"), "--methods": ("nemo", "settings.methods"),
        "--theta": ("2", "settings.theta"), "--sparsity": ("0.5", "settings.sparsity"),
        "--generations": ("2", "settings.generations"), "--threshold": ("0.5", "settings.threshold"),
        "--ordinary": ("suspects/controls.jsonl", "settings.ordinary"), "--preset": (None, "settings.ordinary"),
        "--save-triggers": ("", "save_triggers"), "--micro-batch": ("2", "settings.micro_batch"),
    },
    "mitigate": MODEL | {
        "--lora": ("LORA", "model_sha256"), "--suspects": ("suspects/controls.jsonl", "data_sha256"),
        "--set": ("seeds=3", "settings.seeds"), "--only": ("dog", "suspects"), "--preset": ("lab", "preset"),
        "--limit": ("1", "suspects"),
    },
    "ttsnap collect": SEARCH | {
        "--prompts": ("suspects/suspects.jsonl", "prompts"), "--rewards": ("lab", "rewards.lab"),
        "--candidates": ("3", "candidates"), "--steps": ("2", "num_inference_steps"),
        "--guidance": ("2", "guidance_scale"), "--negative": ("cat", "negative_prompt"), "--record": ("1", "record"),
        "--lookahead": ("0+1", "lookahead"), "--micro-batch": ("2", "micro_batch"), "--no-previews": ("", "previews"),
    },
    "ttsnap compare": SEARCH | {
        "--prompts": ("suspects/suspects.jsonl", "prompts"), "--searches": ("best-of-n", "searches"),
        "--budget": ("3x", "budget"), "--reward": ("lab", "reward"),
        "--noise-aware": ("lab-noise-aware", "noise_aware"),
        "--schedule": ("0:0.5", "schedules.default"), "--plain-schedule": ("0:0.5", "schedules.ttsp"),
        "--lookahead-schedule": ("0:0.5+1", "schedules.lookahead"),
        "--held-out": ("test-identity-red", "held_out"), "--copy-guard": (None, "copy_guard"),
        "--index": ("index.json", "sha256.index"), "--steps": ("4", "steps"), "--guidance": ("2", "guidance"),
        "--negative": ("cat", "negative"), "--eta": (None, "eta"), "--micro-batch": ("2", "micro_batch"),
    },
    "ttsnap distill": {
        "--reward": (None, "reward"), "--backend": ("full", "backend"), "--loss": ("mse", "loss"),
        "--standardise": ("", "standardise"), "--levels": ("0", "steps"), "--stages": ("1", "stages"),
        "--epochs": ("2", "epochs"), "--steps-per-stage": ("3", "steps_per_stage"),
        "--learning-rate": ("0.1", "learning_rate"), "--batch": ("2", "batch"), "--accumulate": ("2", "accumulate"),
        "--held-out": ("0.5", "held_out"), "--temperature": ("1", "temperature"), "--hard": ("", "soft"),
        "--rank": ("2", "rank"), "--mixed-precision": ("bf16", "mixed_precision"), "--seed": ("1", "seed"),
    },
    "ttsnap generate": SEARCH | {
        "--prompts": ("suspects/ordinary.txt", "prompts"), "--reward": ("lab-noise-aware", "reward"),
        "--candidates": (None, "candidates"), "--budget": ("5x", "budget"), "--schedule": ("1:0.5", "schedule"),
        "--enough": ("8", "enough"), "--rounds": ("2", "rounds"), "--steps": ("4", "steps"),
        "--guidance": ("2", "guidance"), "--negative": ("cat", "negative"), "--height": ("48", "height"),
        "--held-out": ("test-identity-red", "held_out"), "--copy-guard": (None, "copy_guard"),
        "--diversity": ("0.5", "diversity"),
        "--search": (None, "search"), "--index": (None, "index"), "--group": (None, "group"),
        "--width": ("48", "width"), "--winners": ("2", "winners"), "--micro-batch": ("2", "micro_batch"),
    },
}  # fmt: skip

#: Options that do not go with others of the table; those with one key are tried alone too.
ALONE = {"--model", "--lora", "--mitigation", "--preset", "--reference-model"}


def replaced(words: Sequence[str], more: Sequence[str]) -> list[str]:
    """A command line with other values of its options; --set may stand there twice, the rest may not."""
    old = [index for index, word in enumerate(words) if word in more and word.startswith("--") and word != "--set"]
    return [word for index, word in enumerate(words) if index not in old and index - 1 not in old] + [*more]


@REWARDS.register("test-identity-red")
def red() -> Reward:
    return as_reward(lambda images, prompts: images[:, 0].mean(dim=(1, 2)))


def commands(command: Any = None, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its words."""
    command = command or typer.main.get_command(cli.app)
    if (
        command.callback is not None
        and path
        and (not hasattr(command, "list_commands") or command.invoke_without_command)
    ):
        yield path, command
    if hasattr(command, "list_commands"):
        context = typer.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), f"{path} {name}".strip())


def test_every_option_is_classified() -> None:
    present = dict(commands())
    assert set(present) == {*IDENTITY, *NO_RUN}
    for name, identity in IDENTITY.items():
        options = {option.name: option.opts + option.secondary_opts for option in present[name].params
                   if option.param_type_name == "option"}  # fmt: skip
        in_configuration = {key for key, forms in options.items() if set(forms) & set(identity)}
        assert in_configuration.isdisjoint(NO_RESULT[name].keys() | COMMON)
        unclassified = set(options) - in_configuration - set(NO_RESULT[name]) - COMMON
        assert not unclassified, f"{name}: put {unclassified} into the run's configuration, or say why not"
        assert set(identity) <= {form for forms in options.values() for form in forms}


def test_the_lab_is_not_trained_on_with_another_seed(tmp_path: Path) -> None:
    (tmp_path / "lab.json").write_text('{"seed": 3}')
    result = CliRunner().invoke(app, ["lab", "train", "--seed", "4", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "holds a lab of seed 3, not 4" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["lab.json"]


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    pipe = load_pipeline(DATA / "tiny")
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    pipe.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    return folder


@pytest.fixture
def configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Mapping[str, Any]]:
    """What a command would give `Run.open` as its configuration; the run itself is not begun."""
    opened: list[Mapping[str, Any]] = []

    def stop(folder: Path, *, config: Mapping[str, Any], **_: object) -> Run:
        opened.append(json.loads(json.dumps(config)))
        raise typer.Exit

    def make(name: str, *more: str) -> Mapping[str, Any]:
        opened.clear()
        line = [*name.split(), *replaced(BASE[name], more), "--out", str(tmp_path / "out")]
        result = CliRunner().invoke(app, line)
        assert opened, result.output
        return opened[0]

    monkeypatch.setattr(Run, "open", stop)
    monkeypatch.chdir(DATA)
    return make


@pytest.mark.parametrize("name", IDENTITY)
def test_an_option_that_changes_results_changes_the_configuration(
    configuration: Callable[..., Mapping[str, Any]], lora: Path, name: str
) -> None:
    base = configuration(name)
    changes = {
        option: (value and value.replace("LORA", str(lora)), key) for option, (value, key) in IDENTITY[name].items()
    }
    keys = [key for _, key in changes.values()]
    alone = [option for option, (_, key) in changes.items() if keys.count(key) > 1 or option in ALONE]
    for group in ([option for option in changes if option not in alone], *([option] for option in alone)):
        given = {option: changes[option] for option in group if changes[option][0] is not None}
        if not given:
            continue
        line = [word for option, (value, _) in given.items() for word in (option, value) if word]
        differences = differing_keys(base, configuration(name, *line))
        for option, (_, key) in given.items():
            assert any(each.startswith((f"{key} ", f"{key}.")) for each in differences), (option, differences)


def test_a_group_that_shares_one_budget_changes_the_configuration(
    configuration: Callable[..., Mapping[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{name}.json" for name in ("index", "other")]
    for file, looks in zip(files, ((0, 1), (1,)), strict=True):
        file.write_text(book(3, looks).to_json())
    line = ("--searches", "adaptive", "--index", str(files[0]))
    base, other = configuration("ttsnap compare", *line), configuration("ttsnap compare", *line, "--group", "2")
    assert differing_keys(base, other) == ["group is 4 there and 2 here"]
    rounds = {"--enough", "9"}  # do not go with a search
    monkeypatch.setitem(BASE, "ttsnap generate", [word for word in BASE["ttsnap generate"] if word not in rounds])
    options = {"--search": "adaptive", "--index": str(files[0]), "--group": "8"}
    base = configuration("ttsnap generate", *itertools.chain(*options.items()))
    for option, value, key in (("--search", "index", "search"), ("--index", str(files[1]), "sha256.index"),
                               ("--group", "2", "group")):  # fmt: skip
        other = configuration("ttsnap generate", *itertools.chain(*{**options, option: value}.items()))
        assert any(each.startswith(f"{key} ") for each in differing_keys(base, other)), option


@pytest.mark.parametrize("name", NO_RESULT)
def test_an_option_that_changes_no_result_leaves_the_configuration(
    configuration: Callable[..., Mapping[str, Any]], name: str, tmp_path: Path
) -> None:
    values = {"fail_on": "never", "save_pipeline": str(tmp_path / "pipeline"), "group": "2", "device": "cpu"}
    forms = {option.name: option.opts[0] for option in dict(commands())[name].params}
    chosen = [
        f"{form}={values[option]}"
        for option, form in forms.items()
        if option in values and option in {*NO_RESULT[name], *COMMON}
    ]
    assert configuration(name, *chosen, "--format", "json") == configuration(name)

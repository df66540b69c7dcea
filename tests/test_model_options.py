"""The options that name a model do the same in every command, and none is dropped without a word."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tiny import tiny_pipeline
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.errors import InputError
from diffkit.loading import model_checksum
from diffkit.lora import lora_checksum
from memorization.auditing.models import AuditedModel
from memorization.comparison.paired import AuditRun
from memorization.comparison.quality import _load

DATA = ["--suspects", "lab:planted", "--limit", "1"]
COMMANDS = {
    "audit": ["audit", *DATA, "--controls", "none"],
    "detect": ["audit", "detect", *DATA, "--controls", "none"],
    "mitigate": ["mitigate", "nemo", *DATA],
    "locality": ["locality", *DATA, "--controls", "none", "--preset", "lab"],
    "generate": ["ttsnap", "generate", "a dog", "--out", "unused"],
    "collect": ["ttsnap", "collect", "--limit", "1", "--out", "unused"],
    "compare": ["ttsnap", "compare", "--limit", "1", "--out", "unused"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "models/typo.safetensors"), "There is no model"),
        (("--scheduler", "eular"), "Unknown scheduler"),
        (("--variant", "fp16"), "no weights of the variant"),
        (("--config", "lab"), "--config belongs to a single file"),
    ],
)
def test_a_dry_run_refuses_what_a_run_would(command, options, words):
    done = CliRunner().invoke(app, [*COMMANDS[command], "--dry-run", *options])
    assert done.exit_code == 2, done.output
    assert words in done.output
    assert not Path("unused").exists()


@pytest.mark.parametrize("command", ["audit", "detect", "mitigate"])
def test_a_dry_run_reads_the_loras_names(command, tmp_path):
    (tmp_path / "lora.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    done = CliRunner().invoke(app, [*COMMANDS[command], "--dry-run", "--lora", str(tmp_path / "lora.safetensors")])
    assert done.exit_code == 2
    assert "git lfs pull" in done.output


@pytest.mark.parametrize("option", ["--lora", "--suspects", "--model"])
def test_a_second_one_does_not_take_the_firsts_place(option):
    done = CliRunner().invoke(app, ["audit", option, "lab", option, "lab", "--dry-run"])
    assert done.exit_code == 2
    assert f"{option} is given 2 times, and one is taken" in done.output


def test_the_reference_model_is_sampled_by_the_same_scheduler():
    audited = AuditedModel.from_pretrained("lab", scheduler="euler", device="cpu", reference_model="lab-clean")
    assert type(audited.reference.load().scheduler).__name__ == "EulerDiscreteScheduler"
    assert AuditedModel.from_pretrained("lab", device="cpu").reference is None


@pytest.fixture(scope="module")
def fine_tune(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("fine-tune")
    pipe = tiny_pipeline()
    pipe.save_pretrained(folder / "model")
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False))
    pipe.save_lora_weights(folder / "lora", unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    return folder / "model", folder / "lora"


def audit_run(model: Path, lora: Path, sha256: str) -> AuditRun:
    config = {"model": str(model), "model_sha256": model_checksum(model), "mitigation": None, "scheduler": "euler"}
    record = {"config": config | {"lora": {"name": str(lora), "sha256": sha256}}, "provenance": {}}
    return AuditRun("mine", model, record, {}, {})


def test_the_quality_of_a_fine_tune_is_measured_with_its_lora(fine_tune):
    pipe = _load(audit_run(*fine_tune, lora_checksum(fine_tune[1])), dtype="auto", device="cpu")
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert not torch.equal(pipe.unet.get_parameter(name), tiny_pipeline().unet.get_parameter(name))
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    with pytest.raises(InputError, match="The LoRA .* is not the one"):
        _load(audit_run(*fine_tune, "0" * 64), dtype="auto", device="cpu")

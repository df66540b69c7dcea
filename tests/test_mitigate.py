"""The contract of every mitigation method on the lab: reversible, resumable, applied from its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from test_imports import HEAVY, ROOT, imported
from tiny_families import family_pipeline
from torch import Tensor
from typer.testing import CliRunner

from diffkit.conditioning import encode_prompts
from diffkit.errors import InputError
from diffkit.families import pipe_denoiser
from diffkit.images import load_image
from diffkit.loading import load_pipeline, model_checksum
from diffkit.mitigation import CARD, WEIGHTS, Mitigation, apply_mitigation, load_mitigation
from diffkit.seeds import candidate_seed, generators
from diffkit.suspects import Suspect, read_suspects
from memorization.cli.mitigate import app
from memorization.copies.tiled import TiledCorrelation
from memorization.generation import Sampling, generate
from memorization.mitigation import methods
from memorization.mitigation.nemo_method import shared_neurons
from memorization.mitigation.run import make_settings, mitigate, parse_settings
from memorization.presets import LAB, NONE, choose_preset


class Case(NamedTuple):
    """A row of the contract: settings that are cheap, the kind, whether each suspect has a part of its own."""

    method: str
    settings: tuple[str, ...]
    kind: str
    parts: bool


FEW = ("examples=8", "draws=1", "batch=8")  # of a pruning's calibration
CASES = [
    Case("nemo", ("statistics=30", "calibration=3", "seeds=2", "theta=1.5", "smallest_theta=1.5"), "mask", True),
    Case("wanda", ("base_captions=2", "timesteps=1", "steps=3", "sparsity=0.1"), "mask", True),
    Case(
        "wanda",
        ("base_captions=2", "timesteps=1", "steps=3", "sparsity=0.1", "parts=false", "fill=zero"),
        "mask",
        False,
    ),
    Case("prune", ("saliency=magnitude", "allocation=global", "sparsity=0.4"), "mask", False),
    Case("prune", ("saliency=taylor", "allocation=module", "layers=unet.mid_block*", *FEW), "mask", False),
    Case(
        "prune",
        ("allocation=ecoflap", "objective=forget", "layers=unet.mid_block*1.attn2*", "perturbations=1", *FEW),
        "mask",
        False,
    ),
    Case(
        "prune",
        ("allocation=tyr", "layers=unet.mid_block*attn2*", "grain=0.1", "generations=2", "population=3", *FEW),
        "mask",
        False,
    ),
    Case("prune", ("structure=channels", "saliency=wanda", "allocation=global", *FEW), "mask", False),
    Case("prompt-guard", ("target=0.0001", "iterations=3"), "prompt-guard", False),
    Case("attention-guard", (), "attention-guard", False),
]
IDS = [" ".join((case.method, *case.settings)) for case in CASES]


@pytest.fixture(scope="module")
def lab() -> Any:
    pipe = load_pipeline("lab")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def unchanged(lab: Any) -> Iterator[None]:
    """No test may leave the shared pipeline other than it found it."""
    before = {name: value.clone() for name, value in lab.unet.state_dict().items()}
    processors = dict(lab.unet.attn_processors)
    yield
    assert all(torch.equal(value, before[name]) for name, value in lab.unet.state_dict().items())
    assert dict(lab.unet.attn_processors) == processors
    assert not lab.unet._forward_pre_hooks


@pytest.fixture(scope="module")
def suspects() -> list[Suspect]:
    return read_suspects("lab:planted")[0][:2]


def draw(pipe: Any, captions: list[str], steps: int = 3) -> Tensor:
    latents: Tensor = pipe(
        captions,
        num_inference_steps=steps,
        guidance_scale=3.0,
        generator=generators(range(len(captions))),
        output_type="latent",
    ).images
    return latents


def make(pipe: Any, suspects: list[Suspect], out: Path, case: Case) -> Mitigation:
    method = methods.get(case.method)
    settings = parse_settings(method, case.settings, LAB)
    checksum = model_checksum("lab")
    return mitigate(pipe, suspects, method=method, out=out, name="lab", settings=settings, model_sha256=checksum)


def same(a: Mitigation, b: Mitigation) -> bool:
    tensors = set(a.tensors) == set(b.tensors) and all(torch.equal(t, b.tensors[n]) for n, t in a.tensors.items())
    return tensors and a.card() == b.card()


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_every_method_gives_a_reversible_mitigation_that_resumes(
    case: Case, lab: Any, suspects: list[Suspect], tmp_path: Path
) -> None:
    made = make(lab, suspects, tmp_path / "run", case)
    assert (made.kind, made.method) == (case.kind, case.method)
    assert made.suspects == tuple(suspect.id for suspect in suspects)
    assert (made.parts() == list(made.suspects)) is case.parts
    assert same(load_mitigation(tmp_path / "run"), made)

    captions = [suspect.caption for suspect in suspects]
    before = draw(lab, captions)
    with apply_mitigation(lab, tmp_path / "run", model_sha256=model_checksum("lab")):
        assert not torch.allclose(draw(lab, captions), before)
    assert torch.equal(draw(lab, captions), before)

    journal = tmp_path / "run" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + (lines[-1][:20] if lines else b""))  # killed in the last append
    for name in (CARD, WEIGHTS):
        (tmp_path / "run" / name).unlink()
    assert same(make(lab, suspects, tmp_path / "run", case), made)
    with pytest.raises(InputError, match="holds another run"):
        make(lab, suspects[:1], tmp_path / "run", case)


def test_each_suspects_part_is_what_it_gives_alone(lab: Any, suspects: list[Suspect], tmp_path: Path) -> None:
    for case in CASES[:2]:
        both = make(lab, suspects, tmp_path / f"both-{case.method}", case)
        alone = make(lab, suspects[1:], tmp_path / f"alone-{case.method}", case)
        own = {name: tensor for name, tensor in both.tensors.items() if name.startswith(f"{suspects[1].id}/")}
        assert own
        assert all(torch.equal(alone.tensors[name], tensor) for name, tensor in own.items())
        with apply_mitigation(lab, both, only=suspects[1].id):
            part = draw(lab, [suspects[0].caption])
        with apply_mitigation(lab, alone):
            torch.testing.assert_close(draw(lab, [suspects[0].caption]), part)


def test_neurons_that_most_suspects_have(lab: Any, suspects: list[Suspect], tmp_path: Path) -> None:
    """By counting in plain Python; the mask has no parts, and fills its rows like the parts did."""
    case = CASES[0]
    parts = make(lab, suspects, tmp_path / "parts", case)
    rows = [
        (name.partition("/")[2], row)
        for name, tensor in parts.tensors.items()
        if "/" in name
        for row in tensor.tolist()
    ]
    ranked = sorted(set(rows), key=lambda neuron: (-rows.count(neuron), neuron))
    n = sum(rows.count(neuron) == 2 for neuron in ranked) + 3
    assert 3 < n < len(ranked)
    together = make(lab, suspects, tmp_path / "together", case._replace(settings=(*case.settings, f"most_shared={n}")))
    chosen = [
        (name, row) for name, tensor in together.tensors.items() if name.endswith(".rows") for row in tensor.tolist()
    ]
    assert sorted(chosen) == sorted(ranked[:n])
    assert {name for name in together.tensors if name.endswith(".outputs")} == {
        f"{name.removesuffix('.rows')}.outputs" for name, _ in chosen
    }
    assert together.figures["neurons off in all"] == n
    assert together.parts() == []
    with pytest.raises(InputError, match="no neurons by suspect"):
        shared_neurons(together, 1)


def test_nemo_as_published_leaves_alone_what_is_not_above_the_threshold(
    lab: Any, suspects: list[Suspect], tmp_path: Path
) -> None:
    settings = ("statistics=30", "check=true", "threshold=0.9999", "refine=true")
    made = make(lab, suspects, tmp_path / "run", Case("nemo", settings, "mask", False))
    assert made.figures["suspects below the threshold"] == 2
    assert made.tensors == {}
    shared = make(lab, suspects[:1], tmp_path / "shared", Case("nemo", (*settings, "most_shared=3"), "mask", False))
    assert shared.tensors == {}
    searched = ("statistics=30", "check=true", "refine=true", "theta=4", "smallest_theta=4", "threshold=0.97")
    found = make(lab, suspects[:1], tmp_path / "other", Case("nemo", (*searched, "seeds=3"), "mask", True))
    record = found.figures["by suspect"][suspects[0].id]
    assert record["similarity"] <= max(0.9, record["initial_similarity"])
    assert 0 < record["neurons"] <= record["initial_neurons"]


def test_wanda_stops_at_the_smallest_sparsity_that_breaks_the_caption(
    lab: Any, suspects: list[Suspect], tmp_path: Path
) -> None:
    """Nothing below 0.0001 of the columns moves a memory; whatever is tried first is enough where anything counts."""
    common = ("base_captions=2", "timesteps=1", "steps=4", "generations=1", "sparsity=0.0001,0.3,0.6")
    bare = [Suspect(suspects[0].id, suspects[0].caption)]  # compared with what the caption gave before
    for broken, expected in (("0.999", None), ("0.001", 0.6)):
        made = make(lab, bare, tmp_path / broken, Case("wanda", (*common, f"broken={broken}"), "mask", True))
        row = made.figures["by suspect"][suspects[0].id]
        if expected is None:  # the first that leaves less than 0.999
            assert row["sparsity"] < 0.6
            assert row["similarity"] < 0.999
        else:  # none breaks it: the last one, and it says what is left
            assert row["sparsity"] == expected
            assert row["similarity"] >= 0.001
    known = make(lab, suspects[:1], tmp_path / "known", Case("wanda", (*common, "broken=0.001"), "mask", True))
    likeness = known.figures["by suspect"][suspects[0].id]["similarity"]
    with apply_mitigation(lab, known):
        embeds = encode_prompts(lab, [suspects[0].caption, ""], guidance=False).prompt_embeds
        image = generate(lab, embeds[:1], embeds[1:], [candidate_seed(0, 1, 0)], sampling=Sampling(4, 3.0, 1)).images
    reference = load_image(suspects[0].images[0])[None]
    assert likeness == pytest.approx(float(TiledCorrelation().similarity(image, reference)), abs=1e-3)
    single = make(lab, suspects[:1], tmp_path / "one", Case("wanda", (*common[:-1], "sparsity=0.3"), "mask", True))
    assert single.figures["by suspect"][suspects[0].id]["similarity"] is None


def test_settings_from_the_command_line() -> None:
    nemo, wanda = methods.get("nemo"), methods.get("wanda")
    thetas = [
        parse_settings(nemo, (), choose_preset("auto", name)).theta for name in ("lab", "lab-clean", "some/model")
    ]
    assert thetas == [2.25, 2.25, 5.0]
    read = parse_settings(nemo, ("theta=3", "smallest-theta=2", "layers=a,b", "threshold=none", "check=true"), LAB)
    assert (read.theta, read.smallest_theta, read.layers, read.threshold, read.check) == (
        3.0,
        2.0,
        ("a", "b"),
        None,
        True,
    )
    for wrong, message in {
        "theta": "name=value",
        "thete=3": "Did you mean 'theta'",
        "theta=three": "to be float",
        "check=yes": "check=true or check=false",
        "theta=0.5": "smallest_theta",
        "fill=noise": "mean or zero",
    }.items():
        with pytest.raises(InputError, match=message):
            parse_settings(nemo, (wrong,), LAB)
    assert parse_settings(wanda, ("sparsity=0.1,0.2",), NONE).sparsity == (0.1, 0.2)
    for wrong in ("sparsity=0", "sparsity=0.2,0.1", "sparsity=", "sparsity=2", "margin=0", "broken=1"):
        with pytest.raises(InputError, match="Expected"):
            parse_settings(wanda, (wrong,), LAB)


def test_other_models_need_captions_of_the_user(lab: Any, suspects: list[Suspect], tmp_path: Path) -> None:
    method = methods.get("nemo")
    with pytest.raises(InputError, match="captions=FILE"):
        mitigate(lab, suspects, method=method, out=tmp_path / "a", name="some/model")
    words = tmp_path / "words.txt"
    words.write_text("a red circle\n\na blue square\n")
    settings = method.settings(captions=str(words), theta=2.0, smallest_theta=2.0, check=False, refine=False, seeds=2)
    made = mitigate(lab, suspects, method=method, out=tmp_path / "b", name="some/model", settings=settings)
    assert made.model_sha256 is None
    words.write_text("a red circle\n\na green square\n")
    with pytest.raises(InputError, match="contents.captions"):  # the same name, other captions
        mitigate(lab, suspects, method=method, out=tmp_path / "b", name="some/model", settings=settings)


def test_suspects_that_cannot_be_worked_with_are_refused(lab: Any, suspects: list[Suspect], tmp_path: Path) -> None:
    method = methods.get("nemo")
    with pytest.raises(InputError, match="must be unique"):
        mitigate(lab, [suspects[0], suspects[0]], method=method, out=tmp_path / "a", name="lab")
    with pytest.raises(InputError, match="has none"):
        bare = [Suspect("x", "a caption")]
        mitigate(lab, bare, method=methods.get("adversarial"), out=tmp_path / "b", name="lab")


def test_settings_by_name_replace_those_of_the_preset(lab: Any, suspects: list[Suspect], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'theta'"):
        mitigate(lab, suspects, "nemo", out=tmp_path / "a", settings={"thete": 3.0})
    guard = mitigate(lab, suspects, "attention-guard", out=tmp_path / "b", settings={"factor": 1.5})
    assert (guard.model, guard.settings) == ("lab", {"factor": 1.5, "mask_padding": True})
    assert make_settings(methods.get("nemo"), {"seeds": 2}, LAB).theta == 2.25


def test_the_command_makes_a_folder_and_a_whole_pipeline(tmp_path: Path) -> None:
    runner = CliRunner()
    line = ["wanda", "--only", "cat", "--out", str(tmp_path / "m"), "--format", "json"]
    line += ["--set", "timesteps=1", "--set", "steps=2", "--set", "base_captions=2", "--set", "sparsity=0.1"]
    done = runner.invoke(app, [*line, "--save-pipeline", str(tmp_path / "whole")], catch_exceptions=False)
    assert done.exit_code == 0
    assert '"suspects": [\n    "cat"\n  ]' in done.stdout
    masked, whole = load_pipeline("lab", mitigation=tmp_path / "m"), load_pipeline(tmp_path / "whole")
    for name, value in whole.unet.state_dict().items():
        torch.testing.assert_close(value, masked.unet.state_dict()[name])
    plan = runner.invoke(app, ["nemo", "--dry-run", "--limit", "3", "--format", "json"])
    assert '"suspects": 3' in plan.stdout
    assert '"theta": 2.25' in plan.stdout
    for wrong in (["nemo"], ["nemo", "--only", "nobody"], ["magic"]):
        assert isinstance(runner.invoke(app, wrong).exception, InputError)
    guard = ["attention-guard", "--out", str(tmp_path / "g"), "--save-pipeline", str(tmp_path / "w")]
    assert isinstance(runner.invoke(app, guard).exception, InputError)


def test_a_run_of_weights_does_not_go_on_as_one_of_channels(lab: Any, suspects: list[Suspect], tmp_path: Path) -> None:
    weights = Case("prune", ("saliency=magnitude",), "mask", False)
    channels = Case("prune", ("saliency=magnitude", "structure=channels"), "mask", False)
    make(lab, suspects, tmp_path, weights)
    with pytest.raises(InputError, match=r"settings\.structure is \"weights\" there and \"channels\" here"):
        make(lab, suspects, tmp_path, channels)


def test_the_pipeline_of_a_structured_pruning_is_smaller_where_a_folder_can_say_so(tmp_path: Path) -> None:
    family_pipeline("lumina2").save_pretrained(tmp_path / "lumina2")
    line = ["prune", "--set", "structure=channels", "--set", "saliency=magnitude", "--limit", "1"]
    for model, shrinks in ((str(tmp_path / "lumina2"), True), ("lab", False)):
        made, whole = tmp_path / f"{shrinks}-mask", tmp_path / f"{shrinks}-whole"
        paths = ["--model", model, "--out", str(made), "--save-pipeline", str(whole)]
        done = CliRunner(env={"DIFFKIT_QUIET": "0"}).invoke(app, [*line, *paths], catch_exceptions=False)
        assert ("in its whole size" in done.stderr) is not shrinks
        masked, saved = pipe_denoiser(load_pipeline(model, mitigation=made)), pipe_denoiser(load_pipeline(whole))
        assert (saved.num_parameters() < masked.num_parameters()) is shrinks
        if not shrinks:
            assert all(torch.equal(value, masked.state_dict()[name]) for name, value in saved.state_dict().items())


def test_the_command_module_loads_nothing_heavy() -> None:
    for name in ("memorization/cli/mitigate.py", "memorization/mitigation/__init__.py"):
        assert not {module.split(".")[0] for module in imported(ROOT / name, at_import=True)} & HEAVY, name

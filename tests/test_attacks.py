"""The contract of all attacks, one row each: curve, independence, repeatability, memory, resuming inside an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from attack_table import ROWS, Row, targets
from tiny import tiny_pipeline

from diffkit.errors import InputError
from diffkit.images import to_pil
from diffkit.prompt_embeds import Embeds
from memorization.attack import attacks
from memorization.attack.base import Attack, BatchTriggers, Target, TargetBatch, Triggers
from memorization.attack.checkpoint import Checkpoint, Checkpoints, FileCheckpoint, State
from memorization.attack.ladder import ladder, rung_of, weakest
from memorization.attack.looks import Looks
from memorization.auditing.attack_suite import build_attacks
from memorization.auditing.settings import AuditSettings

each_attack = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])


def made(row: Row, **options: object) -> Attack:
    short = {"words": {"proposals": 3, "length": 4}, "hard-tokens": {"tokens": 4}}.get(row.name, {})
    return attacks.get(row.name)(**{"draws": 2, "rows": 8, **short, **options})


def equal(first: list[Triggers], second: list[Triggers]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(torch.equal(a.embeddings, b.embeddings) and a.texts == b.texts for a, b in pairs)


def test_the_table_holds_every_attack() -> None:
    assert sorted(row.name for row in ROWS) == attacks.names()


def test_the_ladder_holds_every_attack_in_its_place() -> None:
    rungs = ladder()
    assert [row.name for row in ROWS] == list(rungs[1:])
    for row in ROWS:
        assert attacks.get(row.name).rung == rung_of(row.name) == rungs.index(row.name)  # type: ignore[attr-defined]


@each_attack
class TestContract:
    def test_curve(self, row: Row) -> None:
        given = targets(3)  # the second batch is padded
        found = made(row, budgets=(0, 1, 4), micro_batch=2)(tiny_pipeline(), given)
        assert len(found) == 3
        for target, triggers in zip(given, found, strict=True):
            assert triggers.budgets == (0, 1, 4)
            assert triggers.embeddings.shape == (3, 16, 32)
            assert triggers.embeddings.dtype == torch.float32
            assert torch.equal(triggers.embeddings[0], target.start) == row.from_start
            assert triggers.sample_gradients[0] == 0 < triggers.sample_gradients[1] < triggers.sample_gradients[2]
            if not row.texts:
                assert not torch.equal(triggers.embeddings[1], triggers.embeddings[2])

    def test_texts_are_what_one_types(self, row: Row) -> None:
        pipe = tiny_pipeline()
        for triggers in made(row, budgets=(0, 3), micro_batch=2)(pipe, targets(2)):
            assert (triggers.texts is not None) == row.texts
            for text, embedding in zip(triggers.texts or (), triggers.embeddings, strict=False):
                typed = pipe.encode_prompt([text], "cpu", 1, False)[0][0]
                torch.testing.assert_close(embedding, typed, atol=1e-5, rtol=0)

    def test_alone_or_in_company(self, row: Row) -> None:
        pipe, given = tiny_pipeline(), targets(3)
        attack = made(row, budgets=(0, 2), micro_batch=3, rows=64)
        together = attack(pipe, given)
        turned = attack(pipe, given[::-1])[::-1]
        alone = [attack(pipe, [target])[0] for target in given]
        for one, other, third in zip(together, turned, alone, strict=True):
            torch.testing.assert_close(one.embeddings, other.embeddings, atol=row.tolerance, rtol=0)
            torch.testing.assert_close(one.embeddings, third.embeddings, atol=row.tolerance, rtol=0)

    def test_again_is_the_same_to_the_last_bit_and_leaves_no_trace(self, row: Row) -> None:
        pipe = tiny_pipeline()
        pipe.unet.conv_in.requires_grad_(False)
        before = [parameter.requires_grad for parameter in pipe.unet.parameters()]
        attack = made(row, budgets=(0, 2), micro_batch=2)
        assert equal(attack(pipe, targets(2)), attack(pipe, targets(2)))
        assert [parameter.requires_grad for parameter in pipe.unet.parameters()] == before
        assert all(parameter.grad is None for parameter in pipe.unet.parameters())
        assert not pipe.text_encoder.get_input_embeddings()._forward_hooks

    def test_rows_bound_the_denoiser_and_change_nothing_else(self, row: Row) -> None:
        pipe, seen = tiny_pipeline(), []
        pipe.unet.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
        options = {"budgets": (0, 2), "micro_batch": 3, "draws": 4}
        small = made(row, rows=5, **options)(pipe, targets(3))
        assert max(seen) <= 5
        large = made(row, rows=512, **options)(pipe, targets(3))
        for one, other in zip(small, large, strict=True):
            torch.testing.assert_close(one.embeddings, other.embeddings, atol=row.tolerance, rtol=0)

    def test_killed_inside_an_image_it_goes_on_to_the_same_bits(self, row: Row, tmp_path: Path) -> None:
        pipe, given = tiny_pipeline(), targets(3)
        attack = made(row, budgets=(0, 2, 4), micro_batch=2)
        counted = count_calls(pipe)
        whole = attack(pipe, given)
        full = counted.pop()
        for cut in (3, 5):  # saves: in the first batch after a budget, and in the second before one
            folder = tmp_path / str(cut)
            with pytest.raises(Killed):
                attack(pipe, given, checkpoints=Cut(folder, cut))
            counted.pop()
            assert equal(attack(pipe, given, checkpoints=Checkpoints(folder, every=1)), whole)
            assert counted.pop() < full
            Checkpoints(folder).clear()
            assert not folder.exists()

    def test_pausing_at_every_look_gives_the_same_bits(self, row: Row, tmp_path: Path) -> None:
        pipe, given = tiny_pipeline(), targets(2)
        attack = made(row, budgets=(0, 2, 4), micro_batch=3)
        whole = attack(pipe, given)
        for checkpoints in (None, Checkpoints(tmp_path, every=1)):
            looks = Looks(attack, pipe, given, checkpoints)
            for look in (1, 2, 3):
                triggers = looks.advance(look)
                assert [part.budgets for part in triggers] == [(0, 2, 4)[:look]] * 2
            assert equal(triggers, whole)

    def test_targets_that_are_left_off_change_the_others_by_rounding(self, row: Row, tmp_path: Path) -> None:
        pipe, given = tiny_pipeline(), targets(3)
        attack = made(row, budgets=(0, 2, 4), micro_batch=3)
        whole = attack(pipe, given)
        results = []
        for checkpoints in (None, Checkpoints(tmp_path, every=1), Checkpoints(tmp_path, every=1)):  # the last resumes
            looks = Looks(attack, pipe, given, checkpoints)
            assert looks.advance(2)[1].budgets == (0, 2)
            looks.keep([0, 2])
            results.append(looks.advance(3))
        assert equal(results[0], results[1])
        assert equal(results[0], results[2])
        for part, other in zip(results[0], (whole[0], whole[2]), strict=True):
            torch.testing.assert_close(part.embeddings, other.embeddings, atol=row.tolerance, rtol=0)

    def test_bfloat16_model_float32_embeddings(self, row: Row) -> None:
        pipe = tiny_pipeline().to(torch.bfloat16)
        (found,) = made(row, budgets=(0, 2), micro_batch=1)(pipe, targets(1))
        assert found.embeddings.dtype == torch.float32
        assert bool(found.embeddings.isfinite().all())
        if row.from_start:  # a bfloat16 variable would have lost the start's lower digits
            assert not torch.equal(found.embeddings, found.embeddings.bfloat16().float())

    @pytest.mark.parametrize("budgets", [(), (0, 5, 5), (5, 1), (-1, 2)])
    def test_budgets_must_rise(self, row: Row, budgets: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match="rising"):
            made(row, budgets=budgets)

    @pytest.mark.parametrize("option", ["micro_batch", "rows", "draws"])
    def test_counts_are_checked(self, row: Row, option: str) -> None:
        with pytest.raises(InputError, match=option.replace("_", " ")):
            made(row, **{option: 0})

    def test_learning_rate(self, row: Row) -> None:
        if row.gradients:
            with pytest.raises(InputError, match="learning rate"):
                made(row, learning_rate=0.0)
        else:
            assert not hasattr(made(row), "learning_rate")


class Foreign(Attack):
    """An attack of another package: an ``__init__`` and an option of its own, and no gradients."""

    name, rung = "foreign", 8

    def __init__(self, *, budgets: Sequence[int], micro_batch: int, strength: float = 2.0) -> None:
        super().__init__(budgets=budgets, micro_batch=micro_batch)
        self.strength = strength

    def search(self, pipe: object, batch: TargetBatch, checkpoint: Checkpoint) -> BatchTriggers:
        """The start, scaled by strength and budget; the rows it was allowed stand in a companion."""
        rows = torch.full((len(batch.images),), float(self.rows))
        return BatchTriggers(
            [Embeds(batch.starts.prompt_embeds * self.strength * b, {"rows": rows}) for b in self.budgets]
        )


class TestForeignAttacks:
    def test_settings_and_cost(self) -> None:
        attack = Foreign(budgets=[0, 3], micro_batch=2)
        assert attack.settings() == {
            "attack": "foreign", "budgets": (0, 3), "micro_batch": 2, "rows": 64, "draws": 8, "strength": 2.0
        }  # fmt: skip
        assert attack.cost() == (0, 24)

    def test_other_batch_sizes_are_a_copy(self) -> None:
        attack = Foreign(budgets=(0, 3), micro_batch=2, strength=4.0)
        small = attack.with_batches(rows=5)
        given = targets(3)
        for triggers, target in zip(small(tiny_pipeline(), given), given, strict=True):
            torch.testing.assert_close(triggers.embeddings[1], 12 * target.start)
            assert triggers.embeds.companions["rows"].tolist() == [5, 5]
        assert (small.rows, attack.rows, small.micro_batch, small.strength) == (5, 64, 2, 4.0)

    def test_what_an_audit_gives_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attacks, "get", lambda _name: Foreign)
        (attack,) = build_attacks("foreign", AuditSettings(budgets=(0, 7))).values()
        assert isinstance(attack, Foreign)
        assert (attack.budgets, attack.draws, attack.strength) == ((0, 7), 8, 2.0)


class TestOneTarget:
    """``attack(pipe, image)``: no list, no start."""

    def test_is_searched_alone_and_gives_one_result(self) -> None:
        pipe, (target, _) = tiny_pipeline(), targets(2)
        attack = attacks.get("dori")(budgets=(0, 2), draws=2)
        triggers = attack(pipe, target)
        assert isinstance(triggers, Triggers)
        assert equal([triggers], attack.with_batches(micro_batch=1)(pipe, [target]))

    def test_begins_at_its_text_or_at_the_empty_caption(self) -> None:
        pipe, image = tiny_pipeline(), targets(1)[0].image
        attack = attacks.get("dori")(budgets=(0, 1), draws=1)
        for given, caption in ((image, ""), (Target(image, text="a cat"), "a cat")):
            start = pipe.encode_prompt([caption], "cpu", 1, False)[0][0]
            torch.testing.assert_close(attack(pipe, given).embeddings[0], start)

    def test_a_pil_image_is_the_tensor_it_shows(self) -> None:
        pipe = tiny_pipeline()
        image = (torch.rand(3, 64, 64) * 255).round() / 255
        attack = attacks.get("dori")(budgets=(1,), draws=1)
        assert equal([attack(pipe, to_pil(image))], [attack(pipe, image)])

    @pytest.mark.parametrize(
        "image", [torch.rand(64, 64), torch.rand(1, 3, 64, 64), torch.ones(3, 64, 64).byte(), 2 * torch.ones(3, 64, 64),
                  torch.full((3, 64, 64), torch.nan)]
    )  # fmt: skip
    def test_other_images_are_refused(self, image: torch.Tensor) -> None:
        with pytest.raises(InputError, match=r"Expected an? (float )?image"):
            attacks.get("dori")(budgets=(0, 1))(tiny_pipeline(), image)


@each_attack
def test_options_cannot_be_changed(row: Row) -> None:
    attack = made(row)
    with pytest.raises(FrozenInstanceError):
        attack.rows = 3  # type: ignore[misc]


class Killed(RuntimeError):
    """Stands for kill -9: raised between two steps, after the state is on the disk."""


class Cut(Checkpoints):
    """Checkpoints that kill the search after the n-th save."""

    def __init__(self, folder: Path, saves: int) -> None:
        super().__init__(folder, every=1)
        self.left = saves

    def open(self, name: str) -> Checkpoint:
        outer = self

        class Cutting(FileCheckpoint):
            def save(self, state: State) -> None:
                super().save(state)
                outer.left -= 1
                if outer.left == 0:
                    raise Killed

        return Cutting(self.folder / f"{name}.safetensors", self.every)


def count_calls(pipe: object) -> list[int]:
    """A list whose `pop` gives the denoiser's calls since the last one."""

    class Count(list[int]):
        calls = 0

        def pop(self, _index: int = -1) -> int:  # type: ignore[override]
            calls, self.calls = self.calls, 0
            return calls

    count = Count()

    def hook(*_: object) -> None:
        count.calls += 1

    pipe.unet.register_forward_hook(hook)  # type: ignore[attr-defined]
    return count


class TestCheckpoints:
    def test_another_model_setting_or_target_never_finds_it(self, tmp_path: Path) -> None:
        pipe, dori = tiny_pipeline(), attacks.get("dori")
        checkpoints = Checkpoints(tmp_path, every=1)

        def files() -> int:
            return len(list(tmp_path.glob("*.safetensors")))

        options = {"budgets": (0, 1), "micro_batch": 1, "draws": 2}
        dori(**options)(pipe, targets(1), checkpoints=checkpoints)
        dori(**options)(pipe, targets(1), checkpoints=checkpoints)
        assert files() == 1
        dori(**options, learning_rate=0.03)(pipe, targets(1), checkpoints=checkpoints)
        assert files() == 2
        dori(**options)(pipe, targets(2)[1:], checkpoints=checkpoints)
        assert files() == 3
        with torch.no_grad():  # a mask on one output row, as a mitigation applies it
            next(m for n, m in pipe.unet.named_modules() if n.endswith("attn2.to_v")).weight[3] = 0
        dori(**options)(pipe, targets(1), checkpoints=checkpoints)
        assert files() == 4

    def test_a_torn_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "state.safetensors"
        FileCheckpoint(path).save({"step": torch.tensor(3)})
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(InputError, match="damaged"):
            FileCheckpoint(path).load()

    def test_every(self) -> None:
        with pytest.raises(InputError, match="every 1 or more"):
            Checkpoints("nowhere", every=0)
        checkpoint = FileCheckpoint(Path("nowhere"), every=10)
        assert [step for step in range(1, 26) if checkpoint.due(step, last=step == 25)] == [10, 20, 25]


class TestLadder:
    def test_weakest(self) -> None:
        assert (
            weakest({"dori": True, "soft-tokens-16": True, "soft-tokens-4": False, "words": None}) == "soft-tokens-16"
        )
        assert weakest({"caption": True, "dori": True}) == "caption"
        assert weakest({"dori": False, "words": None}) is None
        assert weakest({}) is None

    def test_an_unknown_rung_is_refused(self) -> None:
        with pytest.raises(InputError, match="Unknown attack 'telepathy'"):
            weakest({"telepathy": True})

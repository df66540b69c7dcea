"""The ladder's verdicts against cases worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from memorization.auditing.controls import Scores
from memorization.auditing.verdicts import Finding, Rung, judge_ladder

LOW, HIGH = {0: 0.1, 10: 0.2}, {0: 0.1, 10: 0.9}


def controls(n: int, curve: dict[int, float] = LOW) -> list[Scores]:
    return [Scores(f"control:{i}", 0.1, curve) for i in range(n)]


def rung(curve: dict[int, float], known: list[Scores] | None = None, caption: float = 0.2) -> Rung:
    return Rung([Scores("s", caption, curve)], known if known is not None else controls(30))


def one(rungs: dict[str, Rung], **options: object) -> Finding:
    (finding,), _, _ = judge_ladder(rungs, threshold=0.75, **options)  # type: ignore[arg-type]
    return finding


@pytest.mark.parametrize(
    ("weak", "strong", "verdict", "named"),
    [
        (rung(HIGH), rung(HIGH), "retained", "weak"),
        (rung(LOW), rung(HIGH), "retained", "strong"),
        (rung(HIGH), rung(LOW), "retained", "weak"),
        (rung(LOW), rung(LOW), "not shown", None),
        (rung(LOW), rung(HIGH, controls(30, HIGH)), "not shown", None),  # the strong one draws everything: set aside
        (rung(HIGH, controls(30, HIGH)), rung(HIGH, controls(30, HIGH)), "inconclusive", None),
        (rung(LOW), rung(HIGH, controls(19, {0: 0.1, 10: 0.1})), "retained", "strong"),
        (rung(LOW, caption=0.9), rung(LOW, caption=0.9), "replicated", "caption"),
    ],
)
def test_the_weakest_that_succeeds_is_named(weak: Rung, strong: Rung, verdict: str, named: str | None) -> None:
    finding = one({"weak": weak, "strong": strong}, correction="none")
    assert (finding.verdict, finding.rung) == (verdict, named)
    assert set(finding.rungs) == {"weak", "strong"}


def test_more_rungs_are_more_tests() -> None:
    """p = 1/31 for one rung; with a second rung that shows nothing the correction doubles it."""
    alone = one({"weak": rung(HIGH)})
    both = one({"weak": rung(HIGH), "strong": rung(LOW)})
    assert (alone.verdict, alone.q) == ("retained", pytest.approx(1 / 31))
    assert (both.verdict, both.rungs["weak"].q) == ("inconclusive", pytest.approx(2 / 31))


def test_a_doubt_at_one_rung_is_not_hidden_by_silence_at_another() -> None:
    """Similar enough, but so is a control: p = 2/31 is no proof, and "not shown" would deny it."""
    mixed = [*controls(29), Scores("control:x", 0.1, HIGH)]
    finding = one({"weak": rung(LOW), "strong": rung(HIGH, mixed)}, correction="none")
    assert finding.verdict == "inconclusive"
    assert "strong" in finding.reason


@pytest.mark.parametrize(
    ("caption", "curve", "there", "verdict"),
    [
        (0.2, HIGH, Scores("s", 0.1, LOW), "retained"),
        (0.2, HIGH, Scores("s", 0.1, HIGH), "inconclusive"),  # drawn by a model that cannot have seen it
        (0.2, HIGH, Scores("s", None, None, "broken"), "inconclusive"),  # asked for and not known
        (0.9, HIGH, Scores("s", 0.1, HIGH), "replicated"),  # the caption needs no attack
        (0.9, HIGH, Scores("s", 0.8, LOW), "inconclusive"),
        (0.2, LOW, Scores("s", 0.1, HIGH), "not shown"),
    ],
)
def test_the_reference_model(caption: float, curve: dict[int, float], there: Scores, verdict: str) -> None:
    asked = replace_reference(rung(curve, caption=caption), {"s": there})
    assert one({"attack": asked}).verdict == verdict


def replace_reference(known: Rung, reference: dict[str, Scores]) -> Rung:
    return known._replace(reference=reference)


def test_a_reference_without_this_suspect_leaves_a_doubt() -> None:
    finding = one({"attack": replace_reference(rung(HIGH), {})})
    assert finding.verdict == "inconclusive"
    assert "reference" in finding.reason


def test_figures_are_of_the_rung_the_verdict_rests_on() -> None:
    strong = replace(Scores("s", 0.2, HIGH), curve={0: 0.1, 10: 0.8})
    finding = one({"weak": rung(LOW), "strong": Rung([strong], controls(30))}, correction="none")
    assert (finding.similarity, finding.budget) == (0.8, 10)


def drawn(n: int, mean: float, sd: float, seed: int, *, kind: str | None = None, role: str = "control") -> list[Scores]:
    """Items whose similarities under the attack are normal."""
    values = np.random.default_rng(seed).normal(mean, sd, n).clip(-0.99, 0.99)
    return [Scores(f"{role}:{mean}:{kind}:{i}", 0.1, {0: 0.1, 10: float(v)}, kind=kind) for i, v in enumerate(values)]


@pytest.mark.parametrize(
    ("suspects", "retained", "controls"), [(8, 8, 30), (14, 8, 30), (24, 12, 30), (100, 5, 30), (1000, 1, 100)]
)
def test_few_controls_suffice_for_few_memorized_among_many(suspects: int, retained: int, controls: int) -> None:
    """By rank the smallest p is 1/31, or 1/101: corrected for many suspects it never passes. By the tail it does."""
    items = drawn(retained, 0.93, 0.02, 0, role="suspect") + drawn(suspects - retained, 0.15, 0.1, 1, role="suspect")
    findings, _, _ = judge_ladder({"attack": Rung(items, drawn(controls, 0.15, 0.1, 2))}, threshold=0.75)
    verdicts = [finding.verdict for finding in findings]
    assert verdicts == ["retained"] * retained + ["not shown"] * (suspects - retained)
    assert all(
        finding.p is not None and finding.p.rank == pytest.approx(1 / (1 + controls)) for finding in findings[:retained]
    )


def beside_reference(suspects: list[Scores], similarity: float, known: list[Scores]) -> list[Finding]:
    """Verdicts with controls that a reference model draws as near as the model does, give or take 0.02."""
    noise = np.random.default_rng(9).normal(0, 0.02, len(known))
    there = {s.key: replace(s, curve={0: 0.1, 10: similarity}) for s in suspects}
    z = np.arctanh([c.curve[10] for c in known]) + noise
    others = {c.key: replace(c, curve={0: 0.1, 10: s}) for c, s in zip(known, np.tanh(z).tolist(), strict=True)}
    return judge_ladder({"attack": Rung(suspects, known, there, others)}, threshold=0.75).findings


def test_how_easy_an_image_is_to_draw_cancels_against_the_reference() -> None:
    """Controls that differ in how near they come: the similarity alone shows nothing among 500, the difference does."""
    known = drawn(30, 0.4, 0.1, 3)
    suspects = [Scores("suspect:s", 0.1, {0: 0.1, 10: 0.9}), *drawn(499, 0.4, 0.1, 4, role="suspect")]
    (alone, *_), _, nulls = judge_ladder({"attack": Rung(suspects, known)}, threshold=0.75)
    assert alone.verdict == "inconclusive"
    assert nulls["attack"].statistic == "similarity"
    memorized, *others = beside_reference(suspects, 0.3, known)
    assert memorized.verdict == "retained"
    assert memorized.p.statistic == "difference"
    assert memorized.p.rank == pytest.approx(1 / 31)
    assert {finding.verdict for finding in others} == {"not shown"}
    assert all(finding.p is None for finding in others)  # below the threshold, so not tested
    hardly_nearer = [Scores("suspect:s", 0.1, {0: 0.1, 10: 0.76}), *suspects[1:]]
    assert beside_reference(hardly_nearer, 0.74, known)[0].verdict == "inconclusive"
    assert beside_reference(suspects, 0.8, known)[0].rungs["attack"].p is None  # drawn by the reference


def test_a_difference_counts_for_as_much_as_the_correction_leaves() -> None:
    """q by hand: one tested suspect among 500 whose other p-values are 1."""
    known = drawn(30, 0.4, 0.05, 3)
    suspects = [Scores("suspect:s", 0.1, {0: 0.1, 10: 0.8}), *drawn(499, 0.4, 0.05, 4, role="suspect")]
    first = beside_reference(suspects, 0.5, known)[0]
    assert first.q == pytest.approx(min(500 * first.p.deciding, 1.0))


def test_a_caption_in_doubt_does_not_hide_what_an_attack_shows() -> None:
    near = [replace(item, caption=0.45 + 0.29 * i / 30) for i, item in enumerate(drawn(30, 0.1, 0.05, 5))]
    suspects = [Scores("suspect:s", 0.76, HIGH), *drawn(20, 0.1, 0.05, 6, role="suspect")]
    findings, _, _ = judge_ladder({"attack": Rung(suspects, near)}, threshold=0.75)
    assert (findings[0].verdict, findings[0].rung) == ("retained", "attack")
    drawn_there = Rung(suspects, near, {s.key: Scores(s.key, 0.9, LOW) for s in suspects})
    assert judge_ladder({"attack": drawn_there}, threshold=0.75).findings[0].verdict == "inconclusive"


def test_an_easy_kind_of_controls_does_not_make_a_hard_one_look_easy() -> None:
    suspect = [Scores("suspect:s", 0.1, {0: 0.1, 10: 0.78})]
    easy, hard = drawn(20, 0.1, 0.02, 8, kind="scene"), drawn(12, 0.5, 0.12, 4, kind="photograph")
    (alone,), _, _ = judge_ladder({"attack": Rung(suspect, easy)}, threshold=0.75)
    (both,), _, _ = judge_ladder({"attack": Rung(suspect, easy + hard)}, threshold=0.75)
    assert alone.q is not None
    assert both.q is not None
    assert both.q > 1000 * alone.q
    assert both.p is not None
    assert both.p.kind == "photograph"


def test_captions_have_a_null_too() -> None:
    """A caption's similarity above the threshold convinces only where the controls' captions stay far below."""
    suspect = Scores("suspect:s", 0.76, {0: 0.1, 10: 0.2})
    near = [replace(item, caption=0.45 + 0.29 * i / 30) for i, item in enumerate(drawn(30, 0.1, 0.05, 5))]
    far = [replace(item, caption=0.1 + 0.1 * i / 30) for i, item in enumerate(drawn(30, 0.1, 0.05, 5))]
    assert one({"attack": Rung([suspect], far)}).verdict == "replicated"
    crowd = [suspect, *(Scores(f"suspect:{i}", 0.55, {0: 0.1, 10: 0.2}) for i in range(20))]
    findings, _, _ = judge_ladder({"attack": Rung(crowd, near)}, threshold=0.75)
    assert findings[0].verdict == "inconclusive"
    assert "the caption gives the image" in findings[0].reason


def test_whether_replicated_suspects_were_attacked_changes_no_other_verdict() -> None:
    others = drawn(30, 0.5, 0.15, 6, role="suspect")
    known = drawn(30, 0.3, 0.12, 7)
    replicated = [Scores(f"suspect:r{i}", 0.95, {0: 0.1, 10: 0.9}) for i in range(10)]
    skipped = [replace(item, curve=None) for item in replicated]
    all_attacked, _, _ = judge_ladder({"attack": Rung(others + replicated, known)}, threshold=0.75)
    few_attacked, _, _ = judge_ladder({"attack": Rung(others + skipped, known)}, threshold=0.75)
    assert [f.verdict for f in all_attacked] == [f.verdict for f in few_attacked]
    assert [f.q for f in all_attacked[:30]] == [f.q for f in few_attacked[:30]]
    assert few_attacked[-1].rungs == {}


def test_an_attack_that_stopped_when_it_was_certain_counts_at_every_later_budget() -> None:
    known = [Scores(f"control:{i}", 0.1, {0: 0.1, 5: 0.15, 10: 0.2 + i / 200}) for i in range(30)]
    whole = Scores("suspect:s", 0.2, {0: 0.1, 5: 0.95, 10: 0.3})
    stopped = replace(whole, curve={0: 0.1, 5: 0.95}, stopped=True)
    broken = replace(stopped, stopped=False)
    for suspect, verdict in ((whole, "retained"), (stopped, "retained"), (broken, "could not be scored")):
        finding = one({"attack": Rung([suspect], known)})
        assert finding.verdict == verdict

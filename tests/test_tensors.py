"""Reward tensors: what is read is what was written, wrong input is refused, nothing is executed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from diffkit.errors import InputError
from ttsnap.reward_tensor import RewardTensor, save_npz
from ttsnap.trajectories.published_rewards import read_yaml_rewards
from ttsnap.trajectories.read import load_tensor, tensor_keys


def random_tensor(shape=(3, 5, 4), name="made", seed=0):
    rng = np.random.default_rng(seed)
    return RewardTensor(rng.normal(size=shape), rng.normal(size=shape[:2]), name)


def write_yaml(folder: Path, scores: np.ndarray, steps: range) -> None:
    """The published layout, written by hand: one file a step, candidates out of order."""
    folder.mkdir(parents=True)
    for step in steps:
        lines = []
        for p, row in enumerate(scores):
            lines.append(f"p{p:04d}:")
            lines += [f"  id{n:03d}: {float(row[n, step])!r}" for n in reversed(range(len(row)))]
        (folder / f"p2_i3_s{step:02d}.yaml").write_text("\n".join(lines) + "\n")


def test_what_was_saved_comes_back_the_same(tmp_path: Path) -> None:
    looks = np.random.default_rng(2).normal(size=(3, 5, 4))
    looks[1, 2, 0] = np.nan
    one = RewardTensor(looks, looks[:, :, 1], "made", (3.0, 2.0, 1.0, 0.5), ("a", "ein Bär", ""))
    two = random_tensor(name="other", seed=1)
    save_npz(tmp_path / "x.npz", one, two)
    assert tensor_keys(tmp_path / "x.npz") == ["made", "other"]
    back = load_tensor(tmp_path / "x.npz", "made")
    np.testing.assert_array_equal(back.looks, one.looks)
    np.testing.assert_array_equal(back.final, one.final)
    assert (back.name, back.sigmas, back.prompts) == ("made", one.sigmas, one.prompts)
    assert load_tensor(tmp_path / "x.npz", "other").sigmas is None
    with pytest.raises(InputError, match="one kind of looks"):
        load_tensor(tmp_path / "x.npz", "made", plain=True)


def test_noise_aware_looks_fall_back_on_plain_ones_where_not_recorded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base, aware = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    aware[:, :, [0, 3]] = np.nan
    np.savez(tmp_path / "x.npz", r_base=base, r_noise_aware=aware)
    tensor = load_tensor(tmp_path / "x.npz")  # the only key needs no name
    np.testing.assert_array_equal(tensor.looks[:, :, 1:3], aware[:, :, 1:3].astype(float))
    np.testing.assert_array_equal(tensor.looks[:, :, [0, 3]], base[:, :, [0, 3]].astype(float))
    np.testing.assert_array_equal(tensor.final, base[:, :, 3].astype(float))
    np.testing.assert_array_equal(load_tensor(tmp_path / "x.npz", plain=True).looks, base.astype(float))


def test_published_folders_are_read_and_aligned_by_name(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).normal(size=(2, 3, 4))
    write_yaml(tmp_path / "m_imr_val_base", scores, range(4))
    write_yaml(tmp_path / "m_imr_val_naft", scores[:, :2] + 10, range(1, 3))  # the last candidate was not scored
    assert tensor_keys(tmp_path) == ["m_imr_val"]
    for path in (tmp_path, tmp_path / "m_imr_val_naft"):
        tensor = load_tensor(path)
        np.testing.assert_allclose(tensor.looks[:, :2, 1:3], scores[:, :2, 1:3] + 10)
        np.testing.assert_allclose(tensor.looks[:, 2], scores[:, 2])
        np.testing.assert_allclose(tensor.looks[:, :, [0, 3]], scores[:, :, [0, 3]])
        np.testing.assert_allclose(tensor.final, scores[:, :, 3])
        assert tensor.name == "m_imr_val"
    np.testing.assert_allclose(load_tensor(tmp_path, plain=True).looks, scores)
    np.testing.assert_allclose(load_tensor(tmp_path / "m_imr_val_base").looks, scores)


def test_the_lists_of_the_published_simulation_are_read(tmp_path: Path) -> None:
    """One list a prompt, numbered: p10 follows p2, and a folder of either layout fits the other."""
    scores = np.random.default_rng(0).normal(size=(11, 12, 3))
    for end, steps in (("base", (0, 1, 2)), ("naft", (1,))):
        folder = tmp_path / f"m_imr_val_{end}"
        folder.mkdir()
        for step in steps:
            rows = {p: [float(value) + (end == "naft") for value in scores[p, :, step]] for p in reversed(range(11))}
            (folder / f"p200_i200_s{step:02d}.yaml").write_text(yaml.dump(rows))
    tensor = load_tensor(tmp_path)
    np.testing.assert_allclose(tensor.looks, scores + np.array([0, 1, 0]))
    np.testing.assert_allclose(tensor.final, scores[:, :, 2])
    (tmp_path / "m_imr_val_naft" / "p200_i200_s01.yaml").unlink()
    (tmp_path / "m_imr_val_naft").rmdir()
    write_yaml(tmp_path / "m_imr_val_naft", scores + 1, range(1, 2))
    np.testing.assert_allclose(load_tensor(tmp_path).looks, scores + np.array([0, 1, 0]))
    many = read_yaml_rewards(named_step(tmp_path / "many", "".join(f"{p}: [1.0]\n" for p in (10000, 9, 10))))
    assert many.prompts == ("p0009", "p0010", "p10000")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "0: [1.0, 2.0]\n1: [1.0]",
            r"prompt p0001 in .*s01\.yaml' has 1 scores, the prompt p0000 in .*s00\.yaml' has 2",
        ),
        ("0: [1.0]\n1: [1.0]", r"prompt p0000 in .*s01\.yaml' has 1 scores.* has 2"),
        ("0: [1.0, 2.0]", r"s01\.yaml' lacks the prompt p0001"),
        ("0: [1.0, null]\n1: [1.0, 2.0]", r"the score of p0000 id001 is None, expected a finite number"),
        ("0: [1.0, 2.0]\n1: [1.0, -.inf]", r"the score of p0001 id001 is -inf"),
        ("0: [1.0, 2.0]\n1: [[1.0], 2.0]", r"the score of p0001 id000 is \[1.0\]"),
    ],
)
def test_a_damaged_list_is_refused_with_its_place(tmp_path: Path, content: str, message: str) -> None:
    named_step(tmp_path / "m_base", "0: [1.0, 2.0]\n1: [3.0, 4.0]")
    (tmp_path / "m_base" / "x_s01.yaml").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load_tensor(tmp_path)
    assert str(caught.value).count("\n") == 0


def test_noise_aware_lists_of_fewer_candidates_are_refused(tmp_path: Path) -> None:
    named_step(tmp_path / "m_base", "0: [1.0, 2.0]\n1: [3.0, 4.0]")
    named_step(tmp_path / "m_naft", "0: [1.0]\n1: [3.0]")
    with pytest.raises(InputError, match=r"m_naft' has lists of 2 prompts with 1 candidates, the plain .* 2 with 2"):
        load_tensor(tmp_path)


def test_a_missing_step_is_said_and_nan_in_a_list_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DIFFKIT_QUIET", "0")
    named_step(tmp_path / "m_base", "0: [1e-05, .nan]\n1: [3.0, 4.0]")
    named_step(tmp_path / "m_naft", "0: [1.0, 2.0]\n1: [3.0, 4.0]")
    for step in (1, 3):
        (tmp_path / "m_base" / f"x_s{step:02d}.yaml").write_text("0: [1.0, 2.0]\n1: [3.0, 4.0]")
    tensor = load_tensor(tmp_path, plain=True)
    assert (tensor.recorded, tensor.missing, tensor.looks[0, 0, 0]) == ([0, 1, 3], 1, 1e-5)
    assert "m: 2 prompts, 2 candidates, 4 calls; plain rewards at steps 0-1, 3." in capsys.readouterr().err
    assert load_tensor(tmp_path).missing == 0
    assert "at steps 0-1, 3, noise-aware ones at 0; elsewhere the plain ones stand in." in capsys.readouterr().err


def test_repeated_candidates_are_counted() -> None:
    """As in the published SDXL files; failed ones are not repeats, nor are equal finals of different images."""
    made = random_tensor((2, 6, 4))
    looks, final = made.looks.copy(), made.final.copy()
    looks[0, 2, 1] = np.nan
    looks[0, 4:], final[0, 4:] = looks[0, 2:4], final[0, 2:4]
    looks[1, :3], final[1, :3] = np.nan, np.nan
    final[1, 4] = final[1, 5]
    assert RewardTensor(looks, final).repeated == 2
    assert made.repeated == 0


def named_step(folder: Path, content: str) -> Path:
    """A folder with the rewards of one step."""
    folder.mkdir()
    (folder / "x_s00.yaml").write_text(content)
    return folder


def test_noise_aware_rewards_that_have_no_final_reward_are_refused(tmp_path: Path) -> None:
    named_step(tmp_path / "m_base", "p0000: {id000: 1.0}")
    named_step(tmp_path / "m_naft", "p0000: {a: 1.0, b: 1.0}")
    with pytest.raises(InputError, match="m_naft' has the candidate a and 1 more, of which there is no final reward"):
        load_tensor(tmp_path)


def test_what_is_missing_is_nan_and_counted(tmp_path: Path) -> None:
    scores = np.ones((2, 3, 3))
    write_yaml(tmp_path / "run", scores, range(3))
    (tmp_path / "run" / "p2_i3_s01.yaml").write_text("p0000: {id000: 1.0, id002: 2.0}\n")
    tensor = load_tensor(tmp_path / "run")
    assert np.isnan(tensor.looks[:, :, 1]).tolist() == [[False, True, False], [True, True, True]]
    assert tensor.missing == 4
    (tmp_path / "run" / "p2_i3_s01.yaml").unlink()
    assert load_tensor(tmp_path / "run").recorded == [0, 2]
    assert load_tensor(tmp_path / "run").missing == 0  # a step that nobody recorded is not a missing score


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1, 2]",
        "p0000: 3",
        "p0000: {id000: high}",
        "p0000: {}",
        "a: b: c",
        "p0000: 1.0\np0000: 2.0",
        "p0000: {id000: 1.0, id000: 2.0}",
        "0: [1.0]\np0000: [2.0]",
        "0: [true]",
        "0: [null]",
        "0: high",
        "[[1.0], [2.0]]",
        "p0: {id0: !!python/object/apply:os.getcwd []}",
    ],
)
def test_a_yaml_file_of_other_content_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x_s00.yaml").write_text(content)
    with pytest.raises(InputError, match=r"x_s00\.yaml"):
        load_tensor(tmp_path)


def test_an_unknown_key_lists_the_known_ones(tmp_path: Path) -> None:
    save_npz(tmp_path / "x.npz", random_tensor(name="a"), random_tensor(name="b"))
    with pytest.raises(InputError, match=r"no rewards 'c'.*a, b"):
        load_tensor(tmp_path / "x.npz", "c")
    with pytest.raises(InputError, match=r"Which reward is meant.*a, b"):
        load_tensor(tmp_path / "x.npz")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "pickled.npz", r_base=np.array([{"a": 1}], dtype=object))
    np.save(tmp_path / "alone.npy", np.ones(3))
    np.savez(tmp_path / "flat.npz", r_base=np.ones((3, 4)))
    np.savez(tmp_path / "half.npz", r_looks=np.ones((3, 4, 5)))
    for name in ("text.npz", "pickled.npz", "alone.npy", "flat.npz", "half.npz", "nothing.npz"):
        with pytest.raises(InputError):
            load_tensor(tmp_path / name)
    (tmp_path / "x_naft").mkdir()
    (tmp_path / "x_naft" / "p_s00.yaml").write_text("p0: {id0: 1.0}")
    with pytest.raises(InputError, match="x_base"):
        load_tensor(tmp_path / "x_naft")


def test_prompts_are_selected_by_index_mask_and_slice() -> None:
    tensor = random_tensor((4, 5, 4))
    tensor = RewardTensor(tensor.looks, tensor.final, "r", (4.0, 3.0, 2.0, 1.0), ("a", "b", "c", "d"))
    picked = tensor.select([3, 1])
    np.testing.assert_array_equal(picked.final, tensor.final[[3, 1]])
    assert (picked.prompts, picked.sigmas, picked.name) == (("d", "b"), tensor.sigmas, "r")
    np.testing.assert_array_equal(tensor.select(np.array([True, False, False, True])).looks, tensor.looks[[0, 3]])
    np.testing.assert_array_equal(tensor.select(slice(1, 3)).looks, tensor.looks[1:3])
    with pytest.raises(InputError):
        tensor.select([4])
    with pytest.raises(InputError):
        tensor.select(np.zeros(4, dtype=bool))


def test_shapes_and_infinities_are_refused() -> None:
    looks, final = np.zeros((2, 3, 4)), np.zeros((2, 3))
    for bad in ((looks, final.T), (looks[0], final[0]), (looks[:0], final[:0])):
        with pytest.raises(InputError, match="looks of"):
            RewardTensor(*bad)
    with pytest.raises(InputError, match="infinite"):
        RewardTensor(looks - np.inf, final)
    with pytest.raises(InputError, match="4 sigmas, got 1"):
        RewardTensor(looks, final, sigmas=(1.0,))
    with pytest.raises(InputError, match="2 prompts, got 1"):
        RewardTensor(looks, final, prompts=("a",))


def test_the_shared_tensors_have_the_shapes_that_their_readme_states(shared_data: Path) -> None:
    path = shared_data / "reward_tensors_prompts000-099.npz"
    if not path.is_file():
        pytest.skip(f"no shared rewards at {path}")
    assert "flux_imagereward" in tensor_keys(path)
    aware, plain = load_tensor(path, "sdxl_hpsv2"), load_tensor(path, "sdxl_hpsv2", plain=True)
    assert aware.looks.shape == (100, 200, 20)
    same = [step for step in range(20) if np.array_equal(aware.looks[:, :, step], plain.looks[:, :, step])]
    assert same == [0, 1, 2, 15, 16, 17, 18, 19]  # noise-aware rewards were published for steps 3 to 14
    np.testing.assert_array_equal(aware.final, plain.looks[:, :, 19])


def test_the_rewards_of_the_lab_are_found_by_name() -> None:
    assert tensor_keys("lab") == ["lab", "lab-noise-aware"]
    plain, aware = load_tensor("lab", "lab"), load_tensor("lab", "lab-noise-aware")
    np.testing.assert_array_equal(plain.final, aware.final)
    assert plain.prompts == aware.prompts
    assert aware.prices is not None


def test_a_path_called_lab_is_not_the_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file or folder"):
        load_tensor(tmp_path / "lab", "lab")

"""The published tree of pictures is read as published, lazily, and refused where it is torn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from diffkit.errors import InputError
from ttsnap.trajectories.published_images import PublishedImages
from ttsnap.trajectories.published_rewards import read_yaml_rewards

STEPS = (0, 2, 3)


@pytest.fixture
def tree(tmp_path):
    """Each picture is uniform and says where it belongs: red the prompt, green the candidate, blue the step."""
    for prompt in (0, 11):
        for candidate in range(3):
            for step in STEPS:
                path = tmp_path / f"p{prompt:04d}" / f"id{candidate:03d}" / f"s{step:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((4, 6, 3), (prompt, candidate, step), np.uint8)).save(path)
    (tmp_path / "notes.txt").write_text("no trajectory")
    return tmp_path


def test_every_picture_stands_where_it_belongs(tree):
    found = PublishedImages.open(tree, [f"prompt {number}" for number in range(12)])
    assert [(one.name, one.prompt) for one in found] == [("p0000", "prompt 0"), ("p0011", "prompt 11")]
    assert found[1].candidates == ("id000", "id001", "id002")
    assert (found[1].steps, found[1].last) == ((0, 2), 3)
    for step in STEPS:
        images = found[-1].estimates(step)
        assert images.shape == (3, 3, 4, 6)
        for candidate, image in enumerate(images):
            expected = torch.tensor([11.0, candidate, step])[:, None, None] / 255
            assert torch.equal(image, expected.expand(3, 4, 6))
    assert torch.equal(found[0].final_images, found[0].estimates(3))


def test_it_fits_the_published_rewards(tree):
    for step in STEPS:
        rows = "".join(f"p{p:04d}: {{{', '.join(f'id{c:03d}: {p + c / 10}' for c in range(3))}}}\n" for p in (0, 11))
        (tree / f"p2_i3_s{step:02d}.yaml").write_text(rows)
    rewards = read_yaml_rewards(tree)
    found = PublishedImages.open(tree)
    assert rewards.prompts == tuple(one.name for one in found)
    assert all(rewards.candidates == one.candidates for one in found)


def test_nothing_is_read_before_it_is_asked_for(tree):
    (tree / "p0000" / "id001" / "s02.png").write_bytes(b"torn")
    found = PublishedImages.open(tree)
    assert found[0].prompt is None
    found[0].estimates(0)
    with pytest.raises(InputError, match=r"s02\.png is no image"):
        found[0].estimates(2)


def test_a_step_that_a_candidate_lacks_is_not_recorded(tree):
    (tree / "p0000" / "id001" / "s00.png").unlink()
    found = PublishedImages.open(tree)
    assert (found[0].steps, found[1].steps) == ((2,), (0, 2))
    with pytest.raises(InputError, match="Step 0 of .* recorded are 2, 3"):
        found[0].estimates(0)


def test_torn_trees_are_refused(tree, tmp_path_factory):
    with pytest.raises(InputError, match="p0011 needs prompt 11, but 2 were given"):
        PublishedImages.open(tree, ["a", "b"])
    with pytest.raises(InputError, match="holds no published trajectories"):
        PublishedImages.open(tmp_path_factory.mktemp("empty"))
    with pytest.raises(InputError, match="There is no folder"):
        PublishedImages.open(tree / "nowhere")
    Image.new("RGB", (5, 5)).save(tree / "p0000" / "id002" / "s00.png")
    with pytest.raises(InputError, match=r"id002/s00\.png has 5 x 5 pixels, the others 6 x 4"):
        PublishedImages.open(tree)[0].estimates(0)
    (tree / "p0000" / "id02").mkdir()
    with pytest.raises(InputError, match="have the same number"):
        PublishedImages.open(tree)
    (tree / "p0000" / "id02").rmdir()
    (tree / "p0011" / "id002" / "s03.png").unlink()
    with pytest.raises(InputError, match="end at different steps, 2 to 3"):
        PublishedImages.open(tree)
    (tree / "p0011" / "id003").mkdir()
    with pytest.raises(InputError, match="without pictures"):
        PublishedImages.open(tree)

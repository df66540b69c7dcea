"""ImageReward scores as the published package does; its golden values come from scripts/reward_parity.py."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_rewards import DATA, as_tensor, image_reward_folder, pictures, recipe

from diffkit.errors import InputError
from diffkit.rewards import load_reward
from diffkit.rewards.image_reward import ImageReward, renamed, text_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return image_reward_folder(tmp_path_factory.mktemp("image-reward"))


@pytest.fixture(scope="module")
def reward(folder):
    return ImageReward.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def golden():
    found = json.loads((DATA / "image_reward_small.json").read_bytes())
    assert found["versions"]["image-reward"] == "1.5"
    return torch.tensor(found["scores"])


def test_scores_are_those_of_the_published_package(reward, golden):
    images = pictures()
    ours = torch.stack([reward.score_pil(images, [prompt] * len(images)) for prompt in recipe.PROMPTS])
    torch.testing.assert_close(ours, golden, rtol=0, atol=1e-4)
    assert golden.std() > 0.3  # a test of constants would prove nothing


def test_one_batch_of_all_prompts_gives_the_same(reward, golden):
    images = pictures()
    rows = [(picture, prompt) for prompt in recipe.PROMPTS for picture in images]
    ours = reward.score_pil([picture for picture, _ in rows], [prompt for _, prompt in rows])
    torch.testing.assert_close(ours.view_as(golden), golden, rtol=0, atol=1e-4)


def test_the_full_size_agreed_when_it_was_measured():
    found = json.loads((DATA / "image_reward_full_parity.json").read_bytes())
    assert found["largest_difference"] < 1e-4
    assert found["spread_of_scores"] > 100 * found["largest_difference"]


def test_the_tensor_path_differs_by_what_is_stated(reward, golden):
    """Equal where nothing is resized; on noisy images elsewhere at most 0.02, spread of scores 0.55."""
    images = pictures()
    rows = [torch.cat([reward.score(as_tensor(one), [prompt]) for one in images]) for prompt in recipe.PROMPTS]
    difference = (torch.stack(rows) - golden).abs()
    assert difference[:, 0].max() < 1e-4
    assert 1e-4 < difference.max() < 0.02


def test_every_published_tensor_has_its_place(reward):
    golden = json.loads((DATA / "image_reward_small.json").read_bytes())
    names = renamed({name: torch.zeros(()) for name in golden["shapes"]})
    assert set(names) == set(reward.module.state_dict())
    left_out = {name.split(".")[1] for name in golden["shapes"]} - {"visual_encoder", "text_encoder", "layers"}
    assert left_out == {"vision_proj", "text_proj"}


def test_the_published_configuration_is_the_default():
    config = text_config({}, 1024)
    asked = recipe.med_config(full=True)
    same = [key for key in asked if hasattr(config, key) and key not in ("architectures", "model_type")]
    assert {key: getattr(config, key) for key in same} == {key: asked[key] for key in same}
    assert {"num_attention_heads", "vocab_size", "num_hidden_layers", "layer_norm_eps"} <= set(same)
    assert (config.encoder_hidden_size, config.is_decoder) == (1024, True)


def test_the_file_itself_is_a_location(folder, reward):
    again = load_reward(f"image-reward:{folder / 'ImageReward.pt'}:device=cpu")
    assert again.sha256 == reward.sha256
    assert again.name == f"image-reward:{folder / 'ImageReward.pt'}"


def test_without_a_tokenizer_beside_it_the_hub_is_named(folder, tmp_path):
    for name in ("ImageReward.pt", "med_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(InputError, match=r"vocab\.txt from https://huggingface\.co/bert-base-uncased"):
        ImageReward.from_pretrained(tmp_path)


def test_another_checkpoint_is_refused(tmp_path):
    torch.save({"layers.0.weight": torch.zeros(1)}, tmp_path / "ImageReward.pt")
    with pytest.raises(InputError, match="is no ImageReward"):
        ImageReward.from_pretrained(tmp_path)

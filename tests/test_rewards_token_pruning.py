"""Token pruning: what is kept, against attention that the libraries give; nothing kept aside changes nothing."""

from __future__ import annotations

import copy

import numpy as np
import open_clip
import pytest
import torch
from tiny_rewards import FOLDERS, OPEN_CLIP, PROMPTS, as_tensor, fill, smooth
from transformers import BlipVisionConfig, BlipVisionModel, CLIPVisionConfig, CLIPVisionModel

from diffkit.errors import InputError
from diffkit.rewards import load_reward
from diffkit.rewards.identity import weights_digest
from diffkit.rewards.token_pruning import (
    TokenPruning,
    attention_received,
    keep_ranked,
    keep_rows,
    prune_tokens,
    token_pruning_of,
)

IMAGES = torch.cat([as_tensor(image) for image in smooth(40)])
CAPTION = "a red circle left of a blue square on gray"
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 7}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp("reward") / name) for name, make in FOLDERS.items()}


def tower(kind):
    """A vision transformer of three layers on 4 x 4 patches, and its attention probabilities of a layer."""
    if kind == "open_clip":
        model = fill(open_clip.CLIP(**{**OPEN_CLIP, "vision_cfg": {**OPEN_CLIP["vision_cfg"], "layers": 3}}))
        blocks = model.visual.transformer.resblocks

        def probabilities(layer, states):
            normed = blocks[layer].ln_1(states)
            attend = blocks[layer].attn
            return attend(normed, normed, normed, need_weights=True, average_attn_weights=False)[1]

        return model, model.visual._embeds, blocks, probabilities
    classes = {"clip": (CLIPVisionModel, CLIPVisionConfig), "blip": (BlipVisionModel, BlipVisionConfig)}
    model = fill(classes[kind][0](classes[kind][1](**VISION, attn_implementation="eager")))
    before = model.pre_layrnorm if kind == "clip" else torch.nn.Identity()

    def eager(layer, states):
        mask = (None,) if kind == "clip" else ()
        return model.encoder.layers[layer].self_attn(model.encoder.layers[layer].layer_norm1(states), *mask)[1]

    return model, lambda pixels: before(model.embeddings(pixels)), model.encoder.layers, eager


def run(kind, layer, states):
    return layer(states, None) if kind == "clip" else layer(states)


def chosen(probabilities, strategy, share):
    """Places of the patches that stay, by loops over numpy arrays."""
    received = probabilities.numpy().mean(axis=1).sum(axis=1)[:, 1:]
    kept = []
    for row in received:
        if strategy == "row":
            sums = row.reshape(4, 4).sum(axis=1)
            rows = sorted(np.argsort(-sums)[: int(np.ceil(share * 4))])
            kept.append([4 * r + c for r in rows for c in range(4)])
        else:
            kept.append(sorted(np.argsort(-row)[: int(np.ceil(share * 16))]))
    return np.array(kept)


@pytest.mark.parametrize("strategy", ["rank", "row"])
@pytest.mark.parametrize("kind", ["clip", "blip", "open_clip"])
@torch.no_grad()
def test_later_layers_run_on_the_patches_that_the_libraries_attention_chooses(kind, strategy):
    model, embed, layers, probabilities = tower(kind)
    pixels = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    states = run(kind, layers[0], embed(pixels))
    kept = chosen(probabilities(1, states), strategy, 0.4)
    states = run(kind, layers[1], states)
    rows = [torch.cat([row[:1], row[1:][places]]) for row, places in zip(states, kept, strict=True)]
    expected = run(kind, layers[2], torch.stack(rows))
    seen = []
    layers[2].register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert prune_tokens(model, f"{strategy}-0.4-2") == TokenPruning(strategy, 0.4, 2)
    model.encode_image(pixels) if kind == "open_clip" else model(pixels)
    assert expected.shape[1] == 1 + (8 if strategy == "row" else 7)
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-5)


def test_attention_received_is_one_on_average():
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(2, 3, 5, 4, generator=generator) for _ in range(2))
    torch.testing.assert_close(attention_received(queries, keys).mean(1), torch.ones(2))
    queries, keys = torch.ones(1, 3, 5, 4), torch.zeros(1, 3, 5, 4)
    keys[:, 0, 2] = 100.0  # one head looks at the third token only, two at all alike
    torch.testing.assert_close(attention_received(queries, keys), torch.tensor([[2, 2, 7, 2, 2]]) / 3)


def test_what_is_kept_is_in_its_order_and_ties_go_to_the_first():
    received = torch.tensor([[0.1, 3.0, 0.2, 2.0], [1.0, 1.0, 1.0, 1.0]])
    assert keep_ranked(received, 0.5).tolist() == [[1, 3], [0, 1]]
    assert keep_ranked(received, 0.51).tolist() == [[1, 2, 3], [0, 1, 2]]
    assert keep_ranked(torch.rand(1, 100), 0.07).shape == (1, 7)  # in floating point 0.07 * 100 is above 7
    assert keep_rows(received, 0.5).tolist() == [[0, 1], [0, 1]]


def test_rows_are_kept_whole():
    received = torch.rand(4, 36, generator=torch.Generator().manual_seed(0))
    kept = keep_rows(received, 0.5)
    assert kept.shape == (4, 18)
    assert (kept.diff(dim=1) > 0).all()
    grid = kept.view(4, 3, 6)
    assert (grid // 6 == grid[:, :, :1] // 6).all()
    dropped = received.view(4, 6, 6).sum(-1).sort(dim=1).values[:, 2]
    assert (received.gather(1, kept).view(4, 3, 6).sum(-1) > dropped[:, None]).all()


@pytest.mark.parametrize("name", [*FOLDERS, "lab"])
def test_keeping_all_changes_no_bit_and_keeping_less_costs_less(name, folders):
    text = name if name == "lab" else f"{name}:{folders[name]}:device=cpu"
    prompts = [CAPTION] * 5 if name == "lab" else PROMPTS
    plain = load_reward(text)
    assert token_pruning_of(plain.module) is None
    scores = plain.score(IMAGES, prompts)
    for everything in ("rank-1", "row-1-1", "rank-0.999"):  # of few patches 0.999, rounded up, is all
        assert torch.equal(load_reward(f"{text}:token_pruning={everything}").score(IMAGES, prompts), scores)
    half = load_reward(f"{text}:token_pruning=rank-0.5-1")
    quarter = load_reward(f"{text}:token_pruning=rank-0.25-1")
    assert quarter.flops_per_image < half.flops_per_image < plain.flops_per_image
    changed = half.score(IMAGES, prompts)
    assert torch.isfinite(changed).all()
    assert not torch.equal(changed, scores)
    torch.testing.assert_close(half.score(IMAGES[1:2], prompts[1:2]), changed[1:2], rtol=1e-4, atol=1e-5)
    leaf = IMAGES.clone().requires_grad_()
    half.differentiable(leaf, prompts).sum().backward()
    assert leaf.grad.abs().sum((1, 2, 3)).min() > 0


def test_the_name_and_the_card_say_so(folders):
    text = f"clip-score:{folders['clip-score']}:convention=percent"
    reward = load_reward(f"{text}:token_pruning=rank-0.5")
    assert reward.name == f"{text}:token_pruning=rank-0.5-1"
    assert load_reward(reward.name).name == reward.name
    assert reward.card()["token_pruning"] == "rank-0.5-1"
    assert "token_pruning" not in load_reward(text).card()
    assert load_reward("lab-trio:token_pruning=row-0.75").name == "lab-trio:token_pruning=row-0.75-2"


def test_a_copy_prunes_as_well_and_its_weights_are_told_apart():
    plain, pruned = load_reward("lab"), load_reward("lab:token_pruning=rank-0.5-1")
    twin = copy.deepcopy(pruned.module)
    assert str(token_pruning_of(twin)) == "rank-0.5-1"
    assert weights_digest(twin) == weights_digest(pruned.module) != weights_digest(plain.module)
    torch.testing.assert_close(
        pruned.differentiable(IMAGES, [CAPTION] * 5, module=twin), pruned.score(IMAGES, [CAPTION] * 5)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("half", "such as rank-0.5"), ("rank-0.5-1-2", "such as rank-0.5"), ("rank-", "such as rank-0.5"),
        ("rank-1.2.3", "such as rank-0.5"), ("best-0.5", "rank or row"), ("rank-0", "above 0 and at most 1"),
        ("row-1.5", "above 0 and at most 1"), ("rank-0.5-0", "counted from 1"), ("rank-0.5-5", "a layer from 1 to 4"),
    ],
)  # fmt: skip
def test_refusals(text, message):
    with pytest.raises(InputError, match=message):
        load_reward(f"lab:token_pruning={text}")


def test_networks_that_cannot_be_pruned(folders):
    with pytest.raises(InputError, match="from 1 to 1"):  # behind a CLIP's last layer nothing reads the patches
        load_reward(f"pick-score:{folders['pick-score']}:token_pruning=rank-0.5-2")
    with pytest.raises(InputError, match="needs a vision transformer"):
        prune_tokens(torch.nn.Linear(2, 2), "rank-0.5")
    averaging = open_clip.CLIP(**{**OPEN_CLIP, "vision_cfg": {**OPEN_CLIP["vision_cfg"], "pool_type": "avg"}})
    with pytest.raises(InputError, match="needs a vision transformer"):
        prune_tokens(averaging, "rank-0.5")
    pruned = load_reward("lab:token_pruning=rank-0.5-1").module
    with pytest.raises(InputError, match="already, by rank-0.5-1"):
        prune_tokens(pruned, "row-0.5-1")

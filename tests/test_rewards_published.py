"""What is asked of every published reward, on tiny ones of the real classes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from tiny_rewards import FOLDERS, PROMPTS, SIDE, as_tensor, clip_folder, pictures, smooth

from diffkit.errors import InputError
from diffkit.rewards import REWARDS, load_reward
from diffkit.rewards.base import Reward, TrainableReward, score_checked
from diffkit.rewards.network import NetworkReward, Recent
from diffkit.runs import sha256_file

NAMES = list(FOLDERS)
# Largest difference of the tensor path to the PIL path on smooth images, in spreads of the scores; see docs/rewards.md.
DIFFERENCE = 0.15


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp("reward") / name) for name, make in FOLDERS.items()}


@pytest.fixture(scope="module")
def rewards(folders):
    return {name: load_reward(f"{name}:{folder}:device=cpu") for name, folder in folders.items()}


@pytest.fixture(params=NAMES)
def reward(request, rewards):
    return rewards[request.param]


def images(side: int = 40) -> torch.Tensor:
    return torch.cat([as_tensor(image) for image in smooth(side)])


def test_contract(reward):
    assert isinstance(reward, Reward)
    assert isinstance(reward, TrainableReward)
    assert reward.higher_is_better
    assert reward.flops_per_image > 0
    assert reward.input_size in (SIDE, 32)
    values, reasons = score_checked(reward, images(), PROMPTS)
    assert (values.dtype, values.shape, reasons) == (torch.float32, (5,), [None] * 5)
    assert values.std() > 1e-3
    assert all(reward.range[0] <= value <= reward.range[1] for value in values)
    assert reward.score(images()[:0], []).shape == reward.score_pil([], []).shape == (0,)


def test_rows_do_not_depend_on_their_neighbours(reward):
    together = reward.score(images(), PROMPTS)
    apart = torch.cat([reward.score(images()[i : i + 1], [PROMPTS[i]]) for i in range(5)])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    many = reward.score(images().repeat(7, 1, 1, 1), PROMPTS * 7)  # more than are computed at once
    torch.testing.assert_close(many, together.repeat(7), rtol=1e-4, atol=1e-5)


def test_the_tensor_path_follows_the_pil_path(reward):
    side = reward.input_size
    own = [image.resize((side, side)) for image in smooth(64)]
    same = torch.cat([as_tensor(image) for image in own])
    torch.testing.assert_close(reward.score(same, PROMPTS), reward.score_pil(own, PROMPTS), rtol=1e-4, atol=1e-5)
    exact = reward.score_pil(smooth(100), PROMPTS)
    difference = (reward.score(images(100), PROMPTS) - exact).abs().max()
    assert 0 < difference < DIFFERENCE * exact.std()


def test_gradient_reaches_the_image(reward):
    leaf = images().requires_grad_()
    scores = reward.differentiable(leaf, PROMPTS)
    scores.sum().backward()
    assert leaf.grad.abs().sum((1, 2, 3)).min() > 0
    with torch.no_grad():
        better = (leaf + 0.05 * leaf.grad / leaf.grad.abs().amax((1, 2, 3), keepdim=True)).clamp(0, 1)
    assert reward.score(better, PROMPTS).sum() > scores.sum()


def test_a_module_in_its_place_gets_one_row_an_image(reward):
    seen = []

    def spy(*inputs):
        seen.extend(inputs)
        return reward.module(*inputs)

    scores = reward.differentiable(images(), PROMPTS, module=spy)
    torch.testing.assert_close(scores, reward.score(images(), PROMPTS), rtol=1e-4, atol=1e-5)
    assert {len(one) for one in seen} == {5}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name, dtype, folders, rewards):
    half = load_reward(f"{name}:{folders[name]}:device=cpu:dtype={dtype}")
    assert {p.dtype for n, p in half.module.named_parameters() if "head." not in n} == {getattr(torch, dtype)}
    for scores in (half.score(images(), PROMPTS), half.score_pil(smooth(40), PROMPTS)):
        assert scores.dtype == torch.float32
        assert torch.isfinite(scores).all()
    exact = rewards[name].score_pil(smooth(40), PROMPTS)
    error = (half.score_pil(smooth(40), PROMPTS) - exact).abs().max()
    assert error < (0.5 if dtype == "bfloat16" else 0.1) * exact.std()


def test_images_of_any_size_and_mode(reward):
    assert torch.isfinite(reward.score_pil(pictures(), PROMPTS)).all()
    odd = [image.convert(mode) for image, mode in zip(pictures(), ("L", "RGBA", "RGB", "L", "RGB"), strict=True)]
    assert torch.isfinite(reward.score_pil(odd, PROMPTS)).all()


@pytest.mark.parametrize("name", ["pick-score", "hps-v2.1", "image-reward"])
def test_each_prompt_is_read_once(name, folders):
    reward = load_reward(f"{name}:{folders[name]}")
    read = []
    tokenize = reward.tokenize
    reward.tokenize = lambda prompts: (read.extend(prompts), tokenize(prompts))[1]
    with torch.inference_mode():
        first = reward.score(images(), PROMPTS)
    assert sorted(read) == sorted(set(PROMPTS))
    again = reward.differentiable(images().requires_grad_(), PROMPTS)
    again.sum().backward()  # what inference mode kept can be used with a gradient
    assert len(read) == len(set(PROMPTS))
    torch.testing.assert_close(first, again.detach().float(), rtol=1e-4, atol=1e-5)


def test_what_is_kept_is_bounded():
    recent, made = Recent(2), []

    def make(new):
        made.extend(new)
        return [text.upper() for text in new]

    assert recent.get(["a", "b", "a", "c"], make) == ["A", "B", "A", "C"]
    assert (len(recent), made) == (2, ["a", "b", "c"])
    assert recent.get(["a", "c"], make) == ["A", "C"]
    assert made == ["a", "b", "c"]  # b, the oldest, was forgotten


def test_the_card(reward, folders):
    card = reward.card()
    name = reward.name.split(":")[0]
    assert reward.name == f"{name}:{folders[name]}"
    assert card["licence"] == reward.licence
    assert len(card["sha256"]) == 64
    if len(reward.files) == 1:
        assert card["sha256"] == sha256_file(reward.files[0])
    assert load_reward(reward.name).name == reward.name


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_folder_says_what_to_download(name, tmp_path):
    with pytest.raises(InputError, match=r"download .*https://huggingface\.co/") as caught:
        load_reward(f"{name}:{tmp_path}")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*NAMES, "hps-v2", "clip-score:owner/model", "clip-score:hf-hub:owner/model"])
def test_without_a_connection_one_sentence(name):
    with pytest.raises(InputError, match=r"hub id .*HF_HUB_OFFLINE is set.* download ") as caught:
        load_reward(name)
    assert "\n" not in str(caught.value)


CLIP_WEIGHTS, CLIP_WORDS = (
    ["config.json", "model.safetensors"],
    ["config.json", "tokenizer.json", "tokenizer_config.json"],
)
CACHED = {
    "pick-score": {"yuvalkirstain/PickScore_v1": CLIP_WEIGHTS, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": CLIP_WORDS},
    "clip-score": {"openai/clip-vit-large-patch14": [*CLIP_WEIGHTS, *CLIP_WORDS]},
    "hps-v2.1": {"xswu/HPSv2": ["HPS_v2.1_compressed.pt", "open_clip_config.json"]},
    "image-reward": {"THUDM/ImageReward": ["ImageReward.pt", "med_config.json"], "bert-base-uncased": ["vocab.txt"]},
    "aesthetic": {
        "trl-lib/ddpo-aesthetic-predictor": ["sac+logos+ava1-l14-linearMSE.pth"],
        "openai/clip-vit-large-patch14": CLIP_WEIGHTS,
    },
}


@pytest.mark.parametrize("name", NAMES)
def test_a_warm_cache_needs_no_connection(name, folders, rewards):
    """The published hub ids, as the hub's client keeps them."""
    cache, made = Path(constants.HF_HUB_CACHE), []
    try:
        for repository, files in CACHED[name].items():
            root = cache / f"models--{repository.replace('/', '--')}"
            made.append(root)
            snapshot = root / "snapshots" / ("0" * 40)
            snapshot.mkdir(parents=True)
            (root / "refs").mkdir()
            (root / "refs" / "main").write_text("0" * 40)
            for file in files:
                target = "aesthetic-model.pth" if file.endswith(".pth") else file
                shutil.copy(folders[name] / file, snapshot / target)
        reward = load_reward(f"{name}:device=cpu")
        assert reward.name == name
        torch.testing.assert_close(reward.score(images(), PROMPTS), rewards[name].score(images(), PROMPTS))
        assert reward.sha256 == rewards[name].sha256
    finally:
        for root in made:
            shutil.rmtree(root)


def test_a_clip_without_its_tokenizer_is_refused(folders, tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(folders["pick-score"], folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    with pytest.raises(InputError, match="tokenizer"):
        load_reward(f"pick-score:{folder}")


def test_missing_tensors_are_not_filled_with_noise(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    for name in ("pick-score", "aesthetic"):
        shutil.copytree(folders[name], tmp_path / name)
        tensors = load_file(tmp_path / name / "model.safetensors")
        del tensors["visual_projection.weight"]
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match="1 tensors are missing, such as visual_projection"):
            load_reward(f"{name}:{tmp_path / name}")


def test_damaged_and_executable_files_are_refused(folders, tmp_path):
    shutil.copytree(folders["hps-v2.1"], tmp_path / "hps")
    file = tmp_path / "hps" / "HPS_v2.1_compressed.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read as a file of tensors"):
        load_reward(f"hps-v2.1:{file}")
    torch.save({"state_dict": NetworkReward}, file)
    with pytest.raises(InputError, match="cannot be read as a file of tensors"):
        load_reward(f"hps-v2.1:{file}")
    torch.save({"state_dict": {"visual.proj": torch.zeros(1)}}, file)
    with pytest.raises(InputError, match="no usable weights of hps-v2.1"):
        load_reward(f"hps-v2.1:{file}")


def test_options_behind_a_name(folders):
    reward = load_reward(f"clip-score:{folders['clip-score']}:convention=percent")
    assert reward.range == (-100, 100)
    assert reward.name == f"clip-score:{folders['clip-score']}:convention=percent"
    for text, message in [
        ("clip-score:unit=percent", r"option 'unit' .* it takes a location, convention=, device=, dtype="),
        ("hps-v2:version=v2.1", "option 'version'"),
        ("lab:/somewhere", "it takes token_pruning="),
        ("pick-score:", "does not understand ''"),
        (f"pick-score:{folders['pick-score']}:dtype=int8", "Unknown dtype"),
    ]:
        with pytest.raises(InputError, match=message):
            load_reward(text)
    assert set(NAMES) | {"ensemble", "hps-v2", "lab"} <= set(REWARDS.names())


def test_prompts_are_a_list(rewards):
    for prompts, message in [("a cat", "one text"), (["a"], "1 prompts for 5 images")]:
        with pytest.raises(InputError, match=message):
            rewards["pick-score"].score(images(), prompts)


def test_it_can_be_distilled(rewards):
    """The noise-aware back-ends copy the network, so what they make must score like it until it is trained."""
    from ttsnap.noise_aware.backends import BACKENDS, build

    for reward in rewards.values():
        for backend in BACKENDS:
            network = build(backend, reward, rank=2)
            rows = torch.zeros(5)
            scores = reward.differentiable(images(), PROMPTS, module=lambda *x, n=network, r=rows: n(*x, log_snr=r))
            torch.testing.assert_close(scores, reward.score(images(), PROMPTS), rtol=1e-3, atol=1e-4)
            assert any(parameter.requires_grad for parameter in network.parameters())


def test_weights_are_kept_apart(tmp_path):
    """Two folders of one reward are two rewards."""
    one, two = (load_reward(f"pick-score:{clip_folder(tmp_path / name)}") for name in "ab")
    assert one.name != two.name
    assert one.sha256 == two.sha256

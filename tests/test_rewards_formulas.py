"""Published rewards against their formulas written out on the libraries' own models, and preprocessing likewise."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_rewards import OPEN_CLIP, PROMPTS, SIDE, aesthetic_folder, clip_folder, hps_folder, open_clip_folder, pictures
from torchvision import transforms
from torchvision.transforms import functional as tf
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from diffkit.errors import InputError
from diffkit.rewards.aesthetic import Aesthetic
from diffkit.rewards.clip_score import ClipScore
from diffkit.rewards.hps import HPS
from diffkit.rewards.pick_score import PickScore
from diffkit.rewards.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing, normalised

CLOSE = {"rtol": 1e-5, "atol": 2e-5}
sizes = st.integers(20, 90)


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.RandomState(height * width).randint(0, 256, (height, width, 3), dtype=np.uint8))


@given(sizes, sizes)
def test_crop_is_torchvisions(height, width):
    published = transforms.Compose(
        [transforms.Resize(SIDE, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(SIDE),
         transforms.ToTensor(), transforms.Normalize(CLIP_MEAN, CLIP_STD)]
    )  # fmt: skip
    image = noise(height, width)
    ours = normalised(Preprocessing(SIDE, "crop").pictures([image]))[0]
    torch.testing.assert_close(ours, published(image), rtol=0, atol=1e-5)


@given(sizes, sizes)
def test_crop_floor_is_transformers(height, width):
    crop = {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=crop)
    image = noise(height, width)
    ours = normalised(Preprocessing(SIDE, "crop-floor").pictures([image]))
    torch.testing.assert_close(ours, processor([image], return_tensors="pt").pixel_values, rtol=0, atol=1e-5)


def padded(image: Image.Image) -> torch.Tensor:
    """HPS's transform, written out: longer side to SIDE, black around, CLIP's colours."""
    scale = SIDE / max(image.size)
    height, width = (round(length * scale) for length in reversed(image.size))
    resized = tf.resize(image, [height, width], tf.InterpolationMode.BICUBIC)
    above, left = (SIDE - height) // 2, (SIDE - width) // 2
    full = tf.pad(resized, [left, above, SIDE - width - left, SIDE - height - above], fill=0)
    return tf.normalize(tf.to_tensor(full), CLIP_MEAN, CLIP_STD)


@given(sizes, sizes)
def test_pad_is_that_of_hps(height, width):
    image = noise(height, width)
    ours = normalised(Preprocessing(SIDE, "pad").pictures([image]))[0]
    torch.testing.assert_close(ours, padded(image), rtol=0, atol=1e-5)


@given(sizes, sizes, st.sampled_from(["crop", "crop-floor", "pad"]))
def test_the_tensor_path_sees_the_same_region(height, width, fit):
    """The same geometry on a plane of brightness, whose resampling rounds by half a level at most."""
    y, x = np.mgrid[0:height, 0:width]
    plane = np.stack([200.0 * y / height, 200.0 * x / width, 50 + 0 * x], -1).round().astype(np.uint8)
    way = Preprocessing(SIDE, fit)
    ours = way.tensors(torch.from_numpy(plane).permute(2, 0, 1)[None] / 255)[0]
    assert ours.shape == (3, SIDE, SIDE)
    assert (ours - way.pictures([Image.fromarray(plane)])[0]).abs().max() < 1.51 / 255


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return clip_folder(tmp_path_factory.mktemp("clip"))


def logits(folder):
    """(images, prompts) of transformers' own forward pass, its processor and its tokenizer, scaled by the model."""
    model = CLIPModel.from_pretrained(folder)
    words = AutoTokenizer.from_pretrained(folder)(
        PROMPTS, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(pictures(), return_tensors="pt").pixel_values
    with torch.no_grad():
        return model(pixel_values=pixels, **words).logits_per_image, model.logit_scale.exp()


def test_pick_score(clip):
    expected, temperature = logits(clip)
    reward = PickScore.from_pretrained(clip, device="cpu")
    torch.testing.assert_close(reward.score_pil(pictures(), PROMPTS), expected.diagonal(), **CLOSE)
    assert reward.range == pytest.approx((-float(temperature), float(temperature)))
    assert expected.diagonal().std() > 0.01


@pytest.mark.parametrize(
    ("convention", "formula"),
    [("cosine", lambda c: c), ("clipscore", lambda c: 2.5 * c.clamp(min=0)), ("percent", lambda c: 100 * c)],
)
def test_clip_score(clip, convention, formula):
    logit, temperature = logits(clip)
    reward = ClipScore.from_pretrained(clip, convention=convention, device="cpu")
    expected = formula(logit.diagonal() / temperature)
    torch.testing.assert_close(reward.score_pil(pictures(), PROMPTS), expected, rtol=1e-4, atol=2e-5)
    assert all(reward.range[0] <= score <= reward.range[1] for score in expected)


def open_clip_cosines(pixels: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    words = open_clip.get_tokenizer("ViT-H-14", context_length=OPEN_CLIP["text_cfg"]["context_length"])
    with torch.no_grad():
        return (model.encode_image(pixels, normalize=True) @ model.encode_text(words(PROMPTS), normalize=True).T).diag()


@pytest.mark.parametrize("version", ["v2", "v2.1"])
def test_hps(tmp_path, version):
    folder = hps_folder(tmp_path, f"HPS_{version}_compressed.pt")
    model = open_clip.CLIP(**OPEN_CLIP).eval()
    model.load_state_dict(torch.load(folder / f"HPS_{version}_compressed.pt", weights_only=True)["state_dict"])
    expected = open_clip_cosines(torch.stack([padded(image) for image in pictures()]), model)
    reward = HPS.from_pretrained(folder, version=version, device="cpu")
    torch.testing.assert_close(reward.score_pil(pictures(), PROMPTS), expected, **CLOSE)
    assert reward.range == (-1, 1)
    assert expected.std() > 0.01


def test_clip_score_of_open_clip(tmp_path):
    folder = open_clip_folder(tmp_path)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    expected = open_clip_cosines(torch.stack([transform(image) for image in pictures()]), model.eval())
    reward = ClipScore.from_pretrained(folder, device="cpu")
    torch.testing.assert_close(reward.score_pil(pictures(), PROMPTS), expected, **CLOSE)


def test_aesthetic(tmp_path):
    folder = aesthetic_folder(tmp_path)
    model = CLIPModel.from_pretrained(folder)
    pixels = normalised(Preprocessing(SIDE, "crop").pictures(pictures()))
    with torch.no_grad():
        vectors = model.get_image_features(pixel_values=pixels).pooler_output.double().numpy()
    states = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    head = torch.load(folder / "sac+logos+ava1-l14-linearMSE.pth", weights_only=True)
    for place in (0, 2, 4, 6, 7):
        states = states @ head[f"layers.{place}.weight"].double().numpy().T + head[f"layers.{place}.bias"].numpy()
    reward = Aesthetic.from_pretrained(folder, device="cpu")
    ours = reward.score_pil(pictures(), PROMPTS)
    torch.testing.assert_close(ours, torch.from_numpy(states[:, 0]).float(), **CLOSE)
    assert torch.equal(ours, reward.score_pil(pictures(), ["other"] * 5))


def test_refusals(clip, tmp_path):
    with pytest.raises(InputError, match="convention among cosine, clipscore, percent"):
        ClipScore.from_pretrained(clip, convention="x100")
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    other = clip_folder(tmp_path / "other")
    processor.image_mean = [0.5, 0.5, 0.5]
    processor.save_pretrained(other)
    with pytest.raises(InputError, match="another preprocessing"):
        PickScore.from_pretrained(other)
    with pytest.raises(InputError, match="version v2 or v2.1"):
        HPS.from_pretrained(tmp_path, version="v3")
    with pytest.raises(InputError, match=r"shape \(B, 3, H, W\)"):
        Preprocessing(SIDE).tensors(torch.zeros(3, 8, 8))
    with pytest.raises(InputError, match="PIL images"):
        Preprocessing(SIDE).pictures([torch.zeros(3, 8, 8)])

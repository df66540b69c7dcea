"""How far the rewards' tensor path is from their published PIL path: pixels and scores.

    .venv/bin/python scripts/measure_rewards.py          # writes docs/figures/rewards.json and fills in docs/rewards.md
    .venv/bin/python scripts/measure_rewards.py --page   # only fills in the page

Pixels are compared at the published input size, 224, on the lab's photographs enlarged to 512, as a generator would
make them, and on plain noise, the worst case. Scores come from tiny networks of the real classes with seeded weights,
since published weights do not lie here, and stand in units of the scores' spread over images.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from tiny_rewards import FOLDERS, as_tensor  # noqa: E402

from diffkit.rewards import load_reward  # noqa: E402
from diffkit.rewards.network import NetworkReward  # noqa: E402
from diffkit.rewards.preprocessing import Preprocessing  # noqa: E402

FILE = ROOT / "docs" / "figures" / "rewards.json"
PAGE = ROOT / "docs" / "rewards.md"
PARITY = ROOT / "tests" / "data" / "rewards"
SIDE = 512


def photographs() -> list[Image.Image]:
    """The lab's own, enlarged."""
    files = sorted((ROOT / "diffkit" / "lab" / "data" / "planted").glob("*.png"))
    return [Image.open(file).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC) for file in files]


def noise(count: int = 8) -> list[Image.Image]:
    """Every pixel on its own."""
    random = np.random.RandomState(0)
    return [Image.fromarray(random.randint(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(count)]


def pixels(images: list[Image.Image]) -> dict[str, float]:
    """Mean and largest difference, in levels of 255, at the published input size."""
    way = Preprocessing(224)
    away = torch.cat([(way.tensors(as_tensor(one)) - way.pictures([one])).abs() * 255 for one in images])
    return {"mean": round(away.mean().item(), 3), "largest": round(away.max().item(), 2)}


def scores(reward: NetworkReward, images: list[Image.Image]) -> dict[str, float]:
    """Root mean square and largest difference, in standard deviations of the scores over images; Kendall's tau."""
    from scipy.stats import kendalltau

    prompts = ["a cat"] * len(images)
    exact = reward.score_pil(images, prompts)
    away = torch.cat([reward.score(as_tensor(one), ["a cat"]) for one in images]) - exact
    return {
        "rms": round((away.square().mean().sqrt() / exact.std()).item(), 4),
        "largest": round((away.abs().max() / exact.std()).item(), 4),
        "tau": round(float(kendalltau(exact, exact + away).statistic), 3),
    }


def difference(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """The table of the docs."""
    lines = ["| reward | root mean square | largest | tau of both orders |", "| --- | --- | --- | --- |"]
    for name, row in found["scores"].items():
        lines.append(f"| `{name}` | {row['rms']:.4f} | {row['largest']:.4f} | {row['tau']:.3f} |")
    photographs, noise = found["pixels"]["photographs"], found["pixels"]["noise"]
    text = (
        "Pixels at 224, in levels of 255: mean {}, largest {} on those photographs; mean {}, largest {} on plain noise."
    )
    numbers = (photographs["mean"], photographs["largest"], noise["mean"], noise["largest"])
    return "\n".join([*lines, "", text.format(*numbers)])


def parity() -> str:
    """The lines of the docs on parity, from what ``reward_parity.py`` wrote."""
    lines = []
    for size, what in (("small", "two layers"), ("full", "the published sizes, 1.8 GB")):
        file = PARITY / f"image_reward_{size}_parity.json"
        if file.is_file():
            one = json.loads(file.read_bytes())
            lines.append(
                f"  - {what}: largest difference {one['largest_difference']:.1e}, by the tensor path "
                f"{one['largest_difference_of_tensor_path']:.1e} (noisy images), spread of the scores "
                f"{one['spread_of_scores']:.2f}; 25 pairs of image and prompt."
            )
    return "\n".join(lines)


def page(text: str, found: dict[str, dict[str, dict[str, float]]]) -> str:
    """The document with its measured blocks filled in."""
    for name, block in (("difference", difference(found)), ("parity", parity())):
        text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>{block}\n\g<2>", text, flags=re.DOTALL)
    return text


def main() -> None:
    """Measure, unless only the page is to be filled in, and write."""
    if "--page" in sys.argv:
        PAGE.write_text(page(PAGE.read_text(), json.loads(FILE.read_bytes())))
        return
    images = photographs()
    found: dict[str, dict[str, dict[str, float]]] = {
        "pixels": {"photographs": pixels(images), "noise": pixels(noise())},
        "scores": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, make in FOLDERS.items():
            reward = load_reward(f"{name}:{make(Path(folder) / name)}:device=cpu")
            assert isinstance(reward, NetworkReward)
            found["scores"][name] = scores(reward, images)
    FILE.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page(PAGE.read_text(), found))


if __name__ == "__main__":
    main()

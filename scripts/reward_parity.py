"""Does our ImageReward score as the published `image-reward` package does?

Builds an environment of its own for the package, whose pins cannot live beside ours, lets it write seeded random
weights and their scores (``reward_parity_reference.py``), reads those weights with our module, and compares.

    .venv/bin/python scripts/reward_parity.py            # the small model
    .venv/bin/python scripts/reward_parity.py --full     # the published sizes: 1.8 GB, minutes
    .venv/bin/python scripts/reward_parity.py --update   # and rewrite the golden values of the tests
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data" / "rewards"
# image-reward 1.5 pins timm and fairscale; it imports from transformers what release 5 took away, and `clip`, which it
# does not declare. The others are of the time when these fitted together.
PACKAGES = (
    "image-reward==1.5", "timm==0.6.13", "fairscale==0.4.13", "openai-clip==1.0.1", "transformers==4.40.2",
    "diffusers==0.27.2", "huggingface-hub==0.23.4", "accelerate==0.30.1", "datasets==2.19.2", "pyarrow==16.1.0",
    "torch==2.2.2", "torchvision==0.17.2", "numpy==1.26.4", "setuptools<70",
)  # fmt: skip
TOLERANCE = 1e-4


def build(folder: Path) -> Path:
    """The environment's interpreter; built unless it is there. Needs Python 3.8 to 3.11."""
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        print(f"building {folder}; torch and its libraries are several GB", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "setuptools<70", "wheel"], check=True)
        subprocess.run([*pip, *PACKAGES], check=True)
        (folder / "complete").touch()
    return python


def compare(folder: Path) -> dict[str, Any]:
    """Our scores of the reference's weights, by the PIL path and by the tensor path, against its own."""
    import torch
    from PIL import Image

    from diffkit.rewards.image_reward import ImageReward

    sys.path.insert(0, str(DATA))
    import recipe

    golden = json.loads((folder / "golden.json").read_bytes())
    reward = ImageReward.from_pretrained(folder, device="cpu")
    pictures = [Image.fromarray(recipe.picture(index)) for index in range(len(recipe.SIZES))]
    tensors = [torch.from_numpy(recipe.picture(i)).permute(2, 0, 1)[None] / 255 for i in range(len(pictures))]
    expected = torch.tensor(golden["scores"])
    ours = torch.stack([reward.score_pil(pictures, [prompt] * len(pictures)) for prompt in recipe.PROMPTS])
    rows = [torch.cat([reward.score(one, [prompt]) for one in tensors]) for prompt in recipe.PROMPTS]
    return {
        "largest_difference": (ours - expected).abs().max().item(),
        "largest_difference_of_tensor_path": (torch.stack(rows) - expected).abs().max().item(),
        "spread_of_scores": expected.std().item(),
        "lowest_score": expected.min().item(),
        "highest_score": expected.max().item(),
        "reference": golden["versions"],
    }


def main() -> int:
    """Build, run both sides, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv" / "image-reward", help="where to build it")
    parser.add_argument("--full", action="store_true", help="the published sizes")
    parser.add_argument("--update", action="store_true", help="rewrite the golden values of the tests")
    arguments = parser.parse_args()
    python = build(arguments.environment)
    with tempfile.TemporaryDirectory(prefix="reward-parity-") as name:
        folder, began = Path(name), time.perf_counter()
        inside = [str(python), str(ROOT / "scripts" / "reward_parity_reference.py"), str(folder)]
        subprocess.run([*inside, *(["--full"] if arguments.full else [])], check=True, stdout=sys.stderr)
        found = compare(folder)
        found["seconds"] = round(time.perf_counter() - began, 1)
        size = "full" if arguments.full else "small"
        if arguments.update:
            golden = json.loads((folder / "golden.json").read_bytes())
            if arguments.full:
                del golden["shapes"]
            (DATA / f"image_reward_{size}.json").write_text(json.dumps(golden) + "\n")
            (DATA / f"image_reward_{size}_parity.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 0 if found["largest_difference"] <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())

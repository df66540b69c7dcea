"""Token pruning of the rewards: agreement with the whole network, FLOP, seconds, and what it saves of a look.

    python scripts/bench_token_pruning.py [--parts agreement,flop,seconds,looks] [--json FILE]

Agreement needs trained weights, so it is that of the lab's reward, on images that ``lab-trio`` draws: Kendall's tau of
a caption's seeds, mean over captions with a 95 % interval over them. FLOP and seconds are those of the published sizes
with random weights, of one image (and of its text for ImageReward; CLIPs keep a prompt's vector): FLOP on shapes alone,
seconds in turns, whole and pruned one after the other, as the ratio of each pair. A part that is not asked for stays in
the file as it was.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import architectures
import diffusers
import few_steps
import numpy as np
import torch
from measure_preview import mean
from numpy.typing import NDArray
from paired import spread
from torch import Tensor, nn
from transformers import BlipVisionConfig, CLIPVisionConfig, CLIPVisionModelWithProjection

from diffkit.flops import count_flops, pipeline_flops
from diffkit.ledger import Prices
from diffkit.prompt_embeds import Embeds
from diffkit.rewards import load_reward
from diffkit.rewards.image_reward import TOKENS, ImageRewardNetwork, text_config
from diffkit.rewards.token_pruning import prune_tokens
from ttsnap.alignment import kendall
from ttsnap.noise_aware.reward import NoiseAwareReward
from ttsnap.trajectories.dataset import Trajectories

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs" / "figures" / "token_pruning.json"
SHARES, STRATEGIES, LOOKS = (0.75, 0.5, 0.25), ("rank", "row"), (2, 4, 6, 8)
LOOKED_AT = ("rank-0.5", "rank-0.25")
HEAD = [768, 1024, 128, 64, 16, 1]
Floats = NDArray[np.float64]


def prunings(layers: int) -> Iterator[str]:
    """All shares and strategies after each of the layers."""
    yield from (f"{way}-{share}-{layer}" for layer in range(1, layers + 1) for way in STRATEGIES for share in SHARES)


def collect(out: Path, prompts: int, candidates: int) -> Trajectories:
    """Record (or go on with) images of three things, and the estimates after some steps."""
    line = [sys.executable, "-m", "diffkit", "ttsnap", "collect", "--model", "lab-trio", "--preview-vae", "lab"]
    line += ["--rewards", "lab-trio", "--prompts", "lab:trio", "--limit", str(prompts), "--out", str(out)]
    line += ["--candidates", str(candidates), "--record", ",".join(map(str, LOOKS))]
    subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return Trajectories.open(out)


def scored(recorded: Trajectories, score: Callable[[Tensor, list[str]], Tensor], step: int | None) -> Floats:
    """Scores (P, N) of the finished images, or of the estimates after a step."""
    rows = []
    for trajectory in recorded:
        images = trajectory.final_images if step is None else trajectory.previews[:, recorded.steps.index(step)]
        rows.append(score(images.float() / 255, [trajectory.prompt] * len(images)).tolist())
    return np.array(rows)


def looks_of(recorded: Trajectories, aware: NoiseAwareReward) -> dict[int, Floats]:
    """The noise-aware reward's scores (P, N) of the estimates after each step."""
    levels = dict(zip(recorded.steps, recorded[0].sigmas, strict=True))

    def at(step: int) -> Callable[[Tensor, list[str]], Tensor]:
        return lambda images, prompts: aware.score_estimates(images, prompts, -2 * float(np.log(levels[step])))

    return {step: scored(recorded, at(step), step) for step in LOOKS}


def agreement(options: argparse.Namespace) -> dict[str, Any]:
    """The lab's reward: finished images by tau with the whole network, looks by tau with the final reward."""
    recorded = collect(options.out, options.prompts, options.candidates)
    whole = load_reward("lab-trio")
    final = scored(recorded, whole.score, None)
    unpruned = looks_of(recorded, NoiseAwareReward.from_pretrained("lab-trio"))
    rows = []
    for text in prunings(4):
        reward = load_reward(f"lab-trio:token_pruning={text}")
        pruned = scored(recorded, reward.score, None)
        lost = final.max(1) - np.take_along_axis(final, pruned.argmax(1)[:, None], 1)[:, 0]
        row = {
            "pruning": text,
            "tau": mean(kendall(pruned, final)),
            "reward lost by its pick": mean(lost),
            "flop": float(reward.flops_per_image or 0) / float(whole.flops_per_image or 1),
        }
        if text.startswith(LOOKED_AT):
            aware = NoiseAwareReward.from_pretrained("lab-trio")
            prune_tokens(aware.network, text)
            looked = looks_of(recorded, aware)
            row["change of looks"] = {
                str(step): mean(kendall(looked[step], final) - kendall(unpruned[step], final)) for step in LOOKS
            }
        rows.append(row)
        print(json.dumps(row), flush=True)
    spread = float(final.std(1).mean())
    whole_looks = {str(step): mean(kendall(unpruned[step], final)) for step in LOOKS}
    return {"candidates": options.candidates, "spread": spread, "tau of whole looks": whole_looks, "rows": rows}


def clip(width: int, layers: int, projection: int) -> nn.Module:
    """CLIP's image encoder at 224 pixels with patches of 14."""
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    config = CLIPVisionConfig(**sizes, num_attention_heads=16, patch_size=14, projection_dim=projection)
    return CLIPVisionModelWithProjection(config).eval()


def image_reward() -> nn.Module:
    """ImageReward's network."""
    vision = BlipVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                              image_size=224, patch_size=16)  # fmt: skip
    return ImageRewardNetwork(vision, text_config({}, 1024), HEAD).eval()


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "clip-score, aesthetic (ViT-L/14)": lambda: clip(1024, 24, 768),
    "pick-score, hps (ViT-H/14)": lambda: clip(1280, 32, 1024),
    "image-reward (BLIP ViT-L/16)": image_reward,
}


def forward(network: nn.Module, device: str) -> None:
    """One image, and for ImageReward one text."""
    pixels = torch.zeros(1, 3, 224, 224, device=device)
    text = torch.ones(1, TOKENS, dtype=torch.long, device=device)
    network(*((pixels, text, text) if isinstance(network, ImageRewardNetwork) else (pixels,)))


def twin(network: nn.Module, pruning: str | None) -> nn.Module:
    """The network with the same weights, pruned."""
    other = copy.deepcopy(network, {id(tensor): tensor for tensor in network.parameters()})
    prune_tokens(other, pruning)
    return other


def counted(network: nn.Module) -> float:
    """FLOP of one image on shapes alone."""
    flops = count_flops(network, ("image",), lambda: forward(network, "meta"))
    if flops is None:
        raise SystemExit("This network cannot be counted on shapes alone.")
    return flops


def flop() -> dict[str, Any]:
    """FLOP of the whole networks, and the shares that remain after a third of the layers."""
    result = {}
    for name, build in NETWORKS.items():
        with torch.device("meta"):
            network = build()
        whole = counted(network)
        ways = [f"{way}-{share}" for way in STRATEGIES for share in SHARES]
        result[name] = {"flop": whole, "rows": {way: counted(twin(network, way)) / whole for way in ways}}
    return result


@torch.no_grad()
def seconds(repeats: int) -> dict[str, Any]:
    """Seconds of the whole networks on two threads, and the ratio of each pair: its median, lowest and highest."""
    torch.set_num_threads(2)
    result: dict[str, Any] = {}
    for name, build in NETWORKS.items():
        network = build()
        ways = {f"rank-{share}": twin(network, f"rank-{share}") for share in SHARES}
        forward(network, "cpu")
        wholes, ratios = [], {way: [] for way in ways}
        for _ in range(repeats):
            for way, pruned in ways.items():
                wholes.append(clocked(network))
                ratios[way].append(clocked(pruned) / wholes[-1])
        result[name] = {
            "seconds": statistics.median(wholes),
            "rows": {way: spread(of) for way, of in ratios.items()},
        }
        print(name, json.dumps(result[name]), flush=True)
    return result


def clocked(network: nn.Module) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    forward(network, "cpu")
    return time.perf_counter() - start


def stable_diffusion_prices() -> Prices:
    """FLOP of Stable Diffusion 1.5 at 512x512 with guidance, on shapes alone."""
    with torch.device("meta"):
        pipe, embeds = architectures.REAL["sd15"](), Embeds(torch.empty(1, 77, 768))
        preview = diffusers.AutoencoderTiny()
    return pipeline_flops(
        pipe, (4, 64, 64), embeds, guidance=True, verify=0, preview=preview, size=(512, 512), encode=0
    )


def looks(networks: Mapping[str, Any]) -> dict[str, Any]:
    """What a look by a tiny autoencoder costs, and what half of the patches saves of a step with a look."""
    models = {"Stable Diffusion 1.5, 512, guidance": stable_diffusion_prices(), "SDXL, 1024": few_steps.prices()}
    result: dict[str, Any] = {}
    for model, prices in models.items():
        call, preview, decode = (float(price or 0) for price in (prices.call, prices.preview, prices.decode))
        rows = {}
        for name, network in networks.items():
            verify, pruned = network["flop"], network["flop"] * network["rows"]["rank-0.5"]
            rows[name] = {
                "score in a look": verify / (preview + verify),
                "saved of a look": (verify - pruned) / (preview + verify),
                "saved of a step with a look": (verify - pruned) / (call + preview + verify),
                "saved of one by the whole decoder": (verify - pruned) / (call + decode + verify),
            }
        result[model] = {"call": call, "preview": preview, "decode": decode, "rows": rows}
    return result


def main() -> None:
    """Parse, measure what was asked for, write after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="agreement,flop,seconds,looks")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--candidates", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/token_pruning"))
    parser.add_argument("--json", type=Path, default=FILE)
    options = parser.parse_args()
    found = json.loads(options.json.read_bytes()) if options.json.is_file() else {}
    ways: dict[str, Callable[[], Any]] = {
        "agreement": lambda: agreement(options),
        "flop": flop,
        "seconds": lambda: seconds(options.repeats),
        "looks": lambda: looks(found["flop"]),
    }
    for part in options.parts.split(","):
        found[part] = ways[part]()
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

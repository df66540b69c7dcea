"""A preview decoder: only for looks, at its own price, and the winner stays the stock pipeline's image."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from test_ttsnap_pipeline import engine_of
from tiny import tiny_pipeline, tiny_vae
from torch.utils.flop_counter import FlopCounterMode

from diffkit.errors import InputError
from diffkit.latents import decode_latents
from diffkit.ledger import Budget, Cost, Prices
from diffkit.seeds import generators
from ttsnap import PruningSchedule, TTSnapPipeline
from ttsnap.search.budget import affordable, spending_limit
from ttsnap.search.prices import time_prices

PROMPT, STEPS = "a dog", 6
OPTIONS = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "seed": 7}
SCHEDULE = "1:0.4,3:0.5"


def brightness(images, prompts):
    return images.mean((1, 2, 3)) * 10


brightness.flops_per_image = 500


def small_vae(scaling: float = 1.0, channels: int = 4) -> AutoencoderTiny:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AutoencoderTiny(
            encoder_block_out_channels=(4, 4, 4),
            decoder_block_out_channels=(4, 4, 4),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
            latent_channels=channels,
            scaling_factor=scaling,
        ).eval()


def kl_pipe(**options) -> TTSnapPipeline:
    return TTSnapPipeline.from_pipe(tiny_pipeline("euler", vae="kl"), reward=brightness, **options)


def test_winner_is_still_the_stock_image_of_its_seed():
    out = kl_pipe(preview_vae=small_vae())(PROMPT, **OPTIONS, num_candidates=7, schedule=SCHEDULE, micro_batch=1)
    stock = tiny_pipeline("euler", vae="kl")
    [image] = stock(PROMPT, num_inference_steps=STEPS, guidance_scale=3.0, generator=generators(out.seeds)[0]).images
    assert np.array_equal(np.asarray(out.images[0]), np.asarray(image))


def test_looks_decode_by_the_preview_and_finished_images_by_the_vae():
    pipe, preview, decoded = kl_pipe(), small_vae(), {"full": 0, "preview": 0}

    def count(name):
        def hook(module, args, output):
            decoded[name] += len(args[0]) * (output.device.type == "cpu" and type(output) is torch.Tensor)

        return hook

    pipe.vae.decoder.register_forward_hook(count("full"))
    preview.decoder.register_forward_hook(count("preview"))
    out = pipe(PROMPT, **OPTIONS, num_candidates=7, schedule=SCHEDULE, micro_batch=4, preview_vae=preview)
    left = PruningSchedule.parse(SCHEDULE).survivors(7)
    assert out.ledger.cost == (7 * 2 + left[0] * 2 + left[1] * 2, left[1], 7 + sum(left), 7 + left[0])
    assert decoded == {"full": out.ledger.decoded, "preview": out.ledger.previewed}


@pytest.mark.parametrize("scaling", [1.0, 0.5])
def test_its_own_scaling_counts_not_the_pipelines(scaling):
    pipe, preview = tiny_pipeline(vae="kl"), small_vae(scaling)
    latents = torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        expected = (preview.decode(latents / scaling).sample / 2 + 0.5).clamp(0, 1)
        assert torch.equal(decode_latents(pipe, latents, preview), expected)
    assert pipe.vae.config.scaling_factor not in (0.5, 1.0)


def test_the_price_of_a_preview_is_its_own():
    preview = small_vae()
    out = kl_pipe(preview_vae=preview)(PROMPT, **OPTIONS, num_candidates=2, schedule="1:0.5")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        preview.decode(torch.zeros(1, 4, 16, 16))
    prices = out.ledger.flops
    assert prices.preview == counter.get_total_flops() < prices.decode
    calls, decoded, verified, previewed = out.ledger.cost
    by_hand = calls * prices.call + decoded * prices.decode + verified * 500 + previewed * prices.preview
    assert out.ledger.to_dict()["flop"] == by_hand


@pytest.mark.parametrize("budget", ["2x", "5x"])
def test_budgets_are_planned_with_it_and_pay_for_more_candidates(budget):
    parsed = PruningSchedule.parse(SCHEDULE)
    sizes = {}
    for preview in (None, small_vae()):
        out = kl_pipe(preview_vae=preview)(PROMPT, **OPTIONS, budget=budget, schedule=SCHEDULE)
        n, told, prices = len(out.trace[0].candidates), out.ledger.budget, out.ledger.flops
        cheap = preview is not None
        assert out.ledger.cost == parsed.cost(n, STEPS, preview=cheap)
        assert told["limit"] == pytest.approx(float(budget[:-1]) * Cost(STEPS, 1, 1).at(prices))
        assert told["spent"] <= told["limit"] < parsed.cost(n + 1, STEPS, preview=cheap).at(prices)
        sizes[cheap] = n
    assert sizes[True] >= sizes[False]


def test_a_budget_in_seconds_is_planned_with_it_too():
    """By hand: 4 a batch; a call 10 s, a decoding 5 s, a preview 1 s, a score 0.5 s; half go on after step 1."""
    engine = engine_of(4, small_vae())
    engine.pace = Prices(10.0, 5.0, 0.5, preview=1.0)

    def seconds(n: int) -> float:
        half = max(1, (n + 1) // 2)
        return 10.0 * (2 * -(-n // 4) * 4 + 4 * -(-half // 4) * 4) + 1.5 * n + 5.5 * half

    limit = spending_limit(Budget(2000.0, "s"), engine, spent_flop=0, began=time.perf_counter())
    n = affordable(engine, limit, PruningSchedule.parse("1:0.5"))
    assert n == max(n for n in range(1, 200) if seconds(n) <= 0.9 * 2000)
    measured = time_prices(engine)
    assert measured.preview > 0
    assert measured.decode > 0


def test_it_comes_from_an_instance_a_folder_or_another_pipeline(tmp_path):
    small_vae().save_pretrained(tmp_path / "vae")
    from_folder = kl_pipe(preview_vae=tmp_path / "vae")
    assert isinstance(from_folder.preview_vae, AutoencoderTiny)
    assert TTSnapPipeline.from_pipe(from_folder).preview_vae is from_folder.preview_vae
    tiny_pipeline("euler", vae="kl").save_pretrained(tmp_path / "pipe")
    loaded = TTSnapPipeline.from_pretrained(tmp_path / "pipe", reward=brightness, preview_vae=str(tmp_path / "vae"))
    loaded.set_progress_bar_config(disable=True)
    options = {**OPTIONS, "num_candidates": 4, "schedule": SCHEDULE}
    assert loaded(PROMPT, **options).ledger.previewed == from_folder(PROMPT, **options).ledger.previewed > 0


@pytest.mark.parametrize(
    ("preview", "sentence"),
    [
        (lambda: small_vae(channels=8), "reads latents of 8 channels, the pipeline's have 4"),
        (lambda: "./nowhere", "There is no preview decoder './nowhere'"),
        (lambda: 3, "Expected an AutoencoderTiny"),
    ],
)
def test_what_is_no_such_decoder_is_refused(preview, sentence):
    with pytest.raises(InputError, match=sentence):
        kl_pipe(preview_vae=preview())


def test_the_same_decoder_as_preview_changes_nothing():
    stock = tiny_pipeline("euler")
    pipe = TTSnapPipeline.from_pipe(stock, reward=brightness)
    twin = tiny_vae()
    twin.load_state_dict(stock.vae.state_dict())
    with_it = pipe(PROMPT, **OPTIONS, num_candidates=6, schedule=SCHEDULE, preview_vae=twin)
    without = pipe(PROMPT, **OPTIONS, num_candidates=6, schedule=SCHEDULE)
    assert [look.scores for look in with_it.trace] == [look.scores for look in without.trace]
    assert with_it.seeds == without.seeds

"""Layers of a denoiser by name, recorded while a pipeline runs."""

from __future__ import annotations

import pytest
from tiny import tiny_pipeline

from diffkit.activations import record_activations
from diffkit.errors import InputError

STEPS, GUIDANCE = 5, 3.0


def test_activations_of_layers_by_name():
    pipe = tiny_pipeline()
    layers = [name for name, _ in pipe.unet.named_modules() if name.endswith("attn2.to_v")]
    with record_activations(pipe.unet, "*attn2.to_v") as outputs:
        pipe("a dog", num_inference_steps=STEPS, guidance_scale=GUIDANCE)
    assert sorted(outputs) == sorted(layers)
    assert all(len(calls) == STEPS for calls in outputs.values())
    pipe("a dog", num_inference_steps=2, guidance_scale=GUIDANCE)
    assert all(len(calls) == STEPS for calls in outputs.values())  # the hooks are gone


def test_a_pattern_that_matches_no_layer_is_refused():
    with pytest.raises(InputError, match="No layer"), record_activations(tiny_pipeline().unet, "nothing*"):
        pass

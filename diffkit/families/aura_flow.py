"""AuraFlow: flow matching with one T5 encoder."""

from __future__ import annotations

from diffkit.families.base import FLOW, Call, Family, Inputs, Pipeline, Size

__all__ = ["AURA_FLOW"]


def _inputs(pipe: Pipeline, call: Call) -> Inputs:
    named = {
        "encoder_hidden_states": call.embeds.prompt_embeds,
        "timestep": (call.each_timestep() / 1000).to(call.latents.dtype),
    }
    return Inputs((call.latents,), named)


AURA_FLOW = Family(
    name="AuraFlow",
    pipeline="AuraFlowPipeline",
    denoiser="transformer",
    encoded=("prompt_embeds", "prompt_attention_mask", None, None),
    inputs=_inputs,
    schedulers=FLOW,
    default_size=lambda pipe: Size(1024, 1024),
    upcasts=True,
    encoding=frozenset({"max_sequence_length"}),
)

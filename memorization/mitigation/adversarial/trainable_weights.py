"""Make the denoiser's weights, or a LoRA, trainable inside a context, and return their change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diffkit.errors import InputError
from diffkit.families import family_of
from memorization.mitigation.adversarial.settings import AdversarialSettings

if TYPE_CHECKING:
    from diffkit.families import Pipeline

__all__ = ["trainable"]

ADAPTER = "diffkit-adversarial"
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


@contextmanager
def trainable(
    pipe: Pipeline, settings: AdversarialSettings
) -> Iterator[tuple[dict[str, nn.Parameter], Callable[[], dict[str, Tensor]]]]:
    """The pipeline in float32, ready to train: yields the trained parameters by name, and a function for their change.

    At the end precision, mode and every bit of the pipeline are restored.

    Raises:
        InputError: the denoiser has adapters already.
    """
    part = family_of(pipe).denoiser
    denoiser: nn.Module = getattr(pipe, part)
    modules = {name: value for name, value in pipe.components.items() if isinstance(value, nn.Module)}
    before = {name: (next(module.parameters()).dtype, module.training) for name, module in modules.items()}
    required = {parameter: parameter.requires_grad for module in modules.values() for parameter in module.parameters()}
    if getattr(denoiser, "peft_config", None):
        raise InputError("The model has adapters; fuse or unload them before adversarial fine-tuning.")
    weights = dict(denoiser.named_parameters())  # before an adapter changes their names
    original = {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}
    for module in modules.values():
        nn.Module.to(module, torch.float32).requires_grad_(False)
    try:
        if settings.lora_rank:
            yield _lora(denoiser, part, settings)
        else:
            denoiser.requires_grad_(True)

            def change() -> dict[str, Tensor]:
                now = {name: weights[name].detach().cpu() for name in original}
                return {f"{part}.{name}": (now[name] - original[name].float()).half() for name in original}

            yield weights, change
    finally:
        if settings.lora_rank:
            denoiser.unload_lora()  # type: ignore[operator]
        with torch.no_grad():
            for name, parameter in weights.items():
                parameter.copy_(original[name])
        for name, module in modules.items():
            nn.Module.to(module, before[name][0]).train(before[name][1])
        for parameter, flag in required.items():
            parameter.requires_grad_(flag)


def _lora(
    denoiser: nn.Module, part: str, settings: AdversarialSettings
) -> tuple[dict[str, nn.Parameter], Callable[[], dict[str, Tensor]]]:
    """An adapter of the given rank on attention and feed-forward layers, alpha = rank."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(settings.seed)
    config = LoraConfig(r=settings.lora_rank, lora_alpha=settings.lora_rank, target_modules=list(LORA_TARGETS))
    denoiser.add_adapter(config, adapter_name=ADAPTER)  # type: ignore[operator]
    weights = {name: value for name, value in denoiser.named_parameters() if value.requires_grad}

    def change() -> dict[str, Tensor]:
        state = get_peft_model_state_dict(denoiser, adapter_name=ADAPTER)
        return {f"{part}.{name}": value.detach().cpu().clone() for name, value in state.items()}

    return weights, change

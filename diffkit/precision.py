"""Whether a processor computes in bfloat16, or only imitates it: a convolution then takes some 80 times as long."""

from __future__ import annotations

import logging

import torch

log = logging.getLogger(__name__)


def cpu_has_bfloat16() -> bool:
    """Whether this machine's processor has instructions for bfloat16."""
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("bf16"))


def warn_of_slow_bfloat16(precision: str, device: torch.device) -> None:
    """Log a warning before training in mixed precision ``bf16`` on a processor that only imitates it."""
    if precision == "bf16" and device.type == "cpu" and not cpu_has_bfloat16():
        log.warning("This processor has no bfloat16 instructions, so training in bf16 is far slower; choose no.")

"""Load models without the libraries' progress bars and without log lines that need no action."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

__all__ = ["quietly", "silenced"]


def _is_news(record: logging.LogRecord) -> bool:
    """False for two warnings of diffusers: a tiny autoencoder as VAE, and a missing connection (an error follows)."""
    text = record.getMessage()
    return not ("Expected types for vae" in text and "AutoencoderTiny" in text) and "connect to the Hub" not in text


@contextmanager
def quietly() -> Iterator[None]:
    """Load without the libraries' progress bars and without warnings that need no action."""
    logger = logging.getLogger("diffusers.pipelines.pipeline_utils")
    bars = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    logger.addFilter(_is_news)
    for library in bars:
        library.disable_progress_bar()
    try:
        yield
    finally:
        logger.removeFilter(_is_news)
        for library in bars:
            library.enable_progress_bar()


@contextmanager
def silenced(*names: str) -> Iterator[None]:
    """Without any log line of these loggers, where an error of diffkit's own says what matters."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

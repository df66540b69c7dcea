"""Mitigation of memorization: the interface of a method, and the registry of methods.

A method takes a pipeline and suspects and gives a reversible :class:`diffkit.mitigation.Mitigation`; the pipeline
itself is not changed. Other packages add a :class:`Method` by the entry-point group ``diffkit.mitigations``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffkit.registry import Registry

if TYPE_CHECKING:
    from diffkit.mitigation import Mitigation

__all__ = ["Method", "methods"]


@dataclass(frozen=True)
class Method:
    """A mitigation method.

    Attributes:
        name: as registered.
        kind: the kind of mitigation it gives, see :mod:`diffkit.mitigation`.
        settings: a frozen dataclass of simple fields (int, float, bool, str, tuples of str, or None); each has a
            default, and it raises InputError for a value out of its range. The command line reads it.
        mitigate: (pipeline, suspects, open run, settings) -> mitigation. It writes journal lines into the run, such as
            one per suspect, reuses the lines already in it, and takes ``model`` and ``model_sha256`` from
            ``run.record["config"]``.
        needs_images: whether every suspect needs an image.
        shared: whether several processes of ``accelerate launch`` may run it together; then ``run`` is None on all
            but the first.
    """

    name: str
    kind: str
    settings: type[Any]
    mitigate: Callable[..., Mitigation]
    needs_images: bool = False
    shared: bool = False


methods: Registry[Method] = Registry(
    "mitigation method",
    "diffkit.mitigations",
    builtins={
        "nemo": "memorization.mitigation.nemo_method:METHOD",
        "wanda": "memorization.mitigation.wanda_method:METHOD",
        "prune": "memorization.mitigation.pruning.method:METHOD",
        "adversarial": "memorization.mitigation.adversarial.method:METHOD",
        "prompt-guard": "memorization.mitigation.prompt_guard:METHOD",
        "attention-guard": "memorization.mitigation.attention_guard:METHOD",
    },
)

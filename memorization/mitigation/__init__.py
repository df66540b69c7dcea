"""Take memories out of a model, or keep them from coming out: the methods' contract, and the registry of them.

A method takes a pipeline and suspects and gives a reversible :class:`diffkit.mitigation.Mitigation`; the pipeline
itself leaves as it came. Others join by the entry-point group ``diffkit.mitigations`` with a :class:`Method`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffkit.registry import Registry

if TYPE_CHECKING:
    from diffkit.mitigation import Mitigation

__all__ = ["Method", "methods"]


@dataclass(frozen=True)
class Method:
    """One way of mitigating.

    Attributes:
        name: as registered.
        kind: the kind of mitigation it gives, see :mod:`diffkit.mitigation`.
        settings: a frozen dataclass of simple fields (int, float, bool, str, tuples of str, or None); each has a
            default, and it raises InputError where a value cannot be meant. The command line reads it.
        mitigate: (pipeline, suspects, open run, settings) -> mitigation. It writes a journal line per suspect into the
            run, reuses those that are there, and takes ``model`` and ``model_sha256`` from ``run.record["config"]``.
        needs_images: whether a suspect without a reference image is of no use to it.
        shared: whether several processes of ``accelerate launch`` may run it together; then ``run`` is None on all
            but the first.
        lab: settings that have other defaults on the lab's models, as measured there.
    """

    name: str
    kind: str
    settings: type[Any]
    mitigate: Callable[..., Mitigation]
    needs_images: bool = False
    shared: bool = False
    lab: Mapping[str, Any] = field(default_factory=dict)


methods: Registry[Method] = Registry(
    "mitigation method",
    "diffkit.mitigations",
    builtins={
        "nemo": "memorization.mitigation.nemo_method:METHOD",
        "wanda": "memorization.mitigation.wanda_method:METHOD",
        "adversarial": "memorization.mitigation.adversarial.method:METHOD",
        "prompt-guard": "memorization.mitigation.prompt_guard:METHOD",
        "attention-guard": "memorization.mitigation.attention_guard:METHOD",
    },
)

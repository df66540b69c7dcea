"""How each kind of mitigation changes a pipeline's weights in place, and how it is undone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from diffkit.counting_copy import original_module
from diffkit.errors import InputError
from diffkit.mitigation.packed_mask import unpack_mask

if TYPE_CHECKING:
    from diffkit.families import Pipeline
    from diffkit.mitigation import Mitigation, Undo

__all__ = ["apply_delta", "apply_lora", "apply_mask", "find_module", "find_parameter", "require_plain"]

ADAPTER = "diffkit-mitigation"
#: Projections of an attention that ``fuse_qkv_projections`` copies into one.
FUSED = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")


def find_module(pipe: Pipeline, name: str) -> nn.Module:
    """The module of that dotted name, counted from the pipeline: ``unet.mid_block...``.

    Raises:
        InputError: the pipeline has none.
    """
    part, _, rest = name.partition(".")
    root = original_module(getattr(pipe, part, None))
    if isinstance(root, nn.Module):
        try:
            return root.get_submodule(rest)
        except AttributeError:
            pass
    raise InputError(f"The mitigation names {name!r}, which this {type(pipe).__name__} does not have.")


def find_parameter(pipe: Pipeline, name: str) -> nn.Parameter:
    """The parameter of that dotted name, counted from the pipeline: ``unet.conv_in.weight``.

    Raises:
        InputError: the pipeline has none, holds it elsewhere (offloaded layer by layer), or does not run it alone: it
            is fused with others, or has a LoRA adapter.
    """
    module, _, attribute = name.rpartition(".")
    if module:
        require_plain(pipe, [module])
    parameter = getattr(find_module(pipe, module), attribute, None) if module else None
    if not isinstance(parameter, nn.Parameter):
        raise InputError(f"The mitigation names {name!r}, which this {type(pipe).__name__} does not have.")
    if parameter.is_meta:
        raise InputError(f"{name!r} is offloaded; apply the mitigation before switching offloading on.")
    return parameter


def require_plain(pipe: Pipeline, modules: Iterable[str]) -> None:
    """Refuse modules, named from the pipeline, whose own weights are not what runs.

    Raises:
        InputError: their part of the pipeline has LoRA adapters, or an attention runs a fused copy of them.
    """
    names = list(modules)
    for part in dict.fromkeys(name.partition(".")[0] for name in names):
        if getattr(original_module(getattr(pipe, part, None)), "peft_config", None):
            raise InputError(
                f"The pipeline's {part} has LoRA adapters beside its weights; make them part of these first: "
                "pipe.fuse_lora(), then pipe.unload_lora_weights()."
            )
    fused = next((name for name in names if _is_fused(pipe, name)), None)
    if fused is not None:
        raise InputError(f"{fused!r} is fused with other projections; call pipe.unfuse_qkv_projections() first.")


def _is_fused(pipe: Pipeline, module: str) -> bool:
    """Whether a projection's attention runs the copy of it that ``fuse_qkv_projections`` has made."""
    parent, _, name = module.rpartition(".")
    if "." not in parent or name not in FUSED:
        return False
    attention = find_module(pipe, parent)
    # The mark of diffusers' older class stays when nothing is fused any more; there the processor tells.
    older = type(attention).__name__ == "Attention"
    fused = "Fused" in type(getattr(attention, "processor", None)).__name__ if older else True
    return fused and bool(getattr(attention, "fused_projections", False))


class _Off(NamedTuple):
    """What of a linear or convolutional layer is switched off: bool (out, in) weights, bool (out,) whole rows."""

    weights: Tensor
    rows: Tensor


def apply_mask(pipe: Pipeline, mitigation: Mitigation, only: str | None) -> Undo:
    """Switch off output rows (bias included) or single weights; the union of the chosen parts.

    Rows without an ordinary value become 0, which is what NeMo's hook gives.
    """
    off: dict[str, _Off] = {}
    ordinary: dict[str, Tensor] = {}
    for name, tensor in mitigation.tensors.items():
        suspect, _, rest = name.rpartition("/")
        module, _, what = rest.rpartition(".")
        if what in ("outputs", "inputs"):
            ordinary[rest] = tensor
        elif only is None or suspect in ("", only):
            _switch_off(off.setdefault(module, _nothing_off(pipe, module)), rest, what, tensor)
    changes: list[tuple[nn.Parameter, Tensor]] = []  # all are computed before any is made
    for module, chosen in off.items():
        changes += _masked(pipe, module, chosen, ordinary)
    if len({id(parameter) for parameter, _ in changes}) < len(changes):
        raise InputError("The mask switches off a to_out.0 and fills the to_v before it: use two masks, or fill=zero.")
    return _replace(pipe, off, changes)


def _nothing_off(pipe: Pipeline, module: str) -> _Off:
    weight = find_parameter(pipe, f"{module}.weight")
    return _Off(
        torch.zeros(len(weight), weight.numel() // len(weight), dtype=torch.bool), torch.zeros(len(weight)).bool()
    )


def _switch_off(off: _Off, name: str, what: str, tensor: Tensor) -> None:
    if what == "bits":
        off.weights.view(-1).logical_or_(unpack_mask(tensor, off.weights.numel()))
        return
    if what not in ("rows", "weights") or tensor.is_floating_point() or tensor.ndim != 1:
        raise InputError(f"The mask has an entry {name!r} that is neither a list of rows nor of weights, nor its bits.")
    target = off.rows if what == "rows" else off.weights.view(-1)
    chosen = tensor.long()
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(target):
        raise InputError(f"The mask's {name!r} goes beyond the model's {len(target)}; it was made for another model.")
    target[chosen] = True


def _masked(
    pipe: Pipeline, module: str, off: _Off, ordinary: Mapping[str, Tensor]
) -> list[tuple[nn.Parameter, Tensor]]:
    """The parameters that change, with their new values."""
    weight = find_parameter(pipe, f"{module}.weight")
    bias = getattr(find_module(pipe, module), "bias", None)
    flat = weight.detach().flatten(1).float().cpu()
    shift = torch.zeros(len(flat))
    if (inputs := ordinary.get(f"{module}.inputs")) is not None:
        shift += (flat * off.weights) @ _fitting(inputs, flat.shape[1], module)
    new_bias = (bias.detach().float().cpu() if bias is not None else 0) + shift
    new_bias[off.rows] = 0
    outputs = ordinary.get(f"{module}.outputs")
    if outputs is not None:
        # What stands behind the attention is added to, so a row that another mask switched off has its value there.
        rows = off.rows if bias is not None else off.rows & flat.any(1)
        new_bias[rows] = _fitting(outputs, len(flat), module)[rows]
    flat = flat.masked_fill(off.weights | off.rows[:, None], 0).reshape(weight.shape)
    changes = [(weight, flat)]
    if bias is not None:
        return [*changes, (bias, new_bias)]
    if not new_bias.any():
        return changes
    return [*changes, _behind_attention(pipe, module, new_bias)]


def _fitting(values: Tensor, n: int, module: str) -> Tensor:
    if values.shape != (n,):
        raise InputError(
            f"The mask's values for {module!r} are {tuple(values.shape)}, expected ({n},): another model's."
        )
    return values.float()


def _behind_attention(pipe: Pipeline, module: str, constant: Tensor) -> tuple[nn.Parameter, Tensor]:
    """The bias behind an attention without a bias of its own values, raised by what ``constant`` values give there."""
    if not module.endswith(".to_v"):
        raise InputError(f"{module!r} has no bias that could hold an ordinary value; make the mask with fill=zero.")
    output = module.removesuffix("to_v") + "to_out.0"
    weight, bias = find_parameter(pipe, f"{output}.weight"), find_parameter(pipe, f"{output}.bias")
    return bias, bias.detach().float().cpu() + weight.detach().float().cpu() @ constant


def _replace(pipe: Pipeline, modules: Iterable[str], changes: Sequence[tuple[nn.Parameter, Tensor]]) -> Undo:
    """Give parameters new values; returns a function that restores the old ones, bit for bit.

    It raises InputError, and restores nothing, while the modules have a LoRA or are fused.
    """
    names = list(modules)
    originals = [(parameter, parameter.detach().to("cpu", copy=True)) for parameter, _ in changes]

    def put(values: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
        with torch.no_grad():
            for parameter, value in values:
                parameter.copy_(value)

    def undo() -> None:
        require_plain(pipe, names)
        put(originals)

    put(changes)
    return undo


def apply_delta(pipe: Pipeline, mitigation: Mitigation, only: str | None) -> Undo:
    """Add the stored differences to the parameters; undoing it restores the saved originals, bit for bit."""
    pairs = [(find_parameter(pipe, name), tensor) for name, tensor in mitigation.tensors.items()]
    for (parameter, tensor), name in zip(pairs, mitigation.tensors, strict=True):
        if parameter.shape != tensor.shape:
            raise InputError(
                f"The mitigation's {name!r} has shape {tuple(tensor.shape)}, the model's {tuple(parameter.shape)}; "
                "it was made for another model."
            )
    modules = [name.rpartition(".")[0] for name in mitigation.tensors]
    return _replace(
        pipe, modules, [(parameter, parameter.detach() + tensor.to(parameter)) for parameter, tensor in pairs]
    )


def apply_lora(pipe: Pipeline, mitigation: Mitigation, only: str | None) -> Undo:
    """Load the adapter beside the weights, by the pipeline's own ``load_lora_weights``."""
    if not hasattr(pipe, "load_lora_weights"):
        raise InputError(f"{type(pipe).__name__} takes no LoRA adapters; use the mitigation as a full pipeline folder.")
    require_plain(pipe, [name for name, part in pipe.components.items() if isinstance(part, nn.Module)])
    try:
        pipe.load_lora_weights(dict(mitigation.tensors), adapter_name=ADAPTER)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"The mitigation's adapter does not fit this model: {reason}") from error

    def undo() -> None:
        pipe.delete_adapters(ADAPTER)

    return undo

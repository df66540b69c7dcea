"""The class of a search pipeline: stock class and mixin in one, named, called and pickled as the stock class."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

from diffkit.errors import InputError
from diffkit.loading import first_line

__all__ = ["PickledPart", "call_default", "call_keywords", "made_again", "search_class", "stock_ancestor"]

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@functools.cache
def search_class(mixin: Any, stock: Any) -> Any:
    """The class that is both: ``mixin`` first, whose call searches, then the stock pipeline's class.

    It bears the stock class's name, by which diffusers' ``AutoPipeline`` and saved folders know a pipeline.
    """
    if issubclass(stock, mixin):
        return stock
    members = {
        "__module__": mixin.__module__,
        "__qualname__": f"TTSnap{stock.__name__}",
        "__doc__": mixin.__doc__,
        "__call__": _as_stock(mixin.__call__, stock),
        "_made_of": (mixin, stock),
    }
    return type(stock.__name__, (mixin, stock), members)


def stock_ancestor(pipeline: Any, mixin: Any) -> Any:
    """The first ancestor of a search pipeline's class that is a pipeline and none of the mixin's."""
    from diffusers import DiffusionPipeline

    return next(
        base for base in pipeline.__mro__ if issubclass(base, DiffusionPipeline) and not issubclass(base, mixin)
    )


@functools.cache
def call_keywords(stock: Any) -> Mapping[str, inspect.Parameter]:
    """The keyword arguments of a pipeline class's call, and of those that it hands further ones on to.

    Example:
        >>> from diffusers import StableDiffusionPipeline
        >>> class Scaled(StableDiffusionPipeline):
        ...     def __call__(self, prompt=None, extra_scale=1.0, **more):
        ...         return super().__call__(prompt, **more)
        >>> list(call_keywords(Scaled))[:3], call_keywords(Scaled)["guidance_scale"].default
        (['prompt', 'extra_scale', 'height'], 7.5)
    """
    keywords: dict[str, inspect.Parameter] = {}
    for ancestor in stock.__mro__:
        if "__call__" not in vars(ancestor):
            continue
        parameters = inspect.signature(vars(ancestor)["__call__"]).parameters
        named = {name: each for name, each in parameters.items() if name != "self" and each.kind in _NAMED}
        keywords = {**keywords, **{name: each for name, each in named.items() if name not in keywords}}
        if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
            break
    return keywords


def call_default(stock: Any, keyword: str) -> Any:
    """The default of a keyword argument of a pipeline class's call; None where there is no such keyword."""
    parameter = call_keywords(stock).get(keyword)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def _as_stock(search: Callable[..., Any], stock: Any) -> Callable[..., Any]:
    """A search's call with the stock call's signature and places, and the search's own keywords after them."""
    theirs, ours = call_keywords(stock), inspect.signature(search).parameters
    places = list(theirs)

    @functools.wraps(search)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) > len(places):
            raise InputError(f"{stock.__name__} takes at most {len(places)} positional arguments, got {len(args)}.")
        placed = dict(zip(places, args, strict=False))
        if doubled := [name for name in placed if name in kwargs]:
            raise InputError(f"{doubled[0]} is given twice, by its position and by its name.")
        return search(self, **placed, **kwargs)

    own = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, each in ours.items()
        if name not in theirs and name != "self" and each.kind in _NAMED
    ]
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ordered = sorted([*theirs.values(), *own], key=lambda each: each.kind)
    __call__.__signature__ = inspect.Signature([first, *ordered])  # type: ignore[attr-defined]
    return __call__


def made_again(kind: Any, made_of: tuple[Any, Any] | None) -> Any:
    """An empty pipeline of a class, or of the class made of a mixin and a stock class, for pickle to fill."""
    target = kind if made_of is None else search_class(*made_of)
    return target.__new__(target)


class PickledPart:
    """A part of a pipeline that is left out of a pickle where it cannot be pickled; ``why`` says so afterwards."""

    def __init__(self, part: Any, why: str | None = None) -> None:
        self.part, self.why = part, why

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """The part, or why it is left out."""
        try:
            pickle.Pickler(io.BytesIO(), protocol).dump(self.part)
        except (
            pickle.PicklingError,
            AttributeError,
            TypeError,
            ValueError,
            RuntimeError,
            NotImplementedError,
        ) as error:
            return PickledPart, (None, first_line(error))
        return PickledPart, (self.part, self.why)

    def __deepcopy__(self, memo: dict[int, Any]) -> PickledPart:
        """With a deep copy of the part, which need not be fit for pickle."""
        return PickledPart(copy.deepcopy(self.part, memo), self.why)

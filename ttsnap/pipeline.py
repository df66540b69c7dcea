"""TTSnapPipeline: a text-to-image pipeline that tries many seeds and prunes the weak ones in mid-denoising.

TTSnap (arXiv 2511.22242): N seeds are denoised together; after some steps the estimate x0 of each is decoded and
scored, and only the best go on. Here on the unmodified stock pipeline, with exact cost and reproducible seeds: the
winner's image is the one that the stock pipeline makes from its seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import torch
from diffusers import DiffusionPipeline

from diffkit.copy_guard import CopyGuard, CopyGuardLike, load_copy_guard
from diffkit.errors import InputError
from diffkit.families import Autoencoder, Pipeline, any_family_of
from diffkit.image_filters import unfiltered
from diffkit.loading import LOADING_ERRORS, first_line, load_pipeline, model_class, quietly, resolve_model
from diffkit.micro_batch import is_out_of_memory
from diffkit.model_folder import ModelFolder
from diffkit.prepared_again import pictures_encoded_once
from diffkit.rewards import load_reward
from diffkit.rewards.base import Reward, RewardLike
from diffkit.scheduler_window import exclusive
from ttsnap.schedules.index_book import IndexBook
from ttsnap.schedules.load import load_schedule
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.config import SearchConfig
from ttsnap.search.held_out import load_held_out
from ttsnap.search.noise import Noise
from ttsnap.search.output import TTSnapPipelineOutput, pipeline_output
from ttsnap.search.pictures import take_pictures
from ttsnap.search.pipeline_class import (
    PickledPart,
    call_default,
    call_keywords,
    made_again,
    search_class,
    stock_ancestor,
)
from ttsnap.search.pipeline_kwargs import check_sides, rounded_sides, sort_keywords
from ttsnap.search.preview_decoder import load_preview_vae
from ttsnap.search.prices import Trials
from ttsnap.search.prompts import check_words, read_prompts, take_embeds
from ttsnap.search.registry import INDEX_SEARCHES, load_search
from ttsnap.search.request import Request, SearchResult
from ttsnap.search.session import StageTrace
from ttsnap.search.stock_tuple import StockTuple
from ttsnap.search.strategies.base import Strategy
from ttsnap.search.videos import check_parts, fitting_reward, videos_asked

__all__ = ["TTSnapPipeline", "TTSnapPipelineOutput"]

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as _Stock
else:
    _Stock = object  # the stock class of the family comes in by `search_class`

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


#: Attributes of a pipeline that one with replaced components keeps.
_CARRIED = ("_progress_bar_config", "_all_hooks", "_offload_device", "_offload_gpu_id", "_loading_options")


class TTSnapPipeline(_Stock):  # type: ignore[misc]
    """A stock text-to-image pipeline with seed search, of any family in :data:`diffkit.families.FAMILIES`.

    :meth:`from_pretrained` and :meth:`from_pipe` return an object that is both a ``TTSnapPipeline`` and of the stock
    class: a ``FluxPipeline`` of FLUX.1, and so on. LoRA, offload and saving are the stock pipeline's own.

    Example:
        >>> pipe = TTSnapPipeline.from_pretrained("lab", reward="lab")
        >>> out = pipe("a red circle left of a blue square on gray", num_candidates=8, schedule="2:0.5",
        ...            num_inference_steps=8, guidance_scale=3.0, seed=7)
        >>> out.images[0].size, len(out.seeds), out.ledger.calls
        ((64, 64), 1, 44)
    """

    reward: Reward | None = None
    preview_vae: Autoencoder | None = None
    schedule: PruningSchedule | None = None
    copy_guard: CopyGuard | None = None
    _trials: Trials | None = None
    _no_reward: str | None = None
    _searches: int = 0

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """An object of a stock class too.

        Raises:
            InputError: of this class alone, which does not say which stock class is meant.
        """
        if not issubclass(cls, DiffusionPipeline):
            raise InputError(
                f"A {cls.__name__} is made of a stock pipeline: {cls.__name__}.from_pipe(StableDiffusionPipeline("
                f"**components), reward=...), or the class of its family; or {cls.__name__}.from_pretrained(...)."
            )
        return cast("Self", super().__new__(cls))

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        reward: RewardLike | None = None,
        schedule: PruningSchedule | str | Path | None = None,
        preview_vae: Autoencoder | str | Path | None = None,
        copy_guard: CopyGuardLike | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load ``lab``, ``gallery`` or another shipped model, a folder or a hub id; ``kwargs`` go to diffusers.

        Args:
            reward: what to choose by.
            schedule: for calls that give none: ``lab``, ``"2:0.4,6:0.4"`` or the path of a JSON file.
            preview_vae: decodes estimates in mid-denoising instead of the VAE: an ``AutoencoderTiny``, its folder or
                its hub id. Finished images are always decoded by the VAE.
            copy_guard: pictures that no winner may copy; see :meth:`__call__`.

        Raises:
            InputError: there is no such model, reward or decoder, or the model is of no known family.
        """
        scorer = None if reward is None else load_reward(reward)
        pruning = None if schedule is None else load_schedule(schedule)
        source = resolve_model(model)
        if "dtype" not in kwargs and "torch_dtype" not in kwargs:
            kwargs["dtype"] = torch.float32  # else a half-precision encoder stays beside a float32 denoiser
        stock = model_class(source, kwargs)
        if isinstance(source, Path):
            kwargs["variant"] = ModelFolder(source).check(kwargs.get("variant"), given=kwargs, adapters=True)
        try:
            with quietly():
                loaded: Any = stock.from_pretrained(str(source), **kwargs)
        except LOADING_ERRORS as error:
            if is_out_of_memory(error):
                raise
            raise InputError(f"Could not load the model {str(model)!r}: {first_line(error)}") from error
        if isinstance(source, Path):
            ModelFolder(source).check_filled(loaded, kwargs["variant"], given=kwargs)
        pipe = cls._of(loaded)
        pipe.reward, pipe.schedule = scorer, pruning
        pipe.preview_vae = None if preview_vae is None else load_preview_vae(preview_vae, pipe)
        pipe.copy_guard = None if copy_guard is None else load_copy_guard(copy_guard, pipe)
        return pipe

    @classmethod
    def from_single_file(
        cls,
        path: str | Path,
        *,
        config: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        reward: RewardLike | None = None,
        schedule: PruningSchedule | str | Path | None = None,
        preview_vae: Autoencoder | str | Path | None = None,
        copy_guard: CopyGuardLike | None = None,
        **components: Any,
    ) -> Self:
        """Load a checkpoint in one ``.safetensors`` file, such as the model sites share.

        Args:
            config: a folder or hub id with the settings and tokenizers of its family; by default the hub id that
                diffusers knows for it.
            reward, schedule, preview_vae, copy_guard: as in :meth:`from_pretrained`.
            components: to replace, as in diffusers.

        Raises:
            InputError: no such file, another format, or a model of no known family.
        """
        precision = str(dtype).removeprefix("torch.")
        stock = load_pipeline(path, dtype=precision, device="cpu", config=config)
        return cls.from_pipe(
            stock, reward=reward, schedule=schedule, preview_vae=preview_vae, copy_guard=copy_guard, **components
        )

    @classmethod
    def from_pipe(
        cls,
        pipeline: Pipeline,
        *,
        reward: RewardLike | None = None,
        schedule: PruningSchedule | str | Path | None = None,
        preview_vae: Autoencoder | str | Path | None = None,
        copy_guard: CopyGuardLike | None = None,
        **kwargs: Any,
    ) -> Self:
        """The same modules under this class: shared, in their own precision, nothing is cast or copied.

        Args:
            kwargs: components to replace, as in diffusers; ``dtype`` casts if you ask for it.

        Raises:
            InputError: no such decoder, or the pipeline is of no known family or has odd components.
        """
        if issubclass(cls, DiffusionPipeline) and not isinstance(pipeline, stock_ancestor(cls, TTSnapPipeline)):
            pipeline = stock_ancestor(cls, TTSnapPipeline).from_pipe(pipeline, dtype=pipeline.dtype)
        scorer = getattr(pipeline, "reward", None) if reward is None else load_reward(reward)
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        pipe = cls._of(pipeline, **kwargs)
        pipe.reward = scorer
        pipe.schedule = getattr(pipeline, "schedule", None) if schedule is None else load_schedule(schedule)
        preview = getattr(pipeline, "preview_vae", None) if preview_vae is None else preview_vae
        pipe.preview_vae = None if preview is None else load_preview_vae(preview, pipe)
        guard = getattr(pipeline, "copy_guard", None) if copy_guard is None else copy_guard
        pipe.copy_guard = None if guard is None else load_copy_guard(guard, pipe)
        return pipe if dtype is None else pipe.to(dtype=dtype)

    @classmethod
    def _of(cls, pipeline: Pipeline, **components: Any) -> Self:
        """A pipeline that shares everything with ``pipeline`` but its class and the replaced components.

        Raises:
            InputError: see :meth:`from_pipe`.
        """
        any_family_of(pipeline)
        target = search_class(cast("Any", cls), cast("Any", type(pipeline)))
        expected, optional = target._get_signature_keys(target)
        given = {name: components.pop(name) for name in optional if name in components}
        parts = {**pipeline.components, **components}
        if odd := set(parts) ^ set(expected):
            raise InputError(
                f"{type(pipeline).__name__} cannot become a {cls.__name__}: they differ in {', '.join(sorted(odd))}; "
                f"use a text-to-image pipeline of a known family."
            )
        if components or given:
            settings = {name: pipeline.config[name] for name in optional if name in pipeline.config}
            pipe = target(**parts, **(settings | given))
            for name in _CARRIED:
                if name in vars(pipeline):
                    setattr(pipe, name, getattr(pipeline, name))
        else:
            pipe = target.__new__(target)
            vars(pipe).update(vars(pipeline))
            vars(pipe).pop("_searches", None)  # those of the other one
        pipe._trials = Trials()
        return cast("Self", pipe)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write a stock folder, which diffusers loads without this package; the reward is not part of it."""
        stock = self._stock_class
        own: Any = stock.__new__(stock)
        vars(own).update(vars(self))
        own.save_pretrained(save_directory, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """As the stock pipeline pickles: its parts and its class's name. The reward too, where it can be pickled."""
        made_of = vars(type(self)).get("_made_of")
        parts = {**vars(self), "reward": PickledPart(self.reward), "_trials": Trials(), "_searches": 0}
        return made_again, (type(self) if made_of is None else None, made_of), parts

    def __setstate__(self, parts: dict[str, Any]) -> None:
        """Fill an empty pipeline with what :meth:`__reduce_ex__` has written."""
        kept = parts["reward"]
        self.__dict__.update({**parts, "reward": kept.part, "_no_reward": kept.why})

    def __repr__(self) -> str:
        """As the stock pipeline's, with the name of this class before it."""
        return f"TTSnapPipeline of {super().__repr__()}"

    @property
    def _stock_class(self) -> Any:
        """The stock class, or a class derived from it, that this pipeline would be of without the search."""
        return stock_ancestor(type(self), TTSnapPipeline)

    @property
    def _interrupt(self) -> bool:
        """diffusers' switch to stop. Every part of a search is a stock call, which begins with False; here a stop holds
        until the search has ended."""
        return bool(vars(self).get("_interrupt", False))

    @_interrupt.setter
    def _interrupt(self, stop: bool) -> None:
        if stop or not self._searches:
            self.__dict__["_interrupt"] = bool(stop)

    @contextmanager
    def _searching(self) -> Iterator[None]:
        """The pipeline for this search alone, which nobody has stopped yet."""
        with exclusive(self), pictures_encoded_once(self):
            if not self._searches:
                self._interrupt = False
            self.__dict__["_searches"] = self._searches + 1
            try:
                yield
            finally:
                self.__dict__["_searches"] = self._searches - 1

    @property
    def _stock_call(self) -> Callable[..., Any]:
        """The stock pipeline's own call, on this pipeline."""
        call: Callable[..., Any] = super().__call__
        return call

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        diversity: float = 0.0,
        eta: float = 0.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        first_prompt: int = 0,
        num_candidates: int | None = None,
        schedule: PruningSchedule | str | Path | None = None,
        budget: str | None = None,
        reward: RewardLike | None = None,
        held_out_rewards: RewardLike | Sequence[RewardLike] | None = None,
        reward_prompts: str | Sequence[str] | None = None,
        copy_guard: CopyGuardLike | None = None,
        preview_vae: Autoencoder | str | Path | None = None,
        search: str | Strategy | None = None,
        index: IndexBook | str | Path | None = None,
        micro_batch: int | Literal["auto"] | None = None,
        previews: bool = False,
        callback_on_look: Callable[[Any, StageTrace], bool | None] | None = None,
        share: bool = False,
        output_type: str | None = None,
        return_dict: bool = True,
        **keywords: object,
    ) -> TTSnapPipelineOutput | StockTuple:
        """Search the best images of each prompt.

        Positional arguments stand in the order of the family's stock pipeline.

        Args:
            num_inference_steps, guidance_scale, height, width: as in the stock pipeline, with its own defaults.
            num_images_per_prompt: how many winners.
            diversity: of several winners, in [0, 1]: how much it counts that they differ; 0 takes the best by reward.
                See :mod:`ttsnap.search.diversity`.
            generator: one, or a list with one for each prompt, which draw their candidates' seeds; with one candidate
                they make the noise themselves, so that the image is the stock pipeline's, and they are as advanced
                afterwards. Or a list with one for each candidate, prompt by prompt, which are not advanced.
            seed: the run's seed; candidate i of prompt p takes ``diffkit.seeds.candidate_seed(seed, p, i)``.
            seeds: the candidates' own seeds, the same for every prompt; a list, or an array of integers.
            first_prompt: p of the first prompt, when a long list is searched in several calls with one ``seed``.
            num_candidates: how many seeds to try for each prompt, 16 by default.
            schedule: when to look and what share to keep, e.g. ``"2:0.4,6:0.4,11:0.5"``, or the path of a JSON file;
                None is the pipeline's own, or best-of-N where it has none; ``""`` is best-of-N always. ``"1:0.06+3"``
                looks 3 calls ahead: the plain reward scores the images that they lead to.
            budget: instead of ``num_candidates``: what each prompt may cost, ``"16x"`` (as much as best-of-16),
                ``"3.2TFLOP"`` or ``"40s"``.
            reward: another reward for this call.
            held_out_rewards: one or several that score the winners and are never used to select: where the reward
                rises and these do not, the search has exploited the reward.
            reward_prompts: what rewards read instead of the prompt, one text or one for each prompt. Needed beside
                ``prompt_embeds`` by rewards that read words; without it a function is given empty texts.
            copy_guard: a folder of pictures that no winner may copy, ``"forbidden"``, with options behind it,
                ``"forbidden:detector=sscd:threshold=0.7"``, or what :func:`diffkit.copy_guard.load_copy_guard` has
                loaded once for many calls; None is the pipeline's own. Candidates that are like one of the pictures
                are dropped at every look, finished ones too; a prompt of which nothing is left is a ScoringError.
            preview_vae: another decoder of estimates for this call.
            search: another strategy than pruning by the schedule, by its name in ``ttsnap.search.registry.SEARCHES``:
                ``lookahead``, ``adaptive``, ``halving``, ``zero-order``, ``fk`` and so on; it needs a ``budget`` in
                ``x`` or FLOP. In ``adaptive`` the prompts of this call share what they may cost together.
            index: the fitted index rule that ``adaptive`` follows: ``lab``, ``lab-trio`` or the file that ``diffkit
                ttsnap fit --rule index`` wrote.
            micro_batch: how many candidates run at once; 1 is the strict mode, in which winners are bit-equal to the
                stock pipeline's images; ``auto`` begins with many and halves them when memory runs out.
            share: the processes of a launch search together: all call alike and get the same result, each denoises its
                part of the candidates, dealt anew after every cut.
            previews: keep the decoded estimates of every look in the trace.
            callback_on_look: called after each look at a prompt's candidates, the last one too, with this pipeline and
                the look: its step, the candidates' scores, who goes on, and pictures where ``previews`` are asked for.
                False stops the search, as ``pipe._interrupt = True`` does; see ``interrupted`` of the output.
            output_type: ``pil``, ``np``, ``pt`` or ``latent``; by default as in the stock pipeline.
            return_dict: False gives the family's own tuple: ``(images, nsfw_content_detected)`` where its pipeline can
                have a safety checker, else ``(images,)``. The whole output is the tuple's attribute ``search``.
            keywords: further keyword arguments of the family's own call: ``prompt_2``, ``true_cfg_scale``,
                ``clip_skip``, ``cross_attention_kwargs`` and so on; None is the stock pipeline's default. Instead of
                a prompt, ``prompt_embeds`` and what the family takes beside it, one row for each prompt.
                ``callback_on_step_end`` is called as in diffusers where one candidate of each prompt runs without a
                look (``num_candidates=1, schedule=""``), and refused in a search.

        Raises:
            InputError: bad input, before anything is computed.
            ScoringError: too few candidates could be scored, or the copy guard left too few.
        """
        family = any_family_of(self)
        num_images_per_prompt = videos_asked(keywords, num_images_per_prompt)
        embeds = take_embeds(family, keywords)
        stock = self._stock_class
        extra, encoding = sort_keywords(family, keywords, call_keywords(stock))
        prompts = read_prompts(family, prompt, negative_prompt, embeds, encoding, reward_prompts)
        check_sides(family, height, width)
        height, width = rounded_sides(self, height, width)
        pictures = take_pictures(self, family, extra, len(prompts.texts), (height, width))
        extra, (height, width) = {**extra, **pictures.shared}, pictures.size
        steps = call_default(stock, "num_inference_steps") if num_inference_steps is None else num_inference_steps
        if index is not None and not (isinstance(search, str) and search in INDEX_SEARCHES):
            raise InputError(f"index is for the searches {', '.join(INDEX_SEARCHES.names())}; name one with search.")
        pruning = load_schedule(self.schedule if schedule is None else schedule)
        preview = self.preview_vae if preview_vae is None else preview_vae
        guard = self.copy_guard if copy_guard is None else copy_guard
        check_parts(family, preview_vae=preview, copy_guard=guard)
        config = SearchConfig(
            num_inference_steps=steps,
            guidance_scale=call_default(stock, "guidance_scale") if guidance_scale is None else guidance_scale,
            schedule=pruning,
            num_candidates=num_candidates,
            budget=budget,
            winners=num_images_per_prompt,
            height=height,
            width=width,
            eta=eta,
            micro_batch=micro_batch,
            previews=previews,
            preview_vae=None if preview is None else load_preview_vae(preview, self),
            copy_guard=None if guard is None else load_copy_guard(guard, self),
            diversity=diversity,
            share=share,
            on_look=callback_on_look,
            extra=extra,
            encoding=encoding,
        )
        scorer = fitting_reward(self._scorer(reward), family)
        held_out = [fitting_reward(each, family) for each in load_held_out(held_out_rewards, scorer)]
        check_words([scorer, *held_out], embeds, reward_prompts)
        request = Request(
            prompts.texts,
            scorer,
            Noise(generator, seed, seeds, first_prompt),
            config,
            negative_prompt,
            None if search is None else load_search(search, pruning if pruning.steps else None, index=index),
            held_out,
            embeds,
            prompts.words,
            pictures.own,
        )
        output_type = output_type or call_default(stock, "output_type") or "pil"
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"Unknown output_type {output_type!r}; use one of {', '.join(OUTPUT_TYPES)}.")
        with exclusive(self), unfiltered(self) if output_type == "latent" else nullcontext():  # latents are not checked
            result = self.carry_out(request)
        output = pipeline_output(self, result, output_type, config)
        if return_dict:
            return output
        checked = "safety_checker" in self.components
        return StockTuple((output.images, output.nsfw_content_detected) if checked else (output.images,), output)

    def prepare(self, request: Request) -> None:
        """Check a search and count its prices, so that :meth:`carry_out` need not; nothing is denoised.

        Raises:
            InputError: bad input, a strategy that cannot work here, or a budget that pays for nothing.
        """
        with exclusive(self):
            request.prepare(self, self._stock_call, self._trials)

    @torch.no_grad()
    def carry_out(self, request: Request) -> SearchResult:
        """Carry out a request, such as one that :meth:`prepare` has checked.

        Raises:
            InputError: bad input, before anything is denoised.
            ScoringError: too few candidates could be scored.
        """
        with self._searching():
            result = request.carry_out(self, self._stock_call, self._trials)
            self.maybe_free_model_hooks()
        return result

    def _scorer(self, reward: RewardLike | None) -> Reward:
        if reward is not None:
            return load_reward(reward)
        if self.reward is None:
            left_out = f" (the one it had could not be pickled: {self._no_reward})" if self._no_reward else ""
            raise InputError(f"There is no reward to choose by{left_out}; give reward=, for example reward='lab'.")
        return load_reward(self.reward)

"""What a call is prompted with: texts, or what the caller has encoded, and the words that rewards judge by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from diffkit.errors import InputError
from diffkit.families import Family, stock_class
from diffkit.families.base import keywords_of
from diffkit.given_embeds import GivenEmbeds, embeds_keywords, given_count, has_embeds
from diffkit.rewards.base import Reward

__all__ = ["Prompts", "check_words", "read_prompts", "take_embeds"]


class Prompts(NamedTuple):
    """Texts of the prompts, empty where they are encoded already, and the words that rewards read, one each."""

    texts: list[str]
    words: list[str]


def take_embeds(family: Family, keywords: dict[str, object]) -> GivenEmbeds:
    """Take what is encoded already out of the keywords of a call; what is None counts as not given."""
    names = embeds_keywords(family) & set(keywords)
    given = {name: keywords.pop(name) for name in sorted(names)}
    return {name: value for name, value in given.items() if value is not None}


def read_prompts(
    family: Family,
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    embeds: GivenEmbeds,
    encoding: Mapping[str, object],
    reward_prompts: str | Sequence[str] | None,
) -> Prompts:
    """The prompts of a call.

    Args:
        embeds: as :func:`take_embeds` returns it.
        encoding: keywords that shape the encoding, with the texts for further encoders.
        reward_prompts: what rewards read, one for all or one for each prompt; the prompts themselves when None.

    Raises:
        InputError: neither text nor embeddings, both, different numbers of them, or a negative prompt where the
            family takes none.
    """
    if negative_prompt is not None and "negative_prompt" not in keywords_of(stock_class(family)):
        raise InputError(f"{family.pipeline} takes no negative_prompt; leave it out.")
    texts = {name: value for name, value in encoding.items() if "prompt_" in name}
    texts |= {"prompt": prompt, "negative_prompt": negative_prompt}
    for prefix in ("", "negative_"):
        doubled = [name for name, value in texts.items() if value is not None and name.startswith(prefix + "prompt")]
        if has_embeds(embeds, prefix) and doubled:
            words = "; the words that the reward reads are reward_prompts=" if not prefix else ""
            raise InputError(f"Give {doubled[0]} or {prefix}prompt_embeds, not both{words}.")
    if has_embeds(embeds):
        listed = [""] * given_count(family, embeds)
    elif prompt is None:
        raise InputError(f"Give a prompt, or what is encoded already: {', '.join(filter(None, family.encoded))}.")
    else:
        listed = [prompt] if isinstance(prompt, str) else list(prompt)
    if reward_prompts is None:
        return Prompts(listed, listed)
    words_ = [reward_prompts] * len(listed) if isinstance(reward_prompts, str) else list(reward_prompts)
    if len(words_) != len(listed) or any(not isinstance(word, str) for word in words_):
        raise InputError(f"reward_prompts must be a text, or one for each of {len(listed)} prompts; got {len(words_)}.")
    return Prompts(listed, words_)


def check_words(rewards: Sequence[Reward], embeds: GivenEmbeds, reward_prompts: object) -> None:
    """Refuse rewards that read the prompt where only its encoding is given.

    A function or a reward of one's own that does not say ``reads_prompts`` is given empty texts.

    Raises:
        InputError: a reward reads prompts.
    """
    reading = [reward.name for reward in rewards if getattr(reward, "reads_prompts", False)]
    if reading and reward_prompts is None and has_embeds(embeds):
        raise InputError(
            f"The reward {reading[0]!r} reads the prompt, and prompt_embeds are no words; give the words as "
            f"reward_prompts=, one text or one for each prompt."
        )

"""A sentence of held-out text: at each of its tokens, what was known before a code was read, from what, and what codes add.

With m the mean of all kept rows, and known(v) and known(v', v) what a dictionary's expectation says of a token v alone and behind v',

    token   1 - |x - known(v)|^2 / |x - m|^2
    before  what |x - known(v', v)|^2 is smaller, over |x - m|^2
    codes   what |x - x_hat|^2 is smaller still, over |x - m|^2.

A dictionary without an expectation of tokens knows m, and codes say the rest. Shares of single tokens may lie below 0: a token can be a bad
guide.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from temporallens.activations.context import UNKNOWN, Context, context_of
from temporallens.activations.loader import with_targets
from temporallens.activations.writer import Rows
from temporallens.dictionaries.base import Dictionary
from temporallens.evaluation.features import words_of
from temporallens.evaluation.heldout import HeldOut, without_codes

TOKENS = 18
"""Of a passage: what a picture has room for."""
FIRST = 8
"""The index from which a passage may begin: the first tokens of a row differ from all later ones."""
STRONGEST = 3
"""Features that are named at each token."""
ENDS = (".", "!", "?")


class Passage(NamedTuple):
    """`T` tokens in a row."""

    document: int
    indices: list[int]  # [T] in the sequence
    words: list[str]  # [T]
    token: list[float] | None  # [T] None where the dictionary knows nothing of tokens beforehand
    before: list[float] | None  # [T]
    codes: list[float]  # [T]
    fired: list[int]  # [T] codes in use
    features: list[list[int]]  # [T] those that fire most strongly


@torch.inference_mode()
def passage_of(dictionary: Dictionary, seen: HeldOut) -> Passage | None:
    """The first sentence of held-out text that is long enough, for every dictionary the same one; None where no words are known."""
    found = _first(seen)
    if found is None:
        return None
    rows, wanted, words, chosen = found
    context, x = context_of(rows), wanted.float()
    whole = (x - seen.variation.moments.pooled_mean()).square().sum(1)
    seen_as = dictionary.reconstructed(rows.x.float(), rows.position.long(), context)
    share = 1 - (x - seen_as.x).square().sum(1) / whole
    token = before = None
    told: Float[Tensor, " N"] = torch.zeros_like(share)
    if dictionary.expectation is not None:
        alone = Context(context.token, torch.full_like(context.token, UNKNOWN), context.before, context.usable)
        by_token, told = (1 - (x - without_codes(dictionary, rows, known)).square().sum(1) / whole for known in (alone, context))
        token, before = (part[chosen].tolist() for part in (by_token, told - by_token))
    codes = seen_as.codes[chosen]
    strongest = codes.topk(min(STRONGEST, codes.shape[1]), dim=1)
    return Passage(
        document=int(rows.document[chosen[0]]),
        indices=rows.index[chosen].tolist(),
        words=words,
        token=token,
        before=before,
        codes=(share - told)[chosen].tolist(),
        fired=(codes > 0).sum(1).tolist(),
        features=[own[fires].tolist() for own, fires in zip(strongest.indices, strongest.values > 0, strict=True)],
    )


def _first(seen: HeldOut) -> tuple[Rows, Float[Tensor, "N D"], list[str], Int[Tensor, " T"]] | None:
    """A sequence with what is to be given back of it, and which rows of it are the passage, with their words."""
    fallback = None
    for entry in seen.entries:
        rows, wanted = next(with_targets(seen.store, np.array([entry])))
        words = words_of(seen.store, set(rows.token.tolist()))
        if not words:
            return None
        for first in starts(rows, [words.get(token, "") for token in rows.token.tolist()]):
            chosen = torch.arange(first, first + TOKENS)
            found = rows, wanted, [words[token] for token in rows.token[chosen].tolist()], chosen
            if first > FIRST:
                return found
            fallback = fallback or found  # a text without sentences has its first tokens
    return fallback


def starts(rows: Rows, words: list[str]) -> list[int]:
    """Rows at which a passage could begin: after the end of a sentence, or else the first allowed one, all its tokens being kept."""
    usable: Bool[np.ndarray, " N"] = (rows.excluded == 0).numpy()
    after = [place for place in range(FIRST + 1, len(words)) if words[place - 1].strip().endswith(ENDS)]
    return [place for place in (*after, FIRST) if place + TOKENS <= len(words) and usable[place : place + TOKENS].all()]

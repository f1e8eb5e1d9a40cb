"""How unexpected each token of a text is to the language model itself: `-log P(token | tokens before it)`, in nats.

A model that reads a sentence in the wrong order is surprised, so its own surprisal is the baseline that order tasks must be read
against (`docs/method.md`, "Order"). The stream at a layer is at hand, from `passes`, so only what lies above that layer is run.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from temporallens.activations.language.loading import AS_IT_IS, Loading
from temporallens.activations.language.models import LanguageModel, Layer
from temporallens.cache import Cache
from temporallens.evaluation.model.passes import TextActivations, open_model
from temporallens.precision import RequestedPrecision
from temporallens.progress import progress

FORMAT = "temporallens.surprisal/1"
PART_TEXTS = 512  # in a file: so much is lost when the work is interrupted
BATCH_TOKENS = 512  # predictions over the whole vocabulary are held in float32 for so many at a time


def text_surprisal(
    model: str,
    layer: Layer,
    activations: TextActivations,
    dtype: RequestedPrecision,
    cache: Path,
    revision: str | None = None,
    loading: Loading = AS_IT_IS,
) -> list[Float[Tensor, " _"]] | None:
    """Surprisal of every token of every text, in order, without what opens a row; kept in the folder `cache`.

    `activations` are those of `layer`, padded on the right. None for a model that predicts no next token.
    """
    parts = [list(range(first, min(first + PART_TEXTS, len(activations)))) for first in range(0, len(activations), PART_TEXTS)]
    files, content, lengths = (
        Cache(cache / "surprisal", FORMAT),
        open_model(model, layer, dtype, revision, loading).content,
        _lengths(activations),
    )
    keys = [_key(content, layer, activations, texts) for texts in parts]
    known = [files.tensors(key) for key in keys]
    if any(part is None for part in known):
        network = LanguageModel.load(model, dtype=dtype, revision=revision, head=True, loading=loading)
        if not network.has_head:
            return None
        work = _Continuation(network, layer, activations)
        with progress(f"Surprisal of {network.title}", int(lengths.sum()), "tokens") as advance:
            for number, texts in enumerate(parts):
                if known[number] is None:
                    known[number] = made = {"surprisal": _of_part(work, texts)}
                    files.put_tensors(keys[number], made)
                advance(int(lengths[texts].sum()))
    whole = torch.cat([part["surprisal"] for part in known if part is not None])
    return list(whole.split((lengths - 1).tolist()))


def _lengths(activations: TextActivations) -> Int[Tensor, " T"]:
    """Tokens of each text, what opens its row included."""
    return (torch.arange(1, activations.live.shape[1] + 1) * activations.live).amax(1)


def _key(content: dict[str, Any], layer: Layer, activations: TextActivations, texts: list[int]) -> dict[str, Any]:
    """All that shapes the surprisal of these texts for a model of this content."""
    tokens = hashlib.sha256(activations.token[texts].numpy().tobytes()).hexdigest()
    return {**content, "layer": layer, "tokens": tokens, "bos": activations.bos}


def _of_part(work: "_Continuation", texts: list[int]) -> Float[Tensor, " n"]:
    """Surprisal of some texts, one after the other."""
    found: dict[int, Tensor] = {}
    for batch in work.batches(texts):
        found |= work.surprisal(batch)
    return torch.cat([found[text] for text in texts])


class _Continuation:
    """A model that goes on from the stream of texts."""

    def __init__(self, model: LanguageModel, layer: Layer, activations: TextActivations) -> None:
        self.model, self.layer, self.activations = model, layer, activations
        self.lengths = _lengths(activations)
        self._opening = self._stream_of_opening() if activations.bos else None

    def _stream_of_opening(self) -> Float[Tensor, " D"]:
        """What the model makes of the token that opens a row, which sees no other."""
        token = self.activations.token[:1, :1]
        return self.model.residuals(token, torch.ones_like(token, dtype=torch.bool), [self.layer])[self.layer][0, 0].cpu()

    def batches(self, texts: list[int]) -> Iterator[list[int]]:
        """Texts of similar lengths, BATCH_TOKENS together with their padding."""
        batch: list[int] = []
        for text in sorted(texts, key=lambda text: -int(self.lengths[text])):
            if batch and (len(batch) + 1) * int(self.lengths[batch[0]]) > BATCH_TOKENS:
                yield batch
                batch = []
            batch.append(text)
        yield batch

    def surprisal(self, texts: list[int]) -> dict[int, Float[Tensor, " _"]]:
        """Of the tokens of a batch, by text."""
        length = int(self.lengths[texts].max())
        token, real = self.activations.token[texts, :length], torch.arange(length) < self.lengths[texts][:, None]
        if self.model.ignores_padding(length):
            real = torch.ones_like(real)
        if bool(self._inside_dead(texts, length).any()):
            stream = self.model.residuals(token, real, [self.layer])[self.layer]
        else:
            stream = self.activations.x[texts][:, :length]
            if self._opening is not None:
                stream[:, 0] = self._opening.to(stream.dtype)
        logits = self.model.continued(stream, self.layer, token, real)[:, :-1].float().cpu()
        losses = functional.cross_entropy(logits.flatten(0, 1), token[:, 1:].flatten(), reduction="none").view(len(texts), -1)
        return {text: row[: int(self.lengths[text]) - 1].clone() for text, row in zip(texts, losses, strict=True)}

    def _inside_dead(self, texts: list[int], length: int) -> Tensor:
        """Tokens before the last that the pass did not keep, such as an EOS that stands in a text."""
        inside = torch.arange(length) < self.lengths[texts][:, None] - 1
        inside[:, 0] &= not self.activations.bos
        return inside & ~self.activations.live[texts, :length]

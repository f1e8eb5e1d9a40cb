"""How unexpected each token of a text is to the language model itself: `-log P(token | tokens before it)`, in nats.

A model that reads a sentence in the wrong order is surprised, so its own surprisal is the baseline that order tasks must be read
against (`docs/method.md`, "Order"). The stream at a layer is at hand, from `passes`, so only what lies above that layer is run.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from temporallens.activations.language.models import LanguageModel, Layer
from temporallens.cache import Cache
from temporallens.evaluation.model.passes import TextActivations
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
) -> list[Float[Tensor, " _"]] | None:
    """Surprisal of every token of every text, in order, without what opens a row; kept in the folder `cache`.

    `activations` are those of `layer`, padded on the right. None for a model that predicts no next token.
    """
    network = LanguageModel.load(model, dtype=dtype, revision=revision, head=True)
    if not network.has_head:
        return None
    work = _Continuation(network, layer, activations)
    found: list[Tensor] = []
    with progress(f"Surprisal of {network.title}", int(work.lengths.sum()), "tokens") as advance:
        for first in range(0, len(activations), PART_TEXTS):
            texts = list(range(first, min(first + PART_TEXTS, len(activations))))
            found += _part(work, texts, cache)
            advance(int(work.lengths[texts].sum()))
    return found


class _Continuation:
    """A model that goes on from the stream of texts."""

    def __init__(self, model: LanguageModel, layer: Layer, activations: TextActivations) -> None:
        self.model, self.layer, self.activations = model, layer, activations
        columns = torch.arange(1, activations.live.shape[1] + 1)
        self.lengths = (columns * activations.live).amax(1)  # of rows, what opens them included
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


def _part(work: _Continuation, texts: list[int], cache: Path) -> list[Float[Tensor, " _"]]:
    """Surprisal of some texts, from its file where that is whole and of this very work, else computed into it."""
    key = {
        **work.model.content,
        "layer": work.layer,
        "tokens": hashlib.sha256(work.activations.token[texts].numpy().tobytes()).hexdigest(),
        "bos": work.activations.bos,
    }
    lengths = (work.lengths[texts] - 1).tolist()
    files = Cache(cache / "surprisal", FORMAT)
    if (known := files.tensors(key)) is not None:
        return list(known["surprisal"].split(lengths))
    found: dict[int, Tensor] = {}
    for batch in work.batches(texts):
        found |= work.surprisal(batch)
    surprisal = torch.cat([found[text] for text in texts])
    files.put_tensors(key, {"surprisal": surprisal})
    return list(surprisal.split(lengths))

"""Texts through a language model, for everything that is measured on texts rather than on a store: probing, order tasks, fidelity.

`text_activations` gives the residual stream of a list of texts at one layer, cut to the context length, opened with BOS and padded as
SAEBench pads (docs/method.md, section 5), with the tokens, which of them are live, and the position that each stands at. What costs
time, the forward pass, is kept on disk in chunks of live rows, under a key made of everything that shapes it; a chunk that is damaged
or belongs to something else is computed again. Nothing loads a whole set: `x` is read from the mapped files, slice by slice.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from torch import Tensor

from temporallens.activations.context import UNKNOWN, Context, in_sequences
from temporallens.activations.language.block_stack import Layer
from temporallens.activations.language.loading import AS_IT_IS, Loading
from temporallens.activations.language.model_files import content_stamp
from temporallens.activations.language.models import LanguageModel
from temporallens.activations.language.readers import refuse_half_character
from temporallens.activations.language.token_rows import RowShape, row_shape
from temporallens.defaults import own_defaults
from temporallens.errors import TemporalLensError
from temporallens.files import fingerprint, locked, read_tensors, user_path, write_tensors
from temporallens.precision import RequestedPrecision
from temporallens.progress import progress

FORMAT = "temporallens.pass/1"
CHUNK_TEXTS = 128  # at least so many texts in a file: a quarter of a minute's work is lost when a pass is interrupted
NAMED_TEXTS = 5  # a message about texts names no more of them
Side = Literal["right", "left"]


class LiveRows(NamedTuple):
    """The live tokens of some texts, text after text."""

    x: Float[Tensor, "N D"]
    position: Int[Tensor, " N"]
    text: Int[Tensor, " N"]  # which text of the pass
    index: Int[Tensor, " N"]  # type: ignore[assignment]  # place in the padded row (shadows a method of tuples)


class Chunk(NamedTuple):
    """A file of the pass: the live rows of texts `first` to `stop`."""

    path: Path
    first: int
    stop: int


class MappedActivations:
    """`x [T, S, D]` of a pass, zero where a token is not live. An index reads what it names from the mapped files and nothing else:
    `x[text]`, `x[first:stop]`, `x[texts]` are rows of texts, `x[texts, columns]` single tokens."""

    def __init__(self, chunks: Sequence[Chunk], live: Bool[Tensor, "T S"], width: int, dtype: torch.dtype) -> None:
        self._chunks = list(chunks)
        self._live = live
        self._row = live.flatten().cumsum(0).view(live.shape) - 1  # which of the pass's live rows a token is
        self._first = torch.tensor([*(int(live[: chunk.first].sum()) for chunk in chunks), int(live.sum())])  # first row of each chunk
        self.shape = (*live.shape, width)
        self.dtype = dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor | tuple[Tensor, Tensor]) -> Tensor:
        live, row = self._live[index], self._row[index]
        out = torch.zeros(*live.shape, self.shape[2], dtype=self.dtype)
        out[live] = self._read(row[live])
        return out

    def _read(self, rows: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
        out = torch.empty(len(rows), self.shape[2], dtype=self.dtype)
        number = torch.searchsorted(self._first, rows, right=True) - 1
        for chunk in torch.unique(number).tolist():
            here = number == chunk
            wanted = rows[here] - self._first[chunk]
            start, stop = int(wanted.min()), int(wanted.max()) + 1
            with safe_open(self._chunks[chunk].path, framework="pt") as file:
                block = file.get_slice("x")[start:stop]
            out[here] = block if len(wanted) == len(block) and bool((wanted.diff() == 1).all()) else block[wanted - start]
        return out


@dataclass(frozen=True)
class TextActivations:
    """One layer's residual stream over T texts of S tokens, padding included."""

    x: MappedActivations  # [T, S, D], zero where a token is not live
    token: Int[Tensor, "T S"]
    live: Bool[Tensor, "T S"]  # neither pad nor EOS nor BOS
    position: Int[Tensor, "T S"]  # index in the text's own row, BOS at 0, whatever side is padded; 0 at padding on the left
    bos: bool  # whether rows open with BOS

    def __len__(self) -> int:
        return len(self.x)

    @property
    def width(self) -> int:
        return self.x.shape[2]

    def context(self, text: Int[Tensor, " N"], column: Int[Tensor, " N"]) -> Context:
        """These tokens, and those that stand before them in their texts."""
        before = torch.where(self.position[text, column] > 0, self.token.roll(1, 1)[text, column], UNKNOWN)
        return Context(self.token[text, column].long(), before.long())

    def sequences(self, texts: slice | Tensor) -> Context:
        """The tokens of whole texts, for what looks back in them: at what is live, and not at the first of a row."""
        token = self.token[texts].long()
        before = torch.where(self.position[texts] > 0, token.roll(1, 1), UNKNOWN)
        return in_sequences(token, before, self.live[texts])

    def live_rows(self, texts: slice | Sequence[int] | Tensor = slice(None)) -> LiveRows:
        """The live tokens of these texts with their columns: what to encode where zeros would be encoded in vain."""
        number = torch.arange(len(self))[texts]
        place, index = self.live[number].nonzero(as_tuple=True)
        text = number[place]
        return LiveRows(self.x[text, index], self.position[text, index], text, index)


def rule_positions(live: Bool[Tensor, "B S"], bos: bool) -> Int[Tensor, "B S"]:
    """Positions of padded rows, told from what is live alone: with `first` the first live index of a row,
    `index - first`, and 1 more where something stands before it and rows open with BOS.

    For where nothing else is known, as in SAEBench. Right for padding on either side and for packed rows of which everything is live;
    counting live rows instead would go wrong at an EOS in the middle. A text that itself begins with a special token is told to stand
    as many places too early: nothing shows that the token is no padding. What stands before the first live row gets 0; a row of which
    nothing is live counts from 0.
    """
    first = live.int().argmax(1, keepdim=True)
    index = torch.arange(live.shape[1], device=live.device)
    return (index - first + (first > 0).long() * int(bos)).clamp(min=0)


def open_model(
    model: str, layer: Layer, dtype: RequestedPrecision = "float32", revision: str | None = None, loading: Loading = AS_IT_IS
) -> LanguageModel:
    """`model` up to `layer`, loaded once per process however many measurements ask for it, as long as its files stay."""
    return _opened(model, layer, dtype, revision, loading, content_stamp(model))


@lru_cache(maxsize=2)
def _opened(
    model: str, layer: Layer, dtype: RequestedPrecision, revision: str | None, loading: Loading, _stamp: tuple[Any, ...]
) -> LanguageModel:
    return LanguageModel.load(model, up_to=layer, dtype=dtype, revision=revision, loading=loading)


@own_defaults()
def text_activations(
    model: str,
    layer: Layer,
    texts: Sequence[str],
    context_length: int = 128,
    dtype: RequestedPrecision = "float32",
    batch_size: int = 32,
    *,
    cache: Path | str,
    padding_side: Side | None = None,
    whole_context: bool = True,
    bos: bool = True,
    revision: str | None = None,
    loading: Loading = AS_IT_IS,
    title: str = "texts",
) -> TextActivations:
    """The residual stream of `model` after `layer` over `texts`, from the folder `cache` where it holds them, else computed into it.

    Without `padding_side` the tokenizer decides, as it does for SAEBench. With `whole_context` every row is padded to `context_length`
    and batches are taken in order, as SAEBench does; without it texts of similar length share a batch that is as long as the longest,
    which computes less and differs in the last bits. `title` names the texts in messages.
    Raises TemporalLensError when there are no texts, texts of which no token is live, or half of a character in one.
    """
    texts = list(texts)  # some give others each time
    if not texts:
        raise TemporalLensError(f"there is nothing to read in {title}: the list of texts is empty")
    for number, text in enumerate(texts):
        refuse_half_character(text, f"text {number} of {title}")
    network = open_model(model, layer, dtype, revision, loading)
    shape = row_shape(network, context_length, bos, "document")
    left = (padding_side or network.tokenizer.padding_side) == "left"
    rows = _tokenise(network, texts, shape)
    token, real = _padded(rows, network.padding_token, context_length, left)
    live = real & ~torch.isin(token, torch.tensor(special_tokens(network)))
    _check_live(live, texts, title)
    key = {
        "format": FORMAT,
        **network.content,
        "special": special_tokens(network),
        "layer": layer,
        "context_length": context_length,
        "padding": "left" if left else "right",
        "whole_context": whole_context,
        "bos": bos,
        "batch_size": batch_size,
        "texts": _texts_sha256(texts),
    }
    name = fingerprint(key)
    chunks = _chunks(user_path(cache) / "passes" / name[:32], len(texts), batch_size)
    job = _Pass(network, layer, rows, live, left, context_length if whole_context else None, batch_size)
    _fill(chunks, name, job, real.sum(1), title)
    return TextActivations(MappedActivations(chunks, live, network.width, network.dtype), token, live, _index_in_row(real), bos)


def _chunks(folder: Path, texts: int, batch_size: int) -> list[Chunk]:
    """Files of whole batches."""
    size = -(-CHUNK_TEXTS // batch_size) * batch_size
    starts = range(0, texts, size)
    return [Chunk(folder / f"chunk-{number:05d}.safetensors", first, min(first + size, texts)) for number, first in enumerate(starts)]


def _fill(chunks: list[Chunk], name: str, job: "_Pass", tokens: Int[Tensor, " T"], title: str) -> None:
    """Compute what is not there; `tokens` of each text, to tell how far it is."""
    if all(_holds(chunk, name) for chunk in chunks):
        return
    with locked(chunks[0].path.parent, wait=True):
        missing = [chunk for chunk in chunks if not _holds(chunk, name)]  # another process may have made some meanwhile
        work = [int(tokens[chunk.first : chunk.stop].sum()) for chunk in missing]
        with progress(f"Reading {title}", sum(work), "tokens") as advance:
            for chunk, done in zip(missing, work, strict=True):
                write_tensors(chunk.path, {"x": job.compute(chunk.first, chunk.stop)}, _seal(chunk, name))
                advance(done)


def special_tokens(model: LanguageModel) -> list[int]:
    """Tokens that stand for no text: pad, EOS and BOS, and what opens and closes the rows of an encoder."""
    tokenizer = model.tokenizer
    tokens = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, model.bos, model.closing)
    return sorted({token for token in tokens if token is not None})


def _tokenise(model: LanguageModel, texts: Sequence[str], shape: RowShape) -> list[Int[Tensor, " _"]]:
    """The tokens of each text as they are read: cut to the context, opened with BOS and, for encoders, closed with SEP."""
    opening = [] if shape.opening is None else [shape.opening]
    closing = [] if shape.closing is None else [shape.closing]
    return [torch.tensor([*opening, *tokens[: shape.room], *closing], dtype=torch.long) for tokens in model.encode_all(list(texts))]


def _padded(rows: list[Int[Tensor, " _"]], padding: int, length: int, left: bool) -> tuple[Int[Tensor, "T S"], Bool[Tensor, "T S"]]:
    """Rows padded to `length`, and where they hold tokens."""
    token = torch.full((len(rows), length), padding, dtype=torch.long)
    real = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, row in enumerate(rows):
        start = length - len(row) if left else 0
        token[number, start : start + len(row)] = row
        real[number, start : start + len(row)] = True
    return token, real


def _index_in_row(real: Bool[Tensor, "T S"]) -> Int[Tensor, "T S"]:
    """Where each token stands in its text's own row, whatever side is padded; 0 at padding on the left."""
    return (torch.arange(real.shape[1]) - real.int().argmax(1, keepdim=True)).clamp(min=0)


def _check_live(live: Bool[Tensor, "T S"], texts: Sequence[str], title: str) -> None:
    """Raise TemporalLensError where a text has nothing to look at."""
    empty = (~live.any(1)).nonzero()[:, 0].tolist()
    if empty:
        named = ", ".join(f"text {text} ({texts[text][:20]!r})" for text in empty[:NAMED_TEXTS])
        others = f" and {len(empty) - NAMED_TEXTS} others" if len(empty) > NAMED_TEXTS else ""
        raise TemporalLensError(f"{title}: {named}{others}, counted from 0, hold no token but padding, BOS and EOS; remove them")


def _texts_sha256(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Pass:
    """What a forward pass over the texts needs, whatever chunk of them is due."""

    model: LanguageModel
    layer: Layer
    rows: list[Tensor]  # tokens of each text
    live: Tensor  # [T, S] bool
    left: bool
    length: int | None  # of every batch; None: as long as its longest text
    batch_size: int

    def compute(self, first: int, stop: int) -> Float[Tensor, "N D"]:
        """The live rows of texts `first` to `stop`, in their order."""
        order = list(range(first, stop))
        if self.length is None:
            order.sort(key=lambda text: -len(self.rows[text]))  # stable: texts of a length stay in order
        found: dict[int, Tensor] = {}
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            found |= zip(batch, self._read(batch), strict=True)
        return torch.cat([found[text] for text in range(first, stop)])

    def _read(self, texts: list[int]) -> list[Float[Tensor, "_ D"]]:
        length = self.length or max(len(self.rows[text]) for text in texts)
        token, real = _padded([self.rows[text] for text in texts], self.model.padding_token, length, self.left)
        if not self.left and self.model.ignores_padding(length):
            real = torch.ones_like(real)  # SAEBench gives no mask either
        stream = self.model.residuals(token, real, [self.layer])[self.layer].cpu()
        live = self.live[texts]
        live = live[:, -length:] if self.left else live[:, :length]
        return [stream[place][live[place]] for place in range(len(texts))]


def _seal(chunk: Chunk, key: str) -> dict[str, Any]:
    """What a chunk says of itself, beside its checksum: of which pass it is, and which texts."""
    return {"format": FORMAT, "key": key, "first": chunk.first, "stop": chunk.stop}


def _holds(chunk: Chunk, key: str) -> bool:
    """Whether the chunk is there, whole, undamaged, and of this very pass."""
    if not chunk.path.is_file():
        return False
    try:
        tensors, seal = read_tensors(chunk.path, "a chunk of activations")
    except TemporalLensError:
        return False
    return set(tensors) == {"x"} and seal == _seal(chunk, key)

"""Harvesting: text through a language model into activation stores, one per layer, in one pass and in bounded memory.

The schedule is deterministic: rows come lazily, are gathered into windows of a fixed size, ordered by length inside a window so that
little padding is computed, and cut into batches of a multiple of NORM_ROWS rows. Each batch is one append to every layer's store, and is
read in as many forward passes as `batch_size` asks for, so that which rows the norm rule leaves out does not depend on it. An interrupted
harvest repeats the schedule, leaves out the batches that all its stores hold already, and ends with the same bytes as one that was
never interrupted. One thread writes while the model computes.
"""

import itertools
import operator
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event
from typing import Any, Literal, NamedTuple, SupportsIndex, cast, overload

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from temporallens import processes
from temporallens.activations.clocks import Clock, TokenMarks, TokenRow
from temporallens.activations.expressions import canonical, clock_of
from temporallens.activations.language.corpora import Corpus, at_commit, open_corpus
from temporallens.activations.language.hooks import SITES, Layer, block_of, layer_named, site_of
from temporallens.activations.language.loading import Loading, loading_field, recorded_loading
from temporallens.activations.language.model_files import same_content
from temporallens.activations.language.models import LanguageModel
from temporallens.activations.language.token_rows import RowPolicy, row_shape, token_rows
from temporallens.activations.manifest import StoreDescription
from temporallens.activations.moments import FIRST, NORM, SPECIAL, beyond_norm
from temporallens.activations.position_names import NAMES, PositionNames, as_json_keys
from temporallens.activations.store import ACROSS_DOCUMENTS, ActivationStore
from temporallens.activations.writer import PROGRESS_FILE, TARGET, Rows, StoreWriter, target_of
from temporallens.defaults import own_defaults
from temporallens.errors import TemporalLensError
from temporallens.files import explained, locked, user_path
from temporallens.precision import Precision, RequestedPrecision
from temporallens.progress import note, progress
from temporallens.settings import Length, Settings, not_asked

WINDOW_ROWS = 512  # rows that are ordered by length together
NORM_ROWS = 32  # rows whose median norm the norm rule compares with
PENDING_APPENDS = 4  # appends that may wait for the writing thread
COUNTED_TOKENS = 1 << 22  # rows of so many tokens are read ahead (50 MB), so that the time left is known for most texts,
COUNTED_SECONDS = 5.0  # but for no longer than this


class HarvestPolicy(Settings):
    """One entry under `activations:` of a study: which activations of which text, and what becomes of every token."""

    model: str
    """A shipped name (smollm2-135m, minilm-l6), a hub name, a directory, or a .gguf file."""
    layer: Layer
    """The residual stream after this block, counted from 0, or `embed`: the stream before block 0. In its place `hook` takes any name
    of a place, such as `blocks.12.hook_mlp_out` or `model.layers.12.mlp`, and beside a number what is read there: `resid_pre`,
    `resid_post`, `attn_out`, `mlp_in` or `mlp_out`."""
    target: Layer | None = Field(None, exclude_if=not_asked)
    """For transcoders, which give activations of another point than they take: that point, such as `blocks.12.hook_mlp_out`, read in
    the same pass."""
    revision: str | None = None
    """The hub's branch, tag or commit; None: its main branch."""
    text: str = "sotu"
    """A shipped text (`sotu`, `wikipedia`, `bundestag`, `python`, `weather`, `temperatures`, `airports`), a .txt, .md, .jsonl, .csv or
    .parquet file, a folder of such files, or a hub data set (`owner/name@commit`)."""
    column: str | None = None
    """The column of a table that holds the text; None: `text`, or the only one (of a CSV file `text` alone)."""
    split: str | None = None
    """The part of a hub data set; None: train."""
    context_length: Length = Field(128, ge=2)
    """Tokens in a row, BOS included."""
    rows: RowPolicy = "split"
    """`document`: one row per document, cut off; `split`: documents cut into rows; `packed`: documents joined, then cut into rows, whose
    tokens see those of the documents before them in the row."""
    rows_per_document: int | None = Field(None, ge=1)
    """So many rows of each document, evenly spaced through it; None: all. For `split` only."""
    max_tokens: int | None = Field(None, ge=2)
    """Stop before the row that would exceed so many tokens; None: use the whole text."""
    bos: bool = True
    """Whether a row opens with BOS (for encoders: opens with CLS and closes with SEP)."""
    padding: Literal["right", "left"] | None = None
    """The side on which short rows are padded in the forward pass; None: the tokenizer's own. Padding is never stored."""
    clock: str = Field("index", json_schema_extra={"type": ["string", "object"]})
    """What `position` means: index, document, sentence or newline, or an expression (`docs/method.md`, "Clocks"): `{modulo: 24, of:
    newline}`, `{from_end: index}`, `{since: REGEX}`, `{field: ","}`, `{product: [A, B]}`."""
    position_names: PositionNames | None = Field(None, exclude_if=not_asked)
    """Names of positions, a list from 0 or by number, shown in place of these; None: numbers."""
    norm_multiple: float | None = Field(10.0, gt=1)
    """Tokens of more than so many times the median norm of 32 rows together are excluded as sinks; None: no such rule."""
    dtype: Precision = "bfloat16"
    """Of the store."""
    compute_dtype: RequestedPrecision = "auto"
    """What the model computes in; auto: bfloat16 where the processor multiplies it natively and the store holds no more, else float32."""
    loading: Loading = loading_field()
    """How the model is held: spread over devices (`device_map: auto`), in eight bits (`weights: int8`), with another attention."""
    batch_size: int = Field(32, ge=1)
    """Rows in a forward pass; changes nothing but the time and the last bits."""
    stream: bool = Field(False, exclude_if=lambda stream: not stream)
    """Whether training reads the model, window after window, instead of a store. What is measured, and what is known of activations before
    training, comes from a store of every so manieth document; the others are kept nowhere."""
    stored_every: int = Field(10, ge=2, exclude_if=lambda every: every == 10)
    """Of a stream one document in so many is in the store, and in no window; `training.held_out` of these are held out."""

    @model_validator(mode="before")
    @classmethod
    def _one_place(cls, fields: Any) -> Any:
        """`hook` is another way to say `layer`."""
        if not isinstance(fields, dict) or "hook" not in fields:
            return fields
        hook, layer = fields["hook"], fields.get("layer")
        if layer is None and isinstance(hook, str):
            place = hook
        elif hook in SITES and isinstance(layer, SupportsIndex) and not isinstance(layer, bool):
            place = f"blocks.{operator.index(layer)}.hook_{hook}"
        else:
            raise ValueError(
                f"hook {hook!r}, layer {layer!r}: hook is the name of a place, or beside a layer's number one of {', '.join(SITES)}"
            )
        return {name: value for name, value in fields.items() if name != "hook"} | {"layer": place}

    @field_validator("layer", "target")
    @classmethod
    def _known_layer(cls, layer: Layer | None) -> Layer | None:
        try:
            return layer_named(layer) if isinstance(layer, str) else layer
        except TemporalLensError as error:
            raise ValueError(str(error)) from error

    @field_validator("clock", mode="before")
    @classmethod
    def _known_clock(cls, clock: Any) -> str:
        try:
            return canonical(clock)
        except TemporalLensError as error:
            raise ValueError(str(error)) from error  # pydantic adds the place

    @model_validator(mode="after")
    def _consistent(self) -> "HarvestPolicy":
        if self.rows_per_document is not None and self.rows != "split":
            raise ValueError(f"rows_per_document goes with rows: split, not with rows: {self.rows}")
        if self.target is not None and self.target == self.layer:
            raise ValueError(f"the target is {self.target}, which is what is read: leave it out")
        if self.stream and self.target is not None:
            raise ValueError("a stream trains, and transcoders are not trained here: leave out stream, or the target")
        return self

    @property
    def deepest(self) -> Layer:
        """Of what is read, that which needs most blocks."""
        return self.layer if self.target is None else max(self.layer, self.target, key=block_of)

    @property
    def without_place(self) -> "HarvestPolicy":
        """All but what is read: what policies that are harvested in one pass share."""
        return self.model_copy(update={"layer": 0, "target": None})

    @property
    def precision(self) -> RequestedPrecision:
        """What is asked of the model: no less than what the store holds, where nothing else is said."""
        return "float32" if self.compute_dtype == "auto" and self.dtype == "float32" else self.compute_dtype


class TokenBatch(NamedTuple):
    """Rows that are read together, padded to the longest."""

    tokens: Int[Tensor, "B S"]
    mask: Bool[Tensor, "B S"]  # False at padding
    rows: list[TokenRow]
    sequences: Int[Tensor, " B"]  # number of each row in the text, counted from 0

    @property
    def size(self) -> int:
        """Tokens without padding."""
        return sum(len(row.tokens) for row in self.rows)


class _Planned(NamedTuple):
    """One store to be written."""

    layer: Layer
    out: Path
    description: StoreDescription
    beside: tuple[Layer, ...] = ()  # the other layer of a pair, whose sinks are left out of both


@overload
def harvest(
    model: str | Path, layer: SupportsIndex | str, texts: str | Path | Iterable[str] = "sotu", *, out: str | Path, **policy: Any
) -> ActivationStore: ...


@overload
def harvest(
    model: str | Path,
    layer: Iterable[SupportsIndex | str],
    texts: str | Path | Iterable[str] = "sotu",
    *,
    out: str | Path,
    **policy: Any,
) -> dict[Layer, ActivationStore]: ...


def harvest(
    model: str | Path,
    layer: SupportsIndex | str | Iterable[SupportsIndex | str],
    texts: str | Path | Iterable[str] = "sotu",
    *,
    out: str | Path,
    **policy: Any,
) -> ActivationStore | dict[Layer, ActivationStore]:
    """Harvest the activations of `model` at `layer` over `texts` into the folder `out`; `policy` has the fields of HarvestPolicy.

    A layer is a number (the residual stream after that block), `embed`, or the name of a place (`hooks.py`).
    For a list of layers, each gets its own store, in `out/layer-<n>`, all from one pass, and a dictionary of stores is returned.
    A finished harvest with the same settings is opened instead of repeated; an interrupted one goes on. Texts of an iterator are never
    taken for those of before; a hub data set is read at the commit that it now has, unless its name says which (`owner/name@commit`).
    """
    out, texts = user_path(out), at_commit(texts) if isinstance(texts, str) else texts
    if isinstance(layer, Mapping):
        raise TemporalLensError("the layers are a mapping: give a layer, or a list of layers")
    one = isinstance(layer, str | bytes) or not np.iterable(layer)  # a whole number may be NumPy's or PyTorch's
    wanted: list[Any] = [layer] if one else list(cast(Iterable[Any], layer))
    name = str(texts) if isinstance(texts, str | Path) else "given"
    source = str(model) if isinstance(model, Path) else model
    policies = [HarvestPolicy(model=source, layer=entry, text=name, **policy) for entry in wanted]
    if not policies:
        raise TemporalLensError("there is no layer to harvest: the list of layers is empty")
    corpus = open_corpus(texts, policies[0].column, policies[0].split)
    if one:
        return harvest_policy(policies, [out], corpus)[0]
    layers = [own.layer for own in policies]
    return dict(zip(layers, harvest_policy(policies, [out / f"layer-{own}" for own in layers], corpus), strict=True))


@own_defaults()
def harvest_policy(policies: Sequence[HarvestPolicy], outs: Sequence[Path], corpus: Corpus | None = None) -> list[ActivationStore]:
    """Harvest several layers of one model over one text in a single pass; the policies differ in nothing but the layer, and its target.

    `corpus` stands in for the text that the policies name. Returns one store per policy, in their order.
    """
    if any(policy.without_place != policies[0].without_place for policy in policies):
        raise TemporalLensError("layers are harvested together only from the same model, text and policies")
    if len({(policy.layer, policy.target) for policy in policies}) < len(policies):
        raise TemporalLensError("a layer is named twice in one harvest; name it once")
    policy = policies[0]
    text = corpus or open_corpus(policy.text, policy.column, policy.split)
    if text.fingerprint is None:
        _refuse_stores_of_other_texts(text, outs)
    deepest = max((one.deepest for one in policies), key=block_of)
    model = open_source(policy, deepest)
    planned = [store for one, out in zip(policies, outs, strict=True) for store in _planned(one, out, model, text)]
    with ExitStack() as stack:
        if processes.rank() == 0:
            for out in outs:
                stack.enter_context(locked(out))
        pending = processes.told(lambda: [number for number, store in enumerate(planned) if not _finished(store.out, store.description)])
        if pending:
            _fill([planned[number] for number in pending], Reading(policy, model, text))
        processes.wait()
    return [ActivationStore(out) for out in outs]


def open_source(policy: HarvestPolicy, up_to: Layer) -> LanguageModel:
    """The model that a policy reads."""
    return LanguageModel.load(policy.model, up_to=up_to, dtype=policy.precision, revision=policy.revision, loading=policy.loading)


def _planned(policy: HarvestPolicy, out: Path, model: LanguageModel, text: Corpus) -> list[_Planned]:
    """The store of a policy, behind that of its target: the one that proves a harvest is finished last."""
    own = _Planned(policy.layer, out, describe(policy, model, text))
    if policy.target is None:
        return [own]
    beside = describe(policy.model_copy(update={"layer": policy.target, "target": None}), model, text)
    target = _Planned(policy.target, out / TARGET, target_of(own.description, beside.source), (policy.layer,))
    return [target, own._replace(beside=(policy.target,))]


def describe(policy: HarvestPolicy, model: LanguageModel, text: Corpus) -> StoreDescription:
    """What the store says about itself: stores of equal descriptions hold equal bytes."""
    layer = model.named(policy.layer)
    return StoreDescription(
        source={
            "kind": "model",
            "model": policy.model,
            "revision": model.revision,
            "row_tokens": model.row_tokens,
            "layer": layer,
            "hook": site_of(layer),
            "layers_total": model.layers,
            "encoder": model.is_encoder,
            "tokenizer_sha256": model.tokenizer_sha256,
            "text": text.name,
            "text_fingerprint": text.fingerprint,
            "column": policy.column,
            "split": policy.split,
        },
        policies={
            "context_length": policy.context_length,
            "rows": policy.rows,
            "rows_per_document": policy.rows_per_document,
            "max_tokens": policy.max_tokens,
            "bos": policy.bos,
            "padding": _padding(policy, model),
            "clock": policy.clock,
            **clock_of(policy.clock).rule,
            **({} if policy.position_names is None else {NAMES: as_json_keys(policy.position_names)}),
            "norm_multiple": policy.norm_multiple,
            "position_zero": "excluded",
            "batch_size": policy.batch_size,
            "compute_dtype": model.precision,
            **recorded_loading(policy.loading),
            **({ACROSS_DOCUMENTS: True} if policy.rows == "packed" else {}),
            **({} if policy.target is None else {TARGET: model.named(policy.target)}),
            **({"stored_every": policy.stored_every} if policy.stream else {}),
        },
        width=model.width,
        dtype=policy.dtype,
        positions=clock_of(policy.clock).size(policy.context_length),
    )


def _padding(policy: HarvestPolicy, model: LanguageModel) -> str:
    return policy.padding or model.tokenizer.padding_side


def _refuse_stores_of_other_texts(text: Corpus, outs: Sequence[Path]) -> None:
    """Raise TemporalLensError where there is a store, or the beginning of one: of a text without a fingerprint none is known to be."""
    for out in outs:
        for file, what in (("manifest.json", "a finished store"), (PROGRESS_FILE, "an unfinished harvest")):
            if (out / file).exists():
                raise TemporalLensError(f"{out} already holds {what}, and {text.unknown}, or choose another folder")


def _finished(out: Path, description: StoreDescription) -> bool:
    """Whether the store is whole; what a process that was killed right after its last write left beside it is removed."""
    whole = (out / "manifest.json").exists() and _completed(ActivationStore(out).manifest.description, description) == description
    if whole:
        with explained(out):
            (out / PROGRESS_FILE).unlink(missing_ok=True)
    return whole


def _completed(recorded: StoreDescription, wanted: StoreDescription) -> StoreDescription:
    """What a store says of itself, with what stores said nothing of before version 0.2: their models computed in what they held, and the
    tokens around rows were taken for the tokenizer's own."""
    source, policies = recorded.source, recorded.policies
    if source.get("kind") != "model" or "compute_dtype" in policies:
        return recorded
    known = {"row_tokens": wanted.source["row_tokens"]}
    if same_content(source["revision"], str(source["model"]), cast(str | None, wanted.source["revision"])):
        known["revision"] = wanted.source["revision"]
    return recorded.model_copy(update={"source": source | known, "policies": policies | {"compute_dtype": recorded.dtype}})


class Reading:
    """A text on its way through a model, as a policy has it. Of a stream, what is stored, or (`streamed`) what is not."""

    def __init__(self, policy: HarvestPolicy, model: LanguageModel, text: Corpus, streamed: bool = False) -> None:
        self.policy, self.model, self.text, self._streamed = policy, model, text, streamed
        self._marks, self._clock = TokenMarks.of(model.tokenizer), clock_of(policy.clock)

    @property
    def max_tokens(self) -> int | None:
        """How many are read at most; what is stored of a stream and what is not share those of the policy."""
        policy = self.policy
        if not policy.stream or policy.max_tokens is None:
            return policy.max_tokens
        stored = max(policy.context_length, policy.max_tokens // policy.stored_every)
        return policy.max_tokens - stored if self._streamed else stored

    def rows(self) -> Iterator[TokenRow]:
        """The rows in order, lazily."""
        policy, clock = self.policy, self._clock
        shape = row_shape(self.model, policy.context_length, policy.bos, policy.rows)
        documents: Iterable[str] = self.text
        if policy.stream:
            documents = (text for number, text in enumerate(self.text) if (number % policy.stored_every > 0) == self._streamed)
        whole = token_rows(
            self.model, documents, shape, policy.rows, policy.rows_per_document, starts=clock.reads_text, readers=clock.readers
        )
        return _limited(whole, self.max_tokens, policy.context_length)

    def batches(self, rows: Iterable[TokenRow]) -> Iterator[TokenBatch]:
        """Those that are read together."""
        left = _padding(self.policy, self.model) == "left"
        return schedule(rows, rows_together(self.policy.batch_size), self.model.padding_token, left)

    def columns(self, batch: TokenBatch) -> dict[str, Tensor]:
        return columns_of(batch, self._clock, self._marks, self.policy.context_length)

    def streams(self, batch: TokenBatch, layers: Sequence[Layer]) -> dict[Layer, Float[Tensor, "N D"]]:
        return read_streams(self.model, batch, layers, self.policy.batch_size)


def _fill(stores: Sequence[_Planned], reading: Reading) -> None:
    """Run the schedule from where the least advanced of the stores stands, and finish them all. Several processes read batches in turn,
    and process 0 writes them."""
    if reading.text.summary is not None:
        note(reading.text.summary)
    rows, total = counted(reading.rows(), reading.max_tokens)
    layers = list(dict.fromkeys(layer for store in stores for layer in (store.layer, *store.beside)))
    writers = [StoreWriter(store.out, store.description) for store in stores] if processes.rank() == 0 else []
    done = processes.told(lambda: [writer.appends_done for writer in writers])
    batches = enumerate(reading.batches(rows))

    def read(numbered: tuple[int, TokenBatch]) -> list[Tensor]:
        """The columns of the rows of every store that has them not yet."""
        number, batch = numbered
        streams, columns = reading.streams(batch, layers), reading.columns(batch)
        found: list[Tensor] = []
        for store, before in zip(stores, done, strict=True):
            if number >= before:
                beside = [streams[layer] for layer in store.beside]
                found += store_rows(streams[store.layer], batch, columns, reading.policy.norm_multiple, beside)
        return found

    with progress(f"Harvesting {reading.model.title}", total, "tokens") as advance, background() as submit:
        for _, batch in itertools.islice(batches, min(done)):
            advance(batch.size)
        for (number, batch), found in processes.dealt(batches, read):
            columns = iter(found)
            for writer, before in zip(writers, done, strict=True):
                if number >= before:
                    submit(writer.append, Rows(*itertools.islice(columns, len(Rows._fields))))
            advance(batch.size)
    for writer in writers:
        writer.finish()


def _limited(rows: Iterable[TokenRow], max_tokens: int | None, context_length: int) -> Iterator[TokenRow]:
    """Rows up to, and not beyond, `max_tokens` in all."""
    taken = 0
    for row in rows:
        taken += len(row.tokens)
        if max_tokens is not None and taken > max_tokens:
            if taken == len(row.tokens):
                raise TemporalLensError(f"max_tokens {max_tokens} is less than the first row's {taken}; allow at least {context_length}")
            return
        yield row


def counted(rows: Iterator[TokenRow], max_tokens: int | None) -> tuple[Iterator[TokenRow], int | None]:
    """Read rows ahead, in bounded memory, to learn how many tokens there are: all of them, else `max_tokens`, else unknown."""
    ahead: list[TokenRow] = []
    tokens, start = 0, time.monotonic()
    for row in rows:
        ahead.append(row)
        tokens += len(row.tokens)
        if tokens >= COUNTED_TOKENS or time.monotonic() - start > COUNTED_SECONDS:
            return itertools.chain(ahead, rows), max_tokens
    return iter(ahead), tokens


def rows_together(batch_size: int) -> int:
    """Rows of an append: as many as a forward pass has, but whole groups of the norm rule."""
    return min(WINDOW_ROWS, -(-batch_size // NORM_ROWS) * NORM_ROWS)


def schedule(rows: Iterable[TokenRow], batch_size: int, padding_token: int, left: bool) -> Iterator[TokenBatch]:
    """Cut rows into batches of similar lengths: windows in order, longest rows first inside a window."""
    numbered = enumerate(rows)
    while window := list(itertools.islice(numbered, WINDOW_ROWS)):
        window.sort(key=lambda entry: -len(entry[1].tokens))  # stable: rows of a length stay in order
        for first in range(0, len(window), batch_size):
            yield _batch(window[first : first + batch_size], padding_token, left)


def _batch(entries: Sequence[tuple[int, TokenRow]], padding_token: int, left: bool) -> TokenBatch:
    rows = [row for _, row in entries]
    longest = max(len(row.tokens) for row in rows)
    tokens = np.full((len(rows), longest), padding_token, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=bool)
    for number, row in enumerate(rows):
        start = longest - len(row.tokens) if left else 0
        tokens[number, start : start + len(row.tokens)] = row.tokens
        mask[number, start : start + len(row.tokens)] = True
    return TokenBatch(torch.from_numpy(tokens), torch.from_numpy(mask), rows, torch.tensor([number for number, _ in entries]))


def read_streams(model: LanguageModel, batch: TokenBatch, layers: Sequence[Layer], batch_size: int) -> dict[Layer, Float[Tensor, "N D"]]:
    """The streams of a batch's rows, row after row without padding, from passes of `batch_size` rows as long as their longest."""
    found: dict[Layer, list[Tensor]] = {layer: [] for layer in layers}
    for first in range(0, len(batch.rows), batch_size):
        mask = batch.mask[first : first + batch_size]
        filled = mask.any(0)
        tokens, mask = batch.tokens[first : first + batch_size, filled], mask[:, filled]
        for layer, stream in model.residuals(tokens, mask, layers).items():
            x = stream.flatten(0, 1) if bool(mask.all()) else stream[mask.to(stream.device)]
            found[layer].append(x.cpu())
    return {layer: parts[0] if len(parts) == 1 else torch.cat(parts) for layer, parts in found.items()}


def columns_of(batch: TokenBatch, clock: Clock, marks: TokenMarks, context_length: int) -> dict[str, Tensor]:
    """The columns of a batch's rows, padding left out; the same for every layer."""
    lengths = torch.tensor([len(row.tokens) for row in batch.rows])
    token = _joined([row.tokens for row in batch.rows])
    index = _joined([np.arange(len(row.tokens)) for row in batch.rows])
    special = torch.from_numpy(marks.special)[token] & (index > 0)
    return {
        "position": _joined([clock.position(row, marks, context_length) for row in batch.rows]),
        "index": index,
        "document_position": _joined([row.document_position for row in batch.rows]),
        "sequence": torch.repeat_interleave(batch.sequences, lengths),
        "document": _joined([row.document for row in batch.rows]),
        "token": token,
        "excluded": (index == 0) * FIRST + special * SPECIAL,
    }


def _joined(parts: Sequence[Int[np.ndarray, " _"]]) -> Int[Tensor, " N"]:
    return torch.from_numpy(np.concatenate(parts)).long()


def store_rows(
    x: Float[Tensor, "N D"],
    batch: TokenBatch,
    columns: dict[str, Tensor],
    norm_multiple: float | None,
    beside: Sequence[Float[Tensor, "N D"]] = (),
) -> Rows:
    """The rows of one layer: its streams, and the columns with the norm rule's verdict added, on these streams or those `beside`."""
    excluded = columns["excluded"]
    if norm_multiple is not None:
        beyond = torch.stack([_beyond(stream, batch, columns["index"], norm_multiple) for stream in (x, *beside)])
        excluded = excluded + beyond.any(0) * NORM
    return Rows(x, **{**columns, "excluded": excluded.to(torch.uint8)})


def _beyond(x: Float[Tensor, "N D"], batch: TokenBatch, index: Int[Tensor, " N"], norm_multiple: float) -> Bool[Tensor, " N"]:
    """The norm rule's verdict."""
    norms = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)
    lengths = [len(row.tokens) for row in batch.rows]
    groups = [sum(lengths[first : first + NORM_ROWS]) for first in range(0, len(lengths), NORM_ROWS)]
    inner = (index > 0).split(groups)
    return torch.cat([beyond_norm(own, counts, norm_multiple) for own, counts in zip(norms.split(groups), inner, strict=True)])


@contextmanager
def background() -> Iterator[Any]:
    """Yield `submit(function, argument)`: calls are run one after the other in a thread, and few may wait.

    A call's failure is raised here, by a later `submit` or at the end; the calls behind it are not run, for a store
    must not go on after an append that it has not got.
    """
    waiting: deque[Future[None]] = deque()
    failed = Event()

    def run(function: Any, argument: Any) -> None:
        if not failed.is_set():
            try:
                function(argument)
            except BaseException:
                failed.set()
                raise

    def submit(function: Any, argument: Any) -> None:
        while len(waiting) >= PENDING_APPENDS:
            waiting.popleft().result()
        waiting.append(thread.submit(run, function, argument))

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="temporallens-writer") as thread:
        try:
            yield submit
            while waiting:
                waiting.popleft().result()
        finally:
            thread.shutdown(cancel_futures=True)

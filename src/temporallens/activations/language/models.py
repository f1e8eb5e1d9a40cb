"""Language models as sources of residual streams: loaded only up to the layer that is wanted, read with forward hooks.

Any transformer of transformers will do, causal or encoder, whose blocks hand on one stream (`model_check` asks it a few tokens when it
is loaded). Layers are counted from 0 and named by their output (`resid_post`); `embed` is the stream that enters block 0; what a block
adds to the stream is read at its hooks (`hooks.py`). Blocks above
the wanted depth are dropped before the weights are read, and the forward pass stops at the last wanted block: no final norm, no head.
A model that was loaded whole can go on from a stream that it is given.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from temporallens.activations.clocks import Tokenizer
from temporallens.activations.language.additions import Addition, Entry, Summands, summands_of
from temporallens.activations.language.block_stack import BlockStack, Streams
from temporallens.activations.language.boundaries import Spans, spans_of
from temporallens.activations.language.hooks import BEHIND_NORM, GIVEN, Hook, Layer, block_of, hook_of
from temporallens.activations.language.loading import AS_IT_IS, Loading, recorded_loading
from temporallens.activations.language.model_check import (
    NOT_RUN,
    DoesNotRunError,
    Side,
    check_network,
    embedded_tokens,
    longest_row,
    padded_arguments,
    probe_rows,
)
from temporallens.activations.language.model_files import (
    Networks,
    Source,
    content_pin,
    find_source,
    read_config,
    read_network,
    tokenizer_of,
)
from temporallens.activations.language.readers import refuse_half_character
from temporallens.errors import TemporalLensError
from temporallens.precision import DTYPES, ModelPrecision, RequestedPrecision, device_for, precision


class SpannedTokens(NamedTuple):
    """The tokens of a text, and the characters that they were made of."""

    ids: Int[np.ndarray, " T"]
    spans: Spans


def check_encodable(texts: Sequence[str]) -> None:
    """Raise TemporalLensError for half a character in one of the texts."""
    for number, text in enumerate(texts):
        refuse_half_character(text, f"text {number}, counted from 0,")


def check_layer(layer: Layer, layers: int, title: str) -> None:
    """Raise TemporalLensError unless a model of `layers` layers has `layer`."""
    if layer == "embed" or (isinstance(layer, int | str) and 0 <= block_of(layer) < layers):
        return
    raise TemporalLensError(f"layer {layer} is out of range: {title} has layers 0 to {layers - 1}")


class LanguageModel:
    """A transformer up to a layer, its tokenizer, and what is to be known about both. Made by `load`."""

    def __init__(
        self,
        name: str,
        source: Source,
        networks: Networks,
        tokenizer: Tokenizer,
        layers: int,
        kept: int,
        device: str | None,
        loading: Loading,
    ) -> None:
        self.name = name  # as the user wrote it
        self.title = source.title  # as messages write it
        self.revision = source.revision
        self.tokenizer = tokenizer
        self.loading = loading
        self.layers = layers  # of the whole model, however many were loaded
        self._whole = networks.whole  # the stack of blocks with the head on it, or the stack alone
        self._stack = BlockStack(networks.stack, networks.blocks)
        special = tokenizer.all_special_ids
        self.context_length = longest_row(self._stack, special)  # None: no limit is known
        if device is not None:  # where its blocks are spread, they are there already
            self._whole.to(device)
        takes_positions = "position_ids" in inspect.signature(networks.stack.forward).parameters
        self._embedded = embedded_tokens(self._stack)
        self._traits = check_network(self._stack, self.title, takes_positions, special, self.padding_token)
        del self._stack.blocks[kept:]
        self.width = self._stack.width
        self._summands: dict[int, Summands] = {}  # by block
        self._skips: dict[Layer, bool] = {}  # by layer, whether what is continued there can leave out the blocks below
        for limit in (tokenizer.backend_tokenizer.no_truncation, tokenizer.backend_tokenizer.no_padding):
            limit()  # rows are cut and padded here, by policy

    @classmethod
    def load(
        cls,
        model: str,
        *,
        up_to: Layer | None = None,
        dtype: RequestedPrecision = "float32",
        device: str | None = None,
        revision: str | None = None,
        head: bool = False,
        loading: Loading = AS_IT_IS,
    ) -> "LanguageModel":
        """Load a shipped model, a hub model, a directory or a .gguf file, as far as layer `up_to` (None: all layers; with `head`,
        and what predicts tokens, where there is that). It computes in `dtype`; `auto` is bfloat16 where `device` multiplies that natively.
        `loading` says how it is held: spread over devices, in eight bits.

        Raises TemporalLensError when there is no such model, when it has no such layer, when weights or tokenizer are missing, or when
        its stream cannot be read exactly (`model_check`).
        """
        source = find_source(model, revision)
        loading.check_here(source.title, device)
        target = device_for(device)
        config = read_config(source)
        layers = int(config.get_text_config(decoder=True).num_hidden_layers)
        loaded = layers
        if up_to is not None:
            check_layer(up_to, layers, source.title)
            loaded = max(1, block_of(up_to) + 1)
        pinned, tokenizer = source._replace(revision=content_pin(source, config)), tokenizer_of(source)

        def opened(used: ModelPrecision) -> LanguageModel:
            networks = read_network(source, config, DTYPES[used], head, loaded + 1, loading)  # one more, for the check
            return cls(model, pinned, networks, tokenizer, layers, loaded, None if loading.device_map else target, loading)

        try:
            return opened(precision(dtype, target))
        except DoesNotRunError:
            if dtype != "auto" or precision(dtype, target) == "float32":
                raise
        return opened("float32")  # its own operations know no bfloat16

    @property
    def device(self) -> torch.device:
        return self._stack.device

    @property
    def dtype(self) -> torch.dtype:
        return self._stack.dtype

    @property
    def precision(self) -> ModelPrecision:
        """The name of what it computes in."""
        return precision(str(self.dtype).removeprefix("torch."))

    @property
    def is_encoder(self) -> bool:
        """Whether a token sees those after it."""
        return self._traits.encoder

    @property
    def has_head(self) -> bool:
        """Whether it was loaded with what predicts the next token, which an encoder never does."""
        return self._whole is not self._stack.network and not self.is_encoder

    @property
    def bos(self) -> int | None:
        """The token that opens a row: BOS, or CLS for an encoder; None where the tokenizer has none."""
        first, second = self.tokenizer.bos_token_id, self.tokenizer.cls_token_id
        if self.is_encoder:
            first, second = second, first
        return first if first is not None else second

    @property
    def closing(self) -> int | None:
        """The token that closes a row of an encoder: SEP; None for causal models."""
        return self.tokenizer.sep_token_id if self.is_encoder else None

    @property
    def separator(self) -> int | None:
        """The token that stands between packed documents: EOS, else SEP, else BOS."""
        candidates = (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id, self.bos)
        return next((token for token in candidates if token is not None), None)

    @property
    def padding_token(self) -> int:
        """Any token that the model knows will do, for padding is masked out and never stored."""
        token = self.tokenizer.pad_token_id
        return 0 if token is None or token >= self._embedded else token

    @property
    def embeddings(self) -> Float[Tensor, "V E"]:
        """The embedding of every token. Raises TemporalLensError where the model has no table of them."""
        weight = getattr(self._stack.network.get_input_embeddings(), "weight", None)
        if weight is None:
            raise TemporalLensError(f"{self.title} has no table of token embeddings: give the expectation embedding: false")
        return weight.detach()

    @property
    def row_tokens(self) -> list[int | None]:
        """What opens, closes and separates: a tokenizer's settings may change them while its vocabulary stays."""
        return [self.bos, self.closing, self.separator]

    @property
    def content(self) -> dict[str, Any]:
        """All of it that shapes what a pass over given text gives, for the keys of caches."""
        return {
            "model": self.revision or self.name,
            "tokenizer": self.tokenizer_sha256,
            "row_tokens": self.row_tokens,
            "dtype": self.precision,
            "device": self.device.type,
            "torch": torch.__version__,
            **recorded_loading(self.loading),
        }

    @cached_property
    def tokenizer_sha256(self) -> str:
        return hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, on all cores and without what nobody asks for (spans, special tokens)."""
        check_encodable(texts)
        return [encoding.ids for encoding in self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_with_spans(self, texts: list[str]) -> list[SpannedTokens]:
        """The same ids, with the characters that each token was made of."""
        check_encodable(texts)
        encodings = self.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        return [SpannedTokens(np.array(encoding.ids, dtype=np.int32), spans_of(encoding.offsets)) for encoding in encodings]

    def check_context(self, context_length: int) -> None:
        if self.context_length is not None and context_length > self.context_length:
            raise TemporalLensError(f"context length {context_length} is too long: {self.title} has {self.context_length} positions")

    def residuals(
        self, tokens: Int[Tensor, "B S"], mask: Bool[Tensor, "B S"], layers: Sequence[Layer]
    ) -> dict[Layer, Float[Tensor, "B S D"]]:
        """The stream, or what is added to it, at each of `layers`, in the model's dtype; where `mask` is False it has no meaning.

        Padding may stand on either side. Where it would change what the model gives, rows of one length are run together instead.
        Raises TemporalLensError for a layer that was not loaded, a hook that its block has not, and a token that the model does not know.
        """
        for layer in layers:
            self._check_loaded(layer)
        self._check_known(tokens)

        def run(own: _Batch) -> Streams:
            return self._stack.streams(self._arguments(own), layers)

        return self._run(_Batch(tokens.to(self.device), mask.to(self.device)), run)

    def continued(
        self, stream: Float[Tensor, "B S D"], layer: Layer, tokens: Int[Tensor, "B S"], mask: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B S V"]:
        """What the model makes of `stream` as its residual stream at `layer`: logits, or, without a head, its last hidden states.

        For a stream as the blocks up to `layer` would give it the result has the bits of a whole pass. Those blocks are not run where
        the ones above need nothing else of them.
        """
        return self._from(stream, layer, tokens, mask, lambda own: {layer: self._predicted(own)})[layer]

    def carried(
        self, stream: Float[Tensor, "B S D"], layer: Layer, to: Layer, tokens: Int[Tensor, "B S"], mask: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B S D"]:
        """What the blocks above `layer` make of `stream` by the layer `to`: going on from there has the bits of going on from here."""
        self._check_loaded(to)
        return self._from(stream, layer, tokens, mask, lambda own: self._stack.streams(self._arguments(own), [to]))[to]

    def _from(
        self,
        stream: Float[Tensor, "B S D"],
        layer: Layer,
        tokens: Int[Tensor, "B S"],
        mask: Bool[Tensor, "B S"],
        run: Callable[["_Batch"], Streams],
    ) -> Streams:
        """What `run` gives of passes in which `stream` stands at `layer`."""
        self._check_loaded(layer)
        self._check_known(tokens)
        if layer not in self._skips:
            self._skips[layer] = hook_of(layer) is None and self._can_skip(layer)
        enter = self._stack.skipped if self._skips[layer] else self._stack.replaced
        batch = _Batch(tokens.to(self.device), mask.to(self.device), stream.to(self.device, self.dtype))

        def entered(own: _Batch) -> Streams:
            assert own.stream is not None
            with enter(own.stream, layer):
                return run(own)

        return self._run(batch, entered)

    def _predicted(self, batch: "_Batch") -> Float[Tensor, "B S V"]:
        """Logits, or last hidden states, of a whole pass."""
        with torch.no_grad():
            result = (self._whole if self.has_head else self._stack.network)(**self._arguments(batch))
        return result.logits if self.has_head else result.last_hidden_state

    def _can_skip(self, layer: Layer) -> bool:
        """Whether blocks above `layer` read nothing of the blocks below but the stream (others share keys, or a first value)."""
        tokens = torch.arange(min(8, self._embedded), device=self.device)[None]
        batch = _Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))
        streams: Streams = {}
        with self._stack.watched(streams.__setitem__, [layer]):
            expected = self._predicted(batch)
        try:
            with self._stack.skipped(streams[layer], layer):
                return torch.equal(self._predicted(batch), expected)
        except NOT_RUN:
            return False

    def _run(self, batch: "_Batch", run: Callable[["_Batch"], Streams]) -> Streams:
        """`run` the batch as it is, or by rows of one length where padding would show; zeros then stand at padding."""
        if bool(batch.mask.all()) or self._pads(batch.mask):
            size = self._rows_at_once(batch.mask.shape[1])
            parts = [run(batch.rows(slice(first, first + size))) for first in range(0, len(batch.tokens), size)]
            return parts[0] if len(parts) == 1 else {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}
        streams: Streams = {}
        lengths = batch.mask.sum(1)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            own = batch.mask[rows]
            for layer, stream in run(batch.without_padding(rows)).items():
                whole = streams.setdefault(layer, stream.new_zeros(*batch.mask.shape, stream.shape[-1]))
                padded = whole[rows]
                padded[own] = stream.flatten(0, 1)
                whole[rows] = padded
        return streams

    def _rows_at_once(self, length: int) -> int:
        """Rows of a pass, however many are asked for."""
        small = self.device.type == "cpu" and self.precision == "float32"
        return max(1, CACHED_TOKENS // length) if small else NO_LIMIT

    def _pads(self, mask: Bool[Tensor, "B S"]) -> bool:
        """Whether rows padded like this give what they give alone."""
        sides: set[Side] = {side for side, column in SIDES.items() if not bool(mask[:, column].all())}
        longest = self._traits.longest_padded
        return sides <= self._traits.padded and (longest is None or mask.shape[1] <= longest)

    def ignores_padding(self, length: int) -> bool:
        """Whether rows of up to so many tokens need no mask for padding behind them, as nothing looks ahead."""
        longest = self._traits.longest_padded
        return not self.is_encoder and "right" in self._traits.padded and (longest is None or length <= longest)

    def _arguments(self, batch: "_Batch") -> dict[str, Any]:
        longest = self._traits.longest_padded
        if longest is not None and batch.tokens.shape[1] >= longest:
            self._stack.streams({"input_ids": batch.tokens[:1, :1]}, ["embed"])  # angles that grew with a longer row go back
        return padded_arguments(batch.tokens, batch.mask, self._traits.first_position)

    def _check_loaded(self, layer: Layer) -> None:
        check_layer(layer, self.layers, self.title)
        if block_of(layer) >= len(self._stack.blocks):
            raise TemporalLensError(f"layer {layer} was not loaded: {self.title} was loaded up to layer {len(self._stack.blocks) - 1}")
        hook = hook_of(layer)
        if hook is None or layer in self._stack.adding or layer in self._stack.entering:
            return
        if (entry := self._entry(hook)) is not None:
            self._stack.entering[layer] = entry
        else:
            self._stack.adding[layer] = self._addition(hook).modules[0]

    def named(self, layer: Layer) -> Layer:
        """`layer` by its one name, where it is named by a module. Raises TemporalLensError for a hook that its block has not."""
        hook = hook_of(layer)
        if hook is None:
            return layer
        if self._entry(hook) is not None:
            return str(Hook(hook.block, hook.site if hook.site == "mlp_in" else BEHIND_NORM))
        return str(Hook(hook.block, str(self._addition(hook).site)))

    def additions(self, number: int) -> list[Addition]:
        """What block `number` adds to the stream, as far as that is proven."""
        return self._summed(number).additions

    def _summed(self, number: int) -> Summands:
        if number not in self._summands:
            self._summands[number] = summands_of(self._stack, number, probe_rows(self._stack, self.tokenizer.all_special_ids))
        return self._summands[number]

    def _entry(self, hook: Hook) -> Entry | None:
        """Where `hook` is read, if that is in front of the MLP of its block. Raises TemporalLensError where it should be and is not."""
        found = self._summed(hook.block)
        if hook.site in found.entries:
            return found.entries[hook.site]
        if hook.site in found.before_mlp and not any(hook.site in one.modules for one in found.additions):
            return found.entries[BEHIND_NORM]
        if hook.site in ("mlp_in", BEHIND_NORM) or hook.site.endswith(GIVEN):
            known = f"stands at {' and '.join(found.before_mlp)}" if found.before_mlp else "is not known"
            raise TemporalLensError(f"{self.title} cannot be read at {hook}: what enters the MLP of its block {hook.block} {known}")
        return None

    def _addition(self, hook: Hook) -> Addition:
        """What stands at `hook`. Raises TemporalLensError where its block adds no such thing."""
        found = self.additions(hook.block)
        own = [one for one in found if one.site and hook.site in (one.site, *one.modules)]
        if own:
            return own[0]
        if not found:
            raise TemporalLensError(
                f"{self.title} cannot be read at {hook}: what its block {hook.block} adds to the residual stream is not what any of its "
                "modules give, so that it cannot be told apart"
            )
        added = " and by ".join(f"{one.modules[0]} ({one.site or 'neither attention nor a whole MLP'})" for one in found)
        raise TemporalLensError(
            f"{self.title} cannot be read at {hook}: what its block {hook.block} adds to the residual stream is given by {added}"
        )

    def _check_known(self, tokens: Int[Tensor, "B S"]) -> None:
        """Raise TemporalLensError for a token without an embedding."""
        largest = int(tokens.max())
        if largest >= self._embedded:
            spelling = self.tokenizer.convert_ids_to_tokens(largest)
            raise TemporalLensError(
                f"{self.title} has embeddings for {self._embedded} tokens, and its tokenizer gives token {largest} ({spelling!r}): the "
                "tokenizer is that of another model; put the model's own beside its weights"
            )


SIDES: dict[Side, int] = {"left": 0, "right": -1}
"""The column in which padding on a side stands."""
CACHED_TOKENS = 1024
"""In a pass in float32 on a processor: what passes between blocks then fits into its caches."""
NO_LIMIT = 1 << 30


class _Batch(NamedTuple):
    """Rows of one forward pass, on the model's device."""

    tokens: Int[Tensor, "B S"]
    mask: Bool[Tensor, "B S"]
    stream: Float[Tensor, "B S D"] | None = None  # to go on from

    def rows(self, own: slice) -> "_Batch":
        """Some of the rows, padded as they are."""
        return _Batch(self.tokens[own], self.mask[own], None if self.stream is None else self.stream[own])

    def without_padding(self, rows: Int[Tensor, " b"]) -> "_Batch":
        """Rows that have as many tokens, without their padding."""
        mask = self.mask[rows]

        def cut(values: Tensor) -> Tensor:
            return values[rows][mask].unflatten(0, (len(rows), -1))

        return _Batch(cut(self.tokens), cut(self.mask), None if self.stream is None else cut(self.stream))

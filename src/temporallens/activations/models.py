"""Language models as sources of residual streams: loaded only up to the layer that is wanted, read with forward hooks.

Any transformer of transformers will do, causal or encoder: the blocks are found as the largest list of modules that is as long
as the model is deep. Layers are counted from 0 and named by their output (`resid_post`); `embed` is the stream that enters
block 0. The configuration is cut to the wanted depth before the weights are read, so nothing above is built, read or run, and the
forward pass stops at the last wanted block: no final norm, no head. A model that was loaded whole can go on from a stream that it
is given.
"""

import hashlib
import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from temporallens.activations.clocks import Tokenizer
from temporallens.activations.model_files import Config, Network, Source, content_pin, find_source, read_config, read_network, tokenizer_of
from temporallens.errors import TemporalLensError

Layer = int | Literal["embed"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # float16 ends at 65,504, below what sinks reach


class _WantedBlocksDone(Exception):
    """Ends a forward pass after the last block that is wanted."""


def check_layer(layer: Layer, layers: int, title: str) -> None:
    """Raise TemporalLensError unless a model of `layers` layers has `layer`."""
    if layer == "embed" or (isinstance(layer, int) and 0 <= layer < layers):
        return
    raise TemporalLensError(f"layer {layer} is out of range: {title} has layers 0 to {layers - 1}")


class LanguageModel:
    """A transformer up to a layer, its tokenizer, and what is to be known about both. Made by `load`."""

    def __init__(self, name: str, source: Source, whole: Network, network: Network, tokenizer: Tokenizer, layers: int) -> None:
        self.name = name  # as the user wrote it
        self.title = source.title  # as messages write it
        self.revision = source.revision
        self.tokenizer = tokenizer
        self.layers = layers  # of the whole model, however many were loaded
        self._whole = whole  # the stack of blocks with the head on it, or the stack alone
        self._network = network
        self._blocks = _block_list(network, source.title)
        config = network.config.get_text_config()
        self.width: int = config.hidden_size
        self._position_offset = _position_offset(network)
        longest = getattr(config, "max_position_embeddings", None)
        self.context_length: int | None = longest - self._position_offset if longest else None  # None: no limit is known
        self._takes_positions = "position_ids" in inspect.signature(network.forward).parameters
        for limit in (tokenizer.backend_tokenizer.no_truncation, tokenizer.backend_tokenizer.no_padding):
            limit()  # rows are cut and padded here, by policy

    @classmethod
    def load(
        cls,
        model: str,
        *,
        up_to: Layer | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        device: str | None = None,
        revision: str | None = None,
        head: bool = False,
    ) -> "LanguageModel":
        """Load a shipped model, a hub model, a directory or a .gguf file, as far as layer `up_to` (None: all layers; with `head`,
        and what predicts tokens, where there is that).

        Raises TemporalLensError when there is no such model, when it has no such layer, or when weights or tokenizer are missing.
        """
        source = find_source(model, revision)
        config = read_config(source)
        text = config.get_text_config(decoder=True)
        layers = int(text.num_hidden_layers)
        if up_to is not None:
            check_layer(up_to, layers, source.title)
            _cut(text, layers, 1 if up_to == "embed" else up_to + 1)
        whole, network = read_network(source, config, DTYPES[dtype], head)
        whole.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(model, source._replace(revision=content_pin(source, config)), whole, network, tokenizer_of(source), layers)

    @property
    def device(self) -> torch.device:
        return next(self._network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self._blocks.parameters()).dtype

    @cached_property
    def _probed(self) -> tuple[bool, bool]:
        """What the first block tells when it is asked: whether a token sees those after it, and whether its output is a tuple."""
        outputs: list[Any] = []
        tokens = torch.tensor([[1, 1], [1, 2]], device=self.device)
        hook = self._blocks[0].register_forward_hook(lambda block, arguments, output: outputs.append(output))
        first, second = self.residuals(tokens, torch.ones_like(tokens, dtype=torch.bool), [0])[0][:, 0]
        hook.remove()
        return not torch.equal(first, second), isinstance(outputs[0], tuple)

    @property
    def is_encoder(self) -> bool:
        """Whether a token sees those after it."""
        return self._probed[0]

    @property
    def has_head(self) -> bool:
        """Whether it was loaded with what predicts the next token, which an encoder never does."""
        return self._whole is not self._network and not self.is_encoder

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
        """Any token will do, for padding is masked out and never stored."""
        token = self.tokenizer.pad_token_id
        return 0 if token is None else token

    @cached_property
    def tokenizer_sha256(self) -> str:
        return hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, on all cores and without what nobody asks for (offsets, special tokens)."""
        return [encoding.ids for encoding in self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def check_context(self, context_length: int) -> None:
        if self.context_length is not None and context_length > self.context_length:
            raise TemporalLensError(f"context length {context_length} is too long: {self.title} has {self.context_length} positions")

    def residuals(
        self, tokens: Int[Tensor, "B S"], mask: Bool[Tensor, "B S"], layers: Sequence[Layer]
    ) -> dict[Layer, Float[Tensor, "B S D"]]:
        """The residual stream at each of `layers`, in the model's dtype; what it holds where `mask` is False has no meaning.

        Padding may stand on either side: positions are counted over the tokens that the mask lets through.
        Raises TemporalLensError for a layer that was not loaded.
        """
        for layer in layers:
            self._check_loaded(layer)
        streams: dict[Layer, Tensor] = {}
        hooks = self._hook(layers, streams)
        try:
            with torch.no_grad():
                self._network(**self._arguments(tokens.to(self.device), mask.to(self.device)))
        except _WantedBlocksDone:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return streams

    def continued(
        self, stream: Float[Tensor, "B S D"], layer: Layer, tokens: Int[Tensor, "B S"], mask: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B S V"]:
        """What the model makes of `stream` as its residual stream at `layer`: logits, or, without a head, its last hidden states.

        Blocks up to `layer` are not run; for a stream as they would give it the result has the bits of a whole pass.
        """
        self._check_loaded(layer)
        given = stream.to(self.device, self.dtype)
        output = (given,) if self._probed[1] else given
        skipped = [] if layer == "embed" else list(self._blocks[: layer + 1])
        entry = self._blocks[0].register_forward_pre_hook(
            lambda block, arguments, named: ((given, *arguments[1:]), named) if arguments else ((), named | {"hidden_states": given}),
            with_kwargs=True,
        )
        try:
            for block in skipped:
                block.forward = lambda *arguments, **named: output
            with torch.no_grad():
                result = (self._whole if self.has_head else self._network)(**self._arguments(tokens.to(self.device), mask.to(self.device)))
        finally:
            entry.remove()
            for block in skipped:
                block.__dict__.pop("forward", None)  # its class's own comes back
        return result.logits if self.has_head else result.last_hidden_state

    def _check_loaded(self, layer: Layer) -> None:
        check_layer(layer, self.layers, self.title)
        if layer != "embed" and layer >= len(self._blocks):
            raise TemporalLensError(f"layer {layer} was not loaded: {self.title} was loaded up to layer {len(self._blocks) - 1}")

    def _arguments(self, tokens: Int[Tensor, "B S"], mask: Bool[Tensor, "B S"]) -> dict[str, Any]:
        """Arguments of the forward pass. Without padding there is no mask: attention is quicker for it."""
        arguments: dict[str, Any] = {"input_ids": tokens}
        if not bool(mask.all()):
            arguments["attention_mask"] = mask.long()
            if not self._takes_positions and not bool(mask[:, 0].all()):
                raise TemporalLensError(f"{self.title} takes no positions, so its rows cannot be padded on the left; choose padding: right")
        if self._takes_positions:
            arguments["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0) + self._position_offset
        return arguments

    def _hook(self, layers: Sequence[Layer], streams: dict[Layer, Tensor]) -> list[Any]:
        deepest = max((layer for layer in layers if layer != "embed"), default=None)

        def before_first(block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            streams["embed"] = arguments[0] if arguments else named["hidden_states"]
            if deepest is None:
                raise _WantedBlocksDone

        def after(layer: int) -> Any:
            def keep(block: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
                streams[layer] = output[0] if isinstance(output, tuple) else output
                if layer == deepest:
                    raise _WantedBlocksDone

            return keep

        hooks = [self._blocks[layer].register_forward_hook(after(layer)) for layer in layers if layer != "embed"]
        if "embed" in layers:
            hooks.append(self._blocks[0].register_forward_pre_hook(before_first, with_kwargs=True))
        return hooks


def _cut(config: Config, layers: int, kept: int) -> None:
    """Make `config` describe the lowest `kept` of its `layers` layers, lists with an entry per layer (`layer_types`) included."""
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == layers and not name.endswith(("_id", "_ids", "architectures")):
            setattr(config, name, value[:kept])
    config.num_hidden_layers = kept


def _block_list(network: Network, title: str) -> nn.ModuleList:
    """The list of blocks: the largest ModuleList that is as long as the model is deep."""
    depth = network.config.get_text_config().num_hidden_layers
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if not lists:
        raise TemporalLensError(f"{title} ({type(network).__name__}) has no list of {depth} blocks to read the residual stream from")
    return max(lists, key=lambda blocks: sum(parameter.numel() for parameter in blocks.parameters()))


def _position_offset(network: nn.Module) -> int:
    """The id of the first position: 0, except in RoBERTa's family, whose positions are counted from the padding id on."""
    for name, module in network.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0

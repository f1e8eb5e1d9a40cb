"""The stack of blocks in a network: found, cut to the lowest ones, read and entered by hooks.

Blocks are the largest list of modules that is as long as the model is deep. A network is always built whole, and what stands above the
wanted block is dropped before weights are read: the number of layers in its configuration stays, since some models scale or share by it.
A stream is `[B, S, D]` here, in whatever form a block hands it on (alone, first of a tuple or list, `[S, B, D]`), and so is what a
block adds to it, in whatever form the module that gives it does (`[B * S, D]`, too).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from temporallens.activations.language.hooks import Layer, block_of, hook_of
from temporallens.errors import TemporalLensError
from temporallens.precision import default_device

Network = Any  # transformers' PreTrainedModel
Streams = dict[Layer, Tensor]


class _WantedBlocksDone(Exception):
    """Ends a forward pass after the last block that is wanted."""


def base_network(whole: Network) -> Network:
    """The network below a head; itself where it has none."""
    if whole.base_model is not whole or whole.get_output_embeddings() is None:
        return whole.base_model
    return next(child for child in whole.children() if hasattr(child, "get_input_embeddings"))  # where its class names another


def text_stack(network: Network) -> Network:
    """The part of a network that holds the blocks for text: the language model of a multimodal one, else all of it."""
    return network if network.config.get_text_config() is network.config else network.get_decoder()


def block_list(stack: Network, title: str) -> nn.ModuleList:
    """The list of blocks. Raises TemporalLensError where no list of modules is as long as the model is deep."""
    depth = stack.config.get_text_config().num_hidden_layers
    lists = [module for module in stack.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if not lists:
        raise TemporalLensError(f"{title} ({type(stack).__name__}) has no list of {depth} blocks to read the residual stream from")
    return max(lists, key=lambda blocks: sum(parameter.numel() for parameter in blocks.parameters()))


def lowest_blocks_of(network_class: type, count: int, title: str) -> tuple[type, list[nn.ModuleList]]:
    """`network_class`, but that what it makes has no more than its lowest `count` blocks, and a list that then holds their list."""
    found: list[nn.ModuleList] = []

    def build(network: Network, *arguments: Any, **named: Any) -> None:
        network_class.__init__(network, *arguments, **named)  # type: ignore[misc]
        stack = text_stack(base_network(network))
        blocks = block_list(stack, title)
        del blocks[count:]
        found.append(blocks)

    same = {"__init__": build, "__module__": network_class.__module__, "__qualname__": network_class.__qualname__}
    return type(network_class.__name__, (network_class,), same), found


class BlockStack:
    """A network's blocks, and the form in which they hand on the stream. Made once the network has its weights."""

    def __init__(self, network: Network, blocks: nn.ModuleList) -> None:
        self.network = network  # the stack itself, without a head
        self.blocks = blocks
        self.transposed = False  # whether blocks hand on [S, B, D]
        self.wrapper: type | None = None  # what they wrap the stream in: tuple or list
        self.adding: dict[Layer, str] = {}  # by hook, the module of its block that gives it, once that is known
        self.entering: dict[Layer, tuple[str, int | str]] = {}  # the same of what is read: the module that is given it, and as what
        self.width: int = network.config.get_text_config().hidden_size

    @property
    def layers(self) -> list[Layer]:
        return ["embed", *range(len(self.blocks))]

    @property
    def device(self) -> torch.device:
        """Where a pass begins, and streams are given. What accelerate has put on the disk is nowhere."""
        return next((weight.device for weight in self.network.parameters() if weight.device.type != "meta"), torch.device(default_device()))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.blocks.parameters()).dtype

    def streams(self, arguments: dict[str, Any], layers: Sequence[Layer]) -> Streams:
        """The stream, or what is added to it, at each of `layers` in a forward pass that stops at the last of them."""
        streams: Streams = {}
        device = self.device

        def keep(layer: Layer, stream: Tensor) -> None:
            streams[layer] = stream.to(device)
            if streams.keys() >= set(layers):
                raise _WantedBlocksDone

        with self.watched(keep, layers), torch.no_grad(), suppress(_WantedBlocksDone):
            self.network(**arguments)
        return streams

    @contextmanager
    def watched(self, see: Callable[[Layer, Float[Tensor, "B S D"]], None], layers: Sequence[Layer]) -> Iterator[None]:
        """Let `see` have the stream at each of `layers` in the passes made meanwhile."""
        hooks = [hook for layer in layers for hook in self.at(layer, partial(see, layer))]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def replaced(self, stream: Float[Tensor, "B S D"], layer: Layer) -> Iterator[None]:
        """Let `stream` take the place of what stands at `layer` in the passes made meanwhile."""
        hooks = self.at(layer, lambda _: stream)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def skipped(self, stream: Float[Tensor, "B S D"], layer: Layer) -> Iterator[None]:
        """The same without running the blocks up to `layer`, whose stream is then all that those above get from them."""
        blocks = list(self.blocks[: block_of(layer) + 1])
        own = [block.__dict__.get("forward") for block in blocks]  # where accelerate has given it another than its class's
        given = self._turned(stream)
        output = given if self.wrapper is None else self.wrapper([given])
        try:
            for block in blocks:
                block.forward = lambda *_, **__: output
            with self.replaced(stream, "embed"):
                yield
        finally:
            for block, forward in zip(blocks, own, strict=True):
                del block.forward
                if forward is not None:
                    block.forward = forward

    def _turned(self, stream: Tensor) -> Tensor:
        return stream.transpose(0, 1) if self.transposed else stream

    def as_stream(self, values: Tensor, stream: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """What a module inside a block gives where `stream` enters the block."""
        return self._turned(values.reshape(self._turned(stream).shape))

    def at(self, layer: Layer, use: Callable[[Tensor], Tensor | None]) -> list[Any]:
        """Hooks on what stands at `layer`; what `use` returns takes its place."""
        hook = hook_of(layer)
        if hook is None:
            return [self.before(0, use) if layer == "embed" else self.after(block_of(layer), use)]
        entered: list[Tensor] = []
        path, argument = self.entering[layer] if layer in self.entering else (self.adding[layer], None)
        module = self.blocks[hook.block].get_submodule(path)

        def within(values: Tensor) -> Tensor | None:
            stream = use(self.as_stream(values, entered[0]).clone())  # some blocks go on in place
            if stream is None:
                return None
            return self._turned(stream).reshape(values.shape).to(values.device, copy=True)  # blocks are spread over several, perhaps

        entering = self.before(hook.block, lambda stream: entered.__setitem__(slice(None), [stream]))
        return [entering, _on_output(module, within) if argument is None else _on_input(module, argument, within)]

    def before(self, number: int, use: Callable[[Tensor], Tensor | None]) -> Any:
        """A hook on what block `number` is given; what `use` returns takes its place."""

        def hook(block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            stream = use(self._turned(arguments[0] if arguments else named["hidden_states"]))
            if stream is None:
                return None
            given = self._turned(stream)
            return ((given, *arguments[1:]), named) if arguments else ((), named | {"hidden_states": given})

        return self.blocks[number].register_forward_pre_hook(hook, with_kwargs=True)

    def after(self, number: int, use: Callable[[Tensor], Tensor | None]) -> Any:
        """A hook on what block `number` gives; what `use` returns takes its place."""

        def turned(values: Tensor) -> Tensor | None:
            stream = use(self._turned(values))
            return None if stream is None else self._turned(stream)

        return _on_output(self.blocks[number], turned)


def _on_input(module: nn.Module, argument: int | str, use: Callable[[Tensor], Tensor | None]) -> Any:
    """A hook on one argument of `module`, by its place or name; what `use` returns takes its place."""

    def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        given = use(arguments[argument] if isinstance(argument, int) else named[argument])
        if given is None:
            return None
        if isinstance(argument, str):
            return arguments, named | {argument: given}
        return (*arguments[:argument], given, *arguments[argument + 1 :]), named

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _on_output(module: nn.Module, use: Callable[[Tensor], Tensor | None]) -> Any:
    """A hook on what `module` gives, or the first of it; what `use` returns takes its place."""

    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        several = isinstance(output, tuple | list)
        given = use(output[0] if several else output)
        if given is None:
            return None
        return type(output)([given, *output[1:]]) if several else given

    return module.register_forward_hook(hook)

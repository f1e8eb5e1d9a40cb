"""What a block adds to the residual stream, found by following one pass through it, and which modules give it.

Families write their blocks in many ways (norms before or behind, attention and MLP one after the other or side by side, mixtures,
recurrences), so no family is known by name. The stream that enters a block, and what each of its modules is given and gives, are
recorded for a few tokens; from them a chain of sums is sought that leads to the stream that leaves it, every sum exact to the last bit:

    stream + added = what another module is given, or what leaves,

where a norm may follow each sum (as in BERT), and the last two may be one (side by side, as in GPT-NeoX). What is on the chain has been
proven; whether it is attention's or the MLP's is then read off the names of its modules. Blocks with factors between (as in MiniCPM-3)
have no such chain, and none is made up for them.
"""

import re
from collections import Counter
from contextlib import suppress
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from temporallens.activations.language.block_stack import BlockStack
from temporallens.activations.language.hooks import Site
from temporallens.activations.language.model_check import NOT_RUN

MOST = 4
"""Additions of a block."""
KINDS: tuple[tuple[Site | None, re.Pattern[str]], ...] = (
    ("attn_out", re.compile(r"attn|attention", re.IGNORECASE)),
    (None, re.compile(r"mamba|recurrent|\bconv|ShortConv")),  # classes of such name the mixture of their model, too
    ("mlp_out", re.compile(r"mlp|ffn|feed_?forward|\bff\b|\bfc\d|moe|^output\.dense$", re.IGNORECASE)),
)
"""What modules of these names, or classes, are; BERT's family calls its MLP `intermediate` and `output`."""


class Addition(NamedTuple):
    """One summand of a block."""

    site: Site | None  # None: neither attention nor a whole MLP
    modules: tuple[str, ...]  # paths in the block of those that give it, the outermost first


class _Source(NamedTuple):
    """Something that modules give, in the form of a stream."""

    modules: tuple[str, ...]  # the outermost first
    gave: Float[Tensor, "B S D"]


class _Trace(NamedTuple):
    """What one block did in one pass."""

    entered: Float[Tensor, "B S D"]
    left: Float[Tensor, "B S D"]
    given: list[tuple[str, Tensor]]  # to modules, in the order of their calls
    sources: list[_Source]  # of modules that were called once


def additions_of(stack: BlockStack, number: int, tokens: Int[Tensor, "B S"]) -> list[Addition]:
    """What block `number` adds to the stream, in its order; nothing where that cannot be proven."""
    trace = _traced(stack, number, tokens)
    chain = None if trace is None else _chain(trace, trace.entered, MOST)
    if trace is None or chain is None:
        return []
    sites = [_site(stack.blocks[number], source, trace) for source in chain]
    return [Addition(site if sites.count(site) == 1 else None, source.modules) for site, source in zip(sites, chain, strict=True)]


def _traced(stack: BlockStack, number: int, tokens: Int[Tensor, "B S"]) -> _Trace | None:
    """A pass of `tokens`; None where the block is not run."""
    recorder = _Recorder(stack)
    hooks = [stack.before(number, partial(recorder.end, "entered"))]
    for path, module in stack.blocks[number].named_modules():
        if path:
            hooks.append(module.register_forward_pre_hook(partial(recorder.given_to, path), with_kwargs=True))
            hooks.append(module.register_forward_hook(partial(recorder.given_by, path)))
    hooks.append(stack.after(number, partial(recorder.end, "left")))
    try:
        with torch.no_grad(), suppress(*NOT_RUN):  # one that lacks its upper blocks may not get to its end
            stack.network(input_ids=tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return recorder.trace()


class _Recorder:
    """Takes copies of what passes by, as some blocks add in place. Modules that several blocks share are no block's own."""

    def __init__(self, stack: BlockStack) -> None:
        self._stack = stack
        self._ends: dict[str, Tensor] = {}
        self._calls: Counter[str] = Counter()
        self._given: list[tuple[str, Tensor]] = []
        self._gave: dict[str, Tensor] = {}

    def end(self, which: str, stream: Float[Tensor, "B S D"]) -> None:
        self._ends[which] = stream.clone()

    def given_to(self, path: str, _module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._calls[path] += 1
        self._given += [(path, self._stream(value)) for value in (*arguments, *named.values()) if self._fits(value)]

    def given_by(self, path: str, _module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
        first = output[0] if isinstance(output, tuple | list) else output
        if self._fits(first):
            self._gave[path] = self._stream(first)

    def _fits(self, value: Any) -> bool:
        """Whether it is as large as the stream: modules may flatten its rows."""
        stream = self._ends.get("entered")
        return stream is not None and isinstance(value, Tensor) and value.numel() == stream.numel() and value.shape[-1] == stream.shape[-1]

    def _stream(self, value: Tensor) -> Float[Tensor, "B S D"]:
        return self._stack.as_stream(value, self._ends["entered"]).clone()

    def trace(self) -> _Trace | None:
        """None where the block was not run to its end."""
        if "left" not in self._ends:
            return None
        once = {path: stream for path, stream in self._gave.items() if self._calls[path] == 1}
        return _Trace(self._ends["entered"], self._ends["left"], self._given, _sources(once))


def _sources(gave: dict[str, Tensor]) -> list[_Source]:
    """Modules that give the same are one source."""
    found: list[_Source] = []
    for path in sorted(gave, key=lambda path: path.count(".")):
        same = next((entry for entry, source in enumerate(found) if _same(source.gave, gave[path])), None)
        if same is None:
            found.append(_Source((path,), gave[path]))
        else:
            found[same] = found[same]._replace(modules=(*found[same].modules, path))
    return found


def _chain(trace: _Trace, stream: Float[Tensor, "B S D"], most: int) -> list[_Source] | None:
    """What is to be added to `stream`, so that it leaves the block; None where nothing leads there."""
    if _same(stream, trace.left):
        return []
    if not most:
        return None
    for target in (*(value for _, value in trace.given), trace.left):
        source = next((source for source in trace.sources if _same(stream + source.gave, target)), None)
        if source is None or _same(stream, target):
            continue
        behind = [
            other.gave for other in trace.sources if any(path in other.modules and _same(value, target) for path, value in trace.given)
        ]
        for following in (target, *behind):
            rest = _chain(trace, following, most - 1)
            if rest is not None:
                return [source, *rest]
    return next(([one, two] for one, two in combinations(trace.sources, 2) if _both(stream, one.gave, two.gave, trace.left)), None)


def _both(stream: Tensor, one: Tensor, two: Tensor, target: Tensor) -> bool:
    """Whether both added to the stream, in whatever order, are `target`."""
    return any(_same(total, target) for total in ((one + two) + stream, (stream + one) + two, (stream + two) + one))


def _site(block: nn.Module, source: _Source, trace: _Trace) -> Site | None:
    """By the paths of its modules, by their classes, and else by those that gave what they were given: a norm may follow an MLP."""
    before = [value for path, value in trace.given if path in source.modules]
    feeding = [path for other in trace.sources if any(_same(other.gave, value) for value in before) for path in other.modules]
    classes = [type(block.get_submodule(path)).__name__ for path in source.modules]
    for name in (*source.modules, *classes, *feeding):
        for site, pattern in KINDS:
            if pattern.search(name):
                return site
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)

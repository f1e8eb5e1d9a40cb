"""What a block adds to the residual stream, found by following one pass through it, and which modules give it.

Families write their blocks in many ways (norms before or behind, attention and MLP one after the other or side by side, mixtures,
recurrences), so no family is known by name. The stream that enters a block, and what each of its modules is given and gives, are
recorded for a few tokens; from them a chain of sums is sought that leads to the stream that leaves it, every sum exact to the last bit:

    stream + added = what another module is given, or what leaves,

where a norm may follow each sum (as in BERT), and the last two may be one (side by side, as in GPT-NeoX). What is on the chain has been
proven; whether it is attention's or the MLP's is then read off the names of its modules. Blocks with factors between (as in MiniCPM-3)
have no such chain, and none is made up for them. Two places in front of an MLP follow: the stream to which its output is added, by the
chain, and what the first of its modules is given, by their names.
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
from temporallens.activations.language.hooks import BEHIND_NORM, GIVEN, Site
from temporallens.activations.language.model_check import NOT_RUN

MOST = 4
"""Additions of a block."""
KINDS: tuple[tuple[Site | None, re.Pattern[str]], ...] = (
    ("attn_out", re.compile(r"attn|attention", re.IGNORECASE)),
    (None, re.compile(r"mamba|recurrent|\bconv|ShortConv")),  # classes of such name the mixture of their model, too
    ("mlp_out", re.compile(r"mlp|ffn|feed_?forward|\bff\b|\bfc\d|moe|^intermediate|^output\.dense$", re.IGNORECASE)),
)
"""What modules of these names, or classes, are; BERT's family calls its MLP `intermediate` and `output`."""
NORM = re.compile("norm", re.IGNORECASE)


class Addition(NamedTuple):
    """One summand of a block."""

    site: Site | None  # None: neither attention nor a whole MLP
    modules: tuple[str, ...]  # paths in the block of those that give it, the outermost first


class Entry(NamedTuple):
    """Something that a module is given."""

    module: str  # its path in the block
    argument: int | str  # which of its arguments


class Summands(NamedTuple):
    """What a block adds to the stream, in its order, and what its MLP reads; nothing where that cannot be proven."""

    additions: list[Addition]
    entries: dict[str, Entry]  # by Entrance
    before_mlp: tuple[str, ...] = ()  # norms that give what the MLP is given, and the MLP's own input


class _Given(NamedTuple):
    entry: Entry
    value: Float[Tensor, "B S D"]


class _Step(NamedTuple):
    """One sum of a chain."""

    stream: Float[Tensor, "B S D"]
    source: "_Source"


class _Source(NamedTuple):
    """Something that modules give, in the form of a stream."""

    modules: tuple[str, ...]  # the outermost first
    gave: Float[Tensor, "B S D"]


class _Trace(NamedTuple):
    """What one block did in one pass."""

    entered: Float[Tensor, "B S D"]
    left: Float[Tensor, "B S D"]
    given: list[_Given]  # to modules, in the order of their calls
    sources: list[_Source]  # of modules that were called once


def summands_of(stack: BlockStack, number: int, tokens: Int[Tensor, "B S"]) -> Summands:
    """What block `number` adds to the stream, and where its MLP reads."""
    trace = _traced(stack, number, tokens)
    chain = None if trace is None else _chain(trace, trace.entered, MOST)
    if trace is None or chain is None:
        return Summands([], {})
    block = stack.blocks[number]
    sites = [_site(block, step.source, trace) for step in chain]
    known = [site if sites.count(site) == 1 else None for site in sites]
    additions = [Addition(site, step.source.modules) for site, step in zip(known, chain, strict=True)]
    if "mlp_out" not in known:
        return Summands(additions, {})
    return _entered(block, chain[known.index("mlp_out")].stream, trace, additions)


def _entered(block: nn.Module, stream: Float[Tensor, "B S D"], trace: _Trace, additions: list[Addition]) -> Summands:
    """With the two places in front of the MLP whose output is added to `stream`."""
    added = next(given.entry for given in trace.given if _same(given.value, stream))
    several = Counter(given.entry.module for given in trace.given)  # a module that adds to the stream itself is given that, too
    alone = (given for given in trace.given if several[given.entry.module] == 1)
    first = next((given for given in alone if _is_mlp(block, given.entry.module)), None)
    if first is None:
        return Summands(additions, {"mlp_in": added})
    giving = [path for source in trace.sources if _same(source.gave, first.value) for path in source.modules if _is_norm(block, path)]
    return Summands(additions, {"mlp_in": added, BEHIND_NORM: first.entry}, (*giving, f"{first.entry.module}{GIVEN}"))


def _is_mlp(block: nn.Module, path: str) -> bool:
    """Whether a module is an MLP or a part of one, by its path or else by its class; norms are none, whatever they are called after."""
    names = (path, type(block.get_submodule(path)).__name__)
    return (
        not _is_norm(block, path) and next((site for name in names for site, pattern in KINDS if pattern.search(name)), None) == "mlp_out"
    )


def _is_norm(block: nn.Module, path: str) -> bool:
    return any(NORM.search(name) for name in (path.rpartition(".")[2], type(block.get_submodule(path)).__name__))


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
        self._given: list[_Given] = []
        self._gave: dict[str, Tensor] = {}

    def end(self, which: str, stream: Float[Tensor, "B S D"]) -> None:
        self._ends[which] = stream.clone()

    def given_to(self, path: str, _module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._calls[path] += 1
        passed: list[tuple[int | str, Any]] = [*enumerate(arguments), *named.items()]
        self._given += [_Given(Entry(path, key), self._stream(value)) for key, value in passed if self._fits(value)]

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


def _chain(trace: _Trace, stream: Float[Tensor, "B S D"], most: int) -> list[_Step] | None:
    """What is to be added to `stream`, so that it leaves the block; None where nothing leads there."""
    if _same(stream, trace.left):
        return []
    if not most:
        return None
    for target in (*(given.value for given in trace.given), trace.left):
        source = next((source for source in trace.sources if _same(stream + source.gave, target)), None)
        if source is None or _same(stream, target):
            continue
        behind = [
            other.gave
            for other in trace.sources
            if any(given.entry.module in other.modules and _same(given.value, target) for given in trace.given)
        ]
        for following in (target, *behind):
            rest = _chain(trace, following, most - 1)
            if rest is not None:
                return [_Step(stream, source), *rest]
    pairs = (pair for pair in combinations(trace.sources, 2) if _both(stream, pair[0].gave, pair[1].gave, trace.left))
    return next(([_Step(stream, source) for source in pair] for pair in pairs), None)


def _both(stream: Tensor, one: Tensor, two: Tensor, target: Tensor) -> bool:
    """Whether both added to the stream, in whatever order, are `target`."""
    return any(_same(total, target) for total in ((one + two) + stream, (stream + one) + two, (stream + two) + one))


def _site(block: nn.Module, source: _Source, trace: _Trace) -> Site | None:
    """By the paths of its modules, by their classes, and else by those that gave what they were given: a norm may follow an MLP."""
    before = [given.value for given in trace.given if given.entry.module in source.modules]
    feeding = [path for other in trace.sources if any(_same(other.gave, value) for value in before) for path in other.modules]
    classes = [type(block.get_submodule(path)).__name__ for path in source.modules]
    for name in (*source.modules, *classes, *feeding):
        for site, pattern in KINDS:
            if pattern.search(name):
                return site
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)

"""What a network is asked when it is loaded, with a few tokens: whether its stream can be read as this package reads it, and how.

Every way to be wrong that was met in transformers' architectures is tried here instead of being known by name. Refused in one sentence:
blocks that do not go on from each other's output, streams that differ from the network's own hidden states, outputs that depend on the
other rows of a batch. Found out: whether tokens see those after them, which position ids the network would give by itself, and on which
sides rows can be padded; where padding is not exact, rows of one length are run together.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from temporallens.activations.language.block_stack import BlockStack, Streams
from temporallens.activations.language.hooks import Layer
from temporallens.activations.language.loading import is_dense
from temporallens.errors import TemporalLensError, first_line

Side = Literal["right", "left"]
LONG, SHORT = 6, 3
"""Tokens of the rows: the shorter one is less than the reach of most convolutions, so that padding shows in every token."""
FIRST_POSITIONS = range(4)
"""Ids that a row's first position may have; RoBERTa's family counts from 2."""
MOST_UNUSED = 8
"""Entries of a table of positions that stand for no position, at most."""
LOWEST = 4
"""Blocks that are asked in float32: the first of every kind that a network has, as a rule."""
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
"""Of a token's stream, relative to its norm: passes of another shape add up in another order, in bfloat16 to a few percent after thirty
blocks."""
NOT_RUN = (LookupError, ValueError, TypeError, AttributeError, RuntimeError, AssertionError, ImportError)
"""What networks raise for arguments that they do not take."""


NOISE = 1e-4
"""Of a token's stream after one block, relative to its norm: experts add up in another order when other tokens come to them."""


class DoesNotRunError(TemporalLensError):
    """A network does not run on tokens, in the precision that it has."""


class Traits(NamedTuple):
    """How a network is to be read."""

    encoder: bool  # whether a token sees those after it
    first_position: int | None  # id of a row's first position, where explicit ids do what the network's own do; None: give it none
    padded: frozenset[Side]  # where padding changes nothing
    longest_padded: int | None  # tokens up to which that holds; None: whatever the length


class _Probe(NamedTuple):
    """Rows of ordinary tokens: `rows[1]` shares the first with `rows[0]`, and no other."""

    rows: Int[Tensor, "2 S"]
    short: Int[Tensor, " s"]
    odd: Int[Tensor, " o"]  # the tokenizer's special tokens, some of which a network may not count as positions
    padding: int


def check_network(stack: BlockStack, title: str, takes_positions: bool, special: Iterable[int], padding: int) -> Traits:
    """Ask the network of `stack`, and tell `stack` in which form it hands on its stream. Raises TemporalLensError where it cannot be
    read; the sentence says which check failed."""
    probe = _probe(stack, set(special), padding)
    _learn_form(stack, probe, title)
    pair = _checked_pass(stack, probe.rows, title)
    alone = stack.streams({"input_ids": probe.rows[:1]}, stack.layers)
    again = stack.streams({"input_ids": probe.rows[:1]}, stack.layers)
    if not _alike(alone, again) or not _alike(alone, {layer: stream[:1] for layer, stream in pair.items()}):
        raise TemporalLensError(
            f"{title} cannot be read exactly: its streams differ from pass to pass, or with the other rows of a batch (checked with "
            f"{probe.rows.shape[1]} tokens)"
        )
    with _lowest_in_float32(stack) as (layers, exact):
        alone = stack.streams({"input_ids": probe.rows[:1]}, layers)
        changed = stack.streams({"input_ids": probe.rows[1:]}, layers)
        first = _first_position(stack, probe, alone) if takes_positions else None
        sides: list[Side] = ["right", "left"]
        return Traits(
            encoder=_sees_later_tokens(alone, changed),
            first_position=first,
            padded=frozenset(side for side in sides if exact and _padding_is_exact(stack, probe, side, first, layers)),
            longest_padded=_longest_of_one_rotation(stack.network.config.get_text_config()),
        )


@contextmanager
def _lowest_in_float32(stack: BlockStack) -> Iterator[tuple[list[Layer], bool]]:
    """The layers of a network in float32; of another its lowest, in float32 meanwhile, for what bfloat16 rounds away is as large as what
    padding changes in some networks. And whether that could be done: not with weights that are packed, or on the disk."""
    checked = len(stack.blocks) if stack.dtype == torch.float32 else LOWEST
    above = {id(tensor) for block in stack.blocks[checked:] for tensor in (*block.parameters(), *block.buffers())}
    tensors = [tensor for tensor in (*stack.network.parameters(), *stack.network.buffers()) if id(tensor) not in above]
    rounded = [(tensor, tensor.data) for tensor in tensors if tensor.dtype in (torch.bfloat16, torch.float16)]
    exact = all(is_dense(tensor) for tensor, _ in rounded)
    rounded = rounded if exact else []
    try:
        for tensor, data in rounded:
            tensor.data = data.float()
        yield stack.layers[: checked + 1], exact
    finally:
        for tensor, data in rounded:
            tensor.data = data


def _probe(stack: BlockStack, special: set[int], padding: int) -> _Probe:
    """Tokens that stand for text, as far as the vocabulary has enough of them."""
    rows = probe_rows(stack, special)
    odd = torch.tensor([token for token in sorted(special) if token < embedded_tokens(stack)][: LONG - 1], dtype=torch.long)
    return _Probe(rows, rows[0, 1 : 1 + SHORT], odd.to(stack.device), padding)


def probe_rows(stack: BlockStack, special: Iterable[int]) -> Int[Tensor, "2 S"]:
    """Rows of ordinary tokens, as far as the vocabulary has enough of them; both begin with the same."""
    ordinary = _ordinary_tokens(stack, set(special))
    picked = torch.tensor([ordinary[number * len(ordinary) // (2 * LONG)] for number in range(2 * LONG)], device=stack.device)
    return torch.stack([picked[:LONG], torch.cat([picked[:1], picked[LONG + 1 :]])])


def _ordinary_tokens(stack: BlockStack, special: set[int]) -> list[int]:
    count = embedded_tokens(stack)
    special = special | {getattr(stack.network.config, "pad_token_id", None) or 0}
    return [token for token in range(count) if token not in special] or list(range(count))


def longest_row(stack: BlockStack, special: Iterable[int]) -> int | None:
    """Tokens that a row can have, None where no limit is known. A table of positions may begin with entries that stand for none, so a
    network that has one is run with as many as it says, and less. Not on a GPU, where an index beyond a table ends the process."""
    network = stack.network
    stated = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(stated, int) or stated <= 0:
        return None
    words = getattr(network.get_input_embeddings(), "weight", None)
    tables = (table for table in network.parameters() if table.ndim == 2 and table is not words)
    if not any(abs(len(table) - stated) <= MOST_UNUSED for table in tables):
        return stated
    token = _ordinary_tokens(stack, set(special))[0]
    for length in range(stated, stated - MOST_UNUSED, -1):
        try:
            stack.streams({"input_ids": torch.full((1, length), token, device=stack.device)}, ["embed"])
        except NOT_RUN:
            continue
        return length
    return stated


def embedded_tokens(stack: BlockStack) -> int:
    """How many token ids the network has embeddings for."""
    weight = getattr(stack.network.get_input_embeddings(), "weight", None)
    return int(stack.network.config.get_text_config().vocab_size if weight is None else weight.shape[0])


def _learn_form(stack: BlockStack, probe: _Probe, title: str) -> None:
    """Whether blocks wrap the stream, and in which order its dimensions are."""
    outputs: list[Any] = []
    hook = stack.blocks[0].register_forward_hook(lambda block, arguments, output: outputs.append(output))
    try:
        stream = stack.streams({"input_ids": probe.rows}, stack.layers).get(0)
    except NOT_RUN as error:
        hint = "" if stack.dtype == torch.float32 else "; it may run with compute_dtype: float32"
        raise DoesNotRunError(f"{title} cannot be read: it does not run on tokens alone ({first_line(error)}){hint}") from error
    finally:
        hook.remove()
    if stream is None:
        raise TemporalLensError(f"{title} cannot be read: a forward pass does not run its blocks")
    batch, length = probe.rows.shape
    if stream.ndim != 3 or stream.shape[:2] not in {(batch, length), (length, batch)}:
        raise TemporalLensError(
            f"{title} cannot be read: after a block its stream has shape {tuple(stream.shape)} for {batch} rows of {length} tokens, "
            "and not rows, tokens, width"
        )
    stack.transposed = stream.shape[:2] == (length, batch)
    stack.width = stream.shape[2]
    stack.wrapper = next((kind for kind in (tuple, list) if isinstance(outputs[0], kind)), None)


def _checked_pass(stack: BlockStack, rows: Int[Tensor, "2 S"], title: str) -> Streams:
    """The streams of one pass, in which every block goes on from what the one before it gave, and that are the network's own."""
    streams: Streams = {}
    entered: dict[int, Tensor] = {}
    hooks = [stack.before(number, partial(entered.__setitem__, number)) for number in range(len(stack.blocks))]
    own: Any = None
    with stack.watched(streams.__setitem__, stack.layers), torch.no_grad():
        try:
            own = getattr(stack.network(input_ids=rows, output_hidden_states=True), "hidden_states", None)
        except NOT_RUN:  # one that lacks its upper blocks may not get to its end, or gives no hidden states; its blocks are compared
            stack.streams({"input_ids": rows}, stack.layers)
        finally:
            for hook in hooks:
                hook.remove()
    for layer in stack.layers:
        check_finite(streams[layer], layer, title)
    for number in range(1, len(stack.blocks)):
        if number not in entered or not _same(entered[number], streams[number - 1]):
            raise TemporalLensError(
                f"{title} cannot be read: what its block {number - 1} gives is not what block {number} goes on from, so there is no one "
                "residual stream between them"
            )
    _compare_with_own(streams, own, title)
    return streams


def check_finite(stream: Float[Tensor, "*_ D"], layer: Layer, title: str) -> None:
    """Raise TemporalLensError for NaN and infinity."""
    if not torch.isfinite(stream.sum(dtype=torch.float64)):
        raise TemporalLensError(
            f"the activations of {title} hold NaN or infinity at layer {layer}: its weights are damaged, or too large for {stream.dtype}"
        )


def _compare_with_own(streams: Streams, own: Any, title: str) -> None:
    """Raise TemporalLensError unless the outputs of all blocks but the last, which a norm may follow, stand in order among the hidden
    states that the network gives itself: as a rule behind what enters the first block, in RWKV from the first on."""
    inner = [streams["embed"], *(streams[number] for number in range(len(streams) - 2))]
    if not isinstance(own, tuple | list) or len(own) < len(inner) - 1 or not all(isinstance(state, Tensor) for state in own):
        return  # it gives none, or others
    for expected in (inner, inner[1:]):
        if len(own) >= len(expected) and all(_same(state, stream) for state, stream in zip(own, expected, strict=False)):
            return
    raise TemporalLensError(f"{title} cannot be read: what its blocks give differs from the hidden states that it gives itself")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _sees_later_tokens(streams: Streams, changed: Streams) -> bool:
    """Whether the first token's stream is another when all later tokens are others, judged where it first differs at all."""
    differences = (_difference(stream[:, :1], changed[layer][:, :1]) for layer, stream in streams.items())
    return next((difference > NOISE for difference in differences if difference > 0), False)


def _alike(expected: Streams, found: Streams) -> bool:
    """Whether streams are the same but for the order of sums."""
    return all(_difference(stream, found[layer]) <= TOLERANCE[stream.dtype] for layer, stream in expected.items())


def _difference(expected: Float[Tensor, "B S D"], found: Float[Tensor, "B S D"]) -> float:
    """Of a token, relative to its norm: the largest in float32; the middle one in bfloat16, in which a router near a tie may send
    single tokens to another expert."""
    if expected.shape != found.shape:
        return float("inf")
    norms = expected.float().norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    difference = ((expected.float() - found.float()).norm(dim=-1) / norms).flatten()
    worst = difference.max() if expected.dtype == torch.float32 else difference.median()
    return float(worst.nan_to_num(nan=float("inf")))


def _first_position(stack: BlockStack, probe: _Probe, alone: Streams) -> int | None:
    """The id to begin with so that explicit position ids give what the network gives without any; None where none does, or where the
    network counts by the tokens themselves and would not count one of the tokenizer's special ones."""
    mixed = torch.cat([probe.odd, probe.short])[None]
    layers = list(alone)
    uncounted = stack.streams({"input_ids": mixed}, layers)
    for first in FIRST_POSITIONS:
        try:
            explicit = [stack.streams(_at_positions(row, first), layers) for row in (probe.rows[:1], mixed)]
        except NOT_RUN:
            return None
        if _alike(alone, explicit[0]):
            return first if _alike(uncounted, explicit[1]) else None
    return None


def _at_positions(row: Int[Tensor, "1 S"], first: int) -> dict[str, Any]:
    return {"input_ids": row, "position_ids": torch.arange(first, first + row.shape[1], device=row.device)[None]}


def _padding_is_exact(stack: BlockStack, probe: _Probe, side: Side, first_position: int | None, layers: list[Layer]) -> bool:
    """Whether a short row gives beside a longer one what it gives alone."""
    row, short = probe.rows[0], probe.short
    empty = len(row) - len(short)
    tokens, mask = torch.stack([row, torch.full_like(row, probe.padding)]), torch.ones(2, len(row), dtype=torch.bool, device=row.device)
    own = slice(empty, None) if side == "left" else slice(0, len(short))
    tokens[1, own] = short
    mask[1] = False
    mask[1, own] = True
    try:
        together = stack.streams(padded_arguments(tokens, mask, first_position), layers)
    except NOT_RUN:
        return False
    alone = stack.streams({"input_ids": short[None]}, layers)
    return _alike(alone, {layer: stream[1:, own] for layer, stream in together.items()})


def padded_arguments(tokens: Int[Tensor, "B S"], mask: Bool[Tensor, "B S"], first_position: int | None) -> dict[str, Any]:
    """Arguments of a forward pass. Without padding there is no mask: attention is quicker for it. Position ids are given only where rows
    begin at different places: by default a network counts them itself, as it was trained to."""
    arguments: dict[str, Any] = {"input_ids": tokens}
    if not bool(mask.all()):
        arguments["attention_mask"] = mask.long()
    if first_position is not None and not bool(mask[:, 0].all()):
        arguments["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0) + first_position
    return arguments


def _longest_of_one_rotation(config: Any) -> int | None:
    """Rows up to so many tokens are rotated by the same angles whatever row they stand beside; None: all rows. LongRoPE and dynamic NTK
    choose their angles by the longest row of a batch."""
    rotation = getattr(config, "rope_parameters", None) or {}
    kinds = [rotation, *(part for part in rotation.values() if isinstance(part, dict))]
    if not any(part.get("rope_type") in {"longrope", "dynamic"} for part in kinds):
        return None
    original = [part.get("original_max_position_embeddings") for part in kinds]
    known = [length for length in (*original, getattr(config, "original_max_position_embeddings", None)) if length]
    return min(known, default=config.max_position_embeddings)

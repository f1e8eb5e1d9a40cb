"""Sparse codes: after the encoder product, a TopK-like step touches only the k features of each row that are in use.

The codes of a batch are kept as (row, feature, value) in row order. Decoding, the gradient of the codes and the gradients of
both weight matrices then cost k rows per activation instead of F, and the dense matrix of codes never exists: the encoder product
runs over chunks of rows, of which only the entries that can be selected are kept. Where a position mask is closed, the
encoder's columns are not multiplied either. Gradients are exact: `sparse_encode` and `sparse_decode` are ordinary differentiable
functions whose backward passes were derived by hand and are tested against the dense ones.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from temporallens.processes import gathered, lowest, total

CHUNK_ROWS = 1024
"""Rows of one encoder product: enough to keep it fast, few enough that its result is small beside the dense one."""

CHUNK_ENTRIES = 1 << 24
"""Entries that it has at most: of a dictionary of more than 16,384 features it has fewer rows."""

WORD_BITS = 3
WORD = 1 << WORD_BITS
"""Comparison results are searched eight at a time, as one integer: hits are rare."""

BFLOAT16_MARGIN = 0.03
"""Largest relative error of a bfloat16 pre-activation near the threshold; candidates so near to the guess are looked at again."""

SAMPLE_ROWS = 256
"""Rows from which a first guess of the threshold is taken."""

STEADY = 0.96
"""The least share of one batch's threshold that the next batch's is expected to be; where it is less, a second pass follows."""


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which features each row uses, in row order, of a dense matrix of `rows` by `features`."""

    row: Int[Tensor, " M"]
    feature: Int[Tensor, " M"]
    rows: int
    features: int

    @cached_property
    def offsets(self) -> Int[Tensor, " O"]:
        """Row n owns entries offsets[n] to offsets[n + 1]. Sums, unlike counts, have a size that the device need not be asked for."""
        counts = torch.zeros(self.rows, dtype=torch.int64, device=self.row.device).index_add_(0, self.row, torch.ones_like(self.row))
        return functional.pad(counts.cumsum(0), (1, 0))

    def flat(self) -> Int[Tensor, " M"]:
        """Indices into the flattened matrix."""
        return self.row * self.features + self.feature

    def row_sum(self, values: Float[Tensor, " M"]) -> Float[Tensor, " N"]:
        return values.new_zeros(self.rows).index_add_(0, self.row, values)

    def feature_sum(self, values: Float[Tensor, " M"]) -> Float[Tensor, " F"]:
        return values.new_zeros(self.features).index_add_(0, self.feature, values)

    def combine(self, values: Float[Tensor, " M"], table: Float[Tensor, "F D"]) -> Float[Tensor, "N D"]:
        """Row n of the result is the sum of table rows of n's features, weighted by the values."""
        # detached, so that the bag writes down nothing for a backward pass of its own
        return functional.embedding_bag(self.feature, table.detach(), self.offsets[:-1], mode="sum", per_sample_weights=values)

    @cached_property
    def by_feature(self) -> tuple["Pattern", Int[Tensor, " M"]]:
        """The same entries in feature order (rows and features change places), and the permutation that brings values there."""
        order = torch.argsort(self.feature.to(_narrowest(self.features)), stable=True)  # sorting time goes by the width of the keys
        return Pattern(self.feature.index_select(0, order), self.row.index_select(0, order), self.features, self.rows), order

    def combine_by_feature(self, values: Float[Tensor, " M"], table: Float[Tensor, "N D"]) -> Float[Tensor, "F D"]:
        """Row f of the result is the sum of table rows of the rows that use f, weighted by the values."""
        transposed, order = self.by_feature
        return transposed.combine(values.index_select(0, order), table)

    def inner(self, left: Float[Tensor, "N D"], right: Float[Tensor, "F D"]) -> Float[Tensor, " M"]:
        """Inner products of left rows with right rows, at the pattern's entries only."""
        with warnings.catch_warnings():  # the layout is announced as beta once per process
            warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
            zeros = torch.sparse_csr_tensor(
                self.offsets, self.feature, left.new_zeros(len(self.feature)), (self.rows, self.features), check_invariants=False
            )
            return torch.sparse.sampled_addmm(zeros, left, right.T, beta=0.0).values()


def _narrowest(below: int) -> torch.dtype:
    """The narrowest signed dtype for indices below a number."""
    return next(dtype for dtype in (torch.int16, torch.int32, torch.int64) if below <= torch.iinfo(dtype).max)


class Entries(NamedTuple):
    """A sparse matrix."""

    pattern: Pattern
    values: Float[Tensor, " M"]


def pattern_of(flat: Int[Tensor, " M"], rows: int, features: int) -> Pattern:
    """Pattern of ascending indices into a flattened `[rows, features]` matrix."""
    row = torch.div(flat, features, rounding_mode="floor")
    return Pattern(row, flat - row * features, rows, features)


def dense_of(pattern: Pattern, values: Float[Tensor, " M"]) -> Float[Tensor, "N F"]:
    """The dense matrix with these values at the pattern's entries, which need no order here, and 0 elsewhere."""
    size = pattern.rows * pattern.features
    dense = values.new_zeros(size) if values.is_cuda else _zeros(size, values.dtype)
    return dense.scatter_(0, pattern.flat(), values).view(pattern.rows, pattern.features)


def _zeros(size: int, dtype: torch.dtype) -> Tensor:
    """NumPy asks the system for large pages, which come zeroed; writing zeros page by page takes three times as long."""
    return torch.from_numpy(np.zeros(size * dtype.itemsize, dtype=np.uint8)).view(dtype)


def chunk_rows(features: int) -> int:
    """Rows that are multiplied by so many features at a time."""
    return max(1, min(CHUNK_ROWS, CHUNK_ENTRIES // max(1, features)))


class Floor(NamedTuple):
    """What a pre-activation must exceed to be a candidate, in rows `first` to `last`; not negative."""

    first: int
    last: int
    value: Float[Tensor, " f"] | float


class Block(NamedTuple):
    """Consecutive rows that are multiplied by the same columns of the encoder."""

    features: Int[Tensor, " f"] | None  # the open ones, ascending; None for all
    floors: list[Floor]  # consecutive; the block's rows are theirs


def whole(rows: int, floor: float) -> list[Block]:
    """One block of all features and rows."""
    return [Block(None, [Floor(0, rows, floor)])]


def entries_above(x: Float[Tensor, "N D"], encoder: Float[Tensor, "F D"], bias: Float[Tensor, " F"], blocks: Sequence[Block]) -> Entries:
    """The entries of `x @ encoder.T + bias` that are open and above their block's floor: where they are, and their values.

    The product has the dtype of `x`, `encoder` and `bias`, and the bits that `torch.addmm` gives, which other programs' codes have
    too. Its cost follows the number of open features.
    """
    return _entries(x, encoder, bias, blocks, plain_product)


def measured_above(
    x: Float[Tensor, "N D"], encoder: Float[Tensor, "F D"], bias: Float[Tensor, " F"], blocks: Sequence[Block], dtype: torch.dtype
) -> Entries:
    """The same while training, to float32 rounding: a product in `dtype` nominates the entries, and values are float32."""
    if dtype == torch.float32:
        return _entries(x, encoder, bias, blocks, fast_product)
    nominated = _found_by_chunk(x.to(dtype), encoder.to(dtype), bias.to(dtype), blocks, plain_product)
    pattern = _joined([part for part, _, _ in nominated], x, encoder)
    return Entries(pattern, pattern.inner(x, encoder) + bias.index_select(0, pattern.feature))


def _entries(
    x: Float[Tensor, "N D"], encoder: Float[Tensor, "F D"], bias: Float[Tensor, " F"], blocks: Sequence[Block], product: "Product"
) -> Entries:
    found, values = [], [x.new_empty(0)]
    for part, pre, hits in _found_by_chunk(x, encoder, bias, blocks, product):
        found.append(part)
        values.append(pre.index_select(0, hits))
    return Entries(_joined(found, x, encoder), torch.cat(values))


_Found = tuple[Tensor, Tensor]
"""Rows and features of a chunk's entries."""


def _joined(found: list[_Found], x: Float[Tensor, "N D"], encoder: Float[Tensor, "F D"]) -> Pattern:
    none = torch.empty(0, dtype=torch.int64, device=x.device)
    row, feature = (torch.cat([none, *(part[side] for part in found)]) for side in (0, 1))
    return Pattern(row, feature, len(x), len(encoder))


def _found_by_chunk(
    x: Float[Tensor, "N D"], encoder: Float[Tensor, "F D"], bias: Float[Tensor, " F"], blocks: Sequence[Block], product: "Product"
) -> Iterator[tuple[_Found, Float[Tensor, " nf"], Int[Tensor, " M"]]]:
    """For each chunk of rows what was found, the chunk's product as it lies in memory, and where in that it stands; all good until the next
    one."""
    memory = scratch(x)
    for block in blocks:
        weight = encoder if block.features is None else encoder.index_select(0, block.features)
        offset = bias if block.features is None else bias.index_select(0, block.features)
        rows = chunk_rows(len(weight))
        for first in range(block.floors[0].first, block.floors[-1].last, rows):
            last = min(first + rows, block.floors[-1].last)
            part = x[first:last]
            pre = (narrow_product if _is_narrow(part, product) else product)(part, weight, offset, memory)
            mask = memory.mask(*pre.shape) if pre.is_contiguous() else memory.mask(*pre.T.shape).T
            _compare(pre, first, last, block.floors, mask)
            row, column, hits = _places(mask)
            yield (row + first, column if block.features is None else block.features.index_select(0, column)), _memory_of(pre), hits


class Scratch:
    """Memory of one chunk's product and comparison, used for every chunk: taking it anew each time costs as much as comparing."""

    def __init__(self, like: Tensor) -> None:
        self._product = like.new_empty(0)
        self._mask = torch.empty(0, dtype=torch.bool, device=like.device)

    def product(self, rows: int, columns: int) -> Tensor:
        size = rows * columns
        if size > len(self._product):
            self._product = self._product.new_empty(size)
        return self._product[:size].view(rows, columns)

    def mask(self, rows: int, columns: int) -> Tensor:
        size = rows * columns
        if size > len(self._mask):
            self._mask = self._mask.new_empty(size)
        return self._mask[:size].view(rows, columns)


_KEPT: ContextVar[dict[tuple[torch.dtype, torch.device], Scratch] | None] = ContextVar("_KEPT", default=None)


@contextmanager
def many_products() -> Iterator[None]:
    """Let all products that are compared meanwhile share their memory, as many small ones should; they need not have the bits of
    `plain_product`."""
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def scratch(like: Tensor) -> Scratch:
    kept, kind = _KEPT.get(), (like.dtype, like.device)
    if kept is None:
        return Scratch(like)
    if kind not in kept:
        kept[kind] = Scratch(like)
    return kept[kind]


Product = Callable[[Tensor, Tensor, Tensor, Scratch], Tensor]
"""`x @ weight.T + bias` of rows, weights and bias; perhaps in memory that the next product overwrites."""


@torch.no_grad()
def plain_product(
    x: Float[Tensor, "n D"], weight: Float[Tensor, "f D"], bias: Float[Tensor, " f"], memory: Scratch
) -> Float[Tensor, "n f"]:
    return torch.addmm(bias, x, weight.T, out=memory.product(len(x), len(weight)))


@torch.no_grad()
def fast_product(x: Float[Tensor, "n D"], weight: Float[Tensor, "f D"], bias: Float[Tensor, " f"], memory: Scratch) -> Float[Tensor, "n f"]:
    """The same to float32 rounding, by the fastest operator there is."""
    onednn = _onednn_product() if x.device.type == "cpu" and x.dtype == torch.float32 else None
    return plain_product(x, weight, bias, memory) if onednn is None else onednn(x, weight, bias, "none", [], "")


NARROW = range(16, CHUNK_ROWS + 1)
"""Rows of which a product is quicker with features as its rows: the more so the fewer rows there are, and the more features."""


def _is_narrow(x: Float[Tensor, "n D"], product: Product) -> bool:
    """Where the last bit does not matter, the rows are few, and nothing is quicker yet."""
    allowed = _KEPT.get() is not None or (product is fast_product and _onednn_product() is None)
    return allowed and len(x) in NARROW and x.device.type == "cpu" and x.dtype == torch.float32


@torch.no_grad()
def narrow_product(
    x: Float[Tensor, "n D"], weight: Float[Tensor, "f D"], bias: Float[Tensor, " f"], memory: Scratch
) -> Float[Tensor, "n f"]:
    """`plain_product` of few rows, which lies in memory feature by feature."""
    return torch.addmm(bias[:, None], weight, x.T, out=memory.product(len(weight), len(x))).T


@cache
def _onednn_product() -> Callable[..., Tensor] | None:
    """What PyTorch's compiler multiplies float32 with, faster with AVX-512 than what stands behind `addmm` (bfloat16 goes to oneDNN
    anyway); None without AVX-512, where it is slower, and where this PyTorch has no such operator."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    try:
        operator: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise
        one = torch.ones(1, 1, dtype=torch.float32, device="cpu")
        operator(one, one, one[0], "none", [], "")
    except (AttributeError, RuntimeError):
        return None
    return operator


def _compare(pre: Float[Tensor, "n f"], first: int, last: int, floors: list[Floor], mask: Tensor) -> None:
    """Fill the bool `[n, f]` mask: which pre-activations of rows `first` to `last` exceed the floor of their row."""
    for floor in floors:
        start, end = max(first, floor.first) - first, min(last, floor.last) - first
        if start < end:
            value = torch.as_tensor(floor.value, dtype=pre.dtype, device=pre.device).detach()  # two dtypes compare slowly
            _greater(_ordered_bits(pre[start:end].detach()), _ordered_bits(value), mask[start:end])


def _greater(values: Tensor, floor: Tensor, out: Tensor) -> None:
    """Elementwise comparison; on a processor NumPy's, which is several times as fast there as PyTorch's."""
    if values.is_cuda:
        torch.gt(values, floor, out=out)
    else:
        np.greater(values.numpy(), floor.numpy(), out=out.numpy())


def _ordered_bits(values: Tensor) -> Tensor:
    """Bfloat16 as whole numbers, which compare with any that is not negative as the values do, and faster; others as they are."""
    return values.view(torch.int16) if values.dtype == torch.bfloat16 else values


def _memory_of(values: Float[Tensor, "n f"]) -> Float[Tensor, " nf"]:
    """A matrix, or one that is transposed, as it lies in memory."""
    return (values if values.is_contiguous() else values.T).view(-1)


def _places(mask: Bool[Tensor, "n f"]) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"], Int[Tensor, " M"]]:
    """Rows, in ascending order, and columns of the true entries, and where they lie in memory."""
    if mask.is_contiguous():
        hits = _hits(mask)
        row = torch.div(hits, mask.shape[1], rounding_mode="floor")
        return row, hits - row * mask.shape[1], hits
    hits = _hits(mask.T)
    column = torch.div(hits, len(mask), rounding_mode="floor")
    row = hits - column * len(mask)
    order = torch.from_numpy(np.argsort(row.numpy().astype(np.int16), kind="stable"))  # by counting, which PyTorch does not
    return row.index_select(0, order), column.index_select(0, order), hits.index_select(0, order)


def _hits(mask: Tensor) -> Int[Tensor, " M"]:
    """Flat indices of the true entries of a bool matrix, of which there are few."""
    flat = mask.view(-1)
    if flat.is_cuda or len(flat) % WORD:
        return flat.nonzero()[:, 0]
    words = flat.view(torch.int64)
    chosen = words.nonzero()[:, 0]
    within = np.flatnonzero(words.index_select(0, chosen).numpy().view(bool))
    start = (chosen.numpy() - np.arange(len(chosen))) * WORD  # of each chosen word, less its place among the chosen
    return torch.from_numpy(within + start[within >> WORD_BITS])


class Codes(NamedTuple):
    """Selected codes of a batch."""

    pattern: Pattern
    raw: Float[Tensor, " M"]  # pre-activations
    values: Float[Tensor, " M"]  # what the arm makes of them: the codes

    def keep(self, mask: Tensor) -> "Codes":
        """The entries where `mask [M]` is true."""
        return self.at(mask.nonzero()[:, 0])

    def at(self, chosen: Int[Tensor, " m"]) -> "Codes":
        """The entries at these ascending places."""
        row, feature = self.pattern.row.index_select(0, chosen), self.pattern.feature.index_select(0, chosen)
        pattern = Pattern(row, feature, self.pattern.rows, self.pattern.features)
        return Codes(pattern, self.raw.index_select(0, chosen), self.values.index_select(0, chosen))

    def of_rows(self, rows: Int[Tensor, " n"]) -> "Codes":
        """Those of these ascending rows, which are numbered anew; values come detached."""
        pattern = self.pattern
        number = torch.full((pattern.rows,), -1, dtype=torch.int64, device=rows.device)
        number[rows] = torch.arange(len(rows), device=rows.device)
        row = number.index_select(0, pattern.row)
        chosen = (row >= 0).nonzero()[:, 0]
        row, feature = row.index_select(0, chosen), pattern.feature.index_select(0, chosen)
        found = Pattern(row, feature, len(rows), pattern.features)
        return Codes(found, self.raw.detach().index_select(0, chosen), self.values.detach().index_select(0, chosen))

    def above(self, threshold: float) -> "Codes":
        return self.keep(self.values > threshold)

    def largest(self, count: int) -> "Codes":
        """Those that are among the `count` largest of the batch; of those tied at the smallest the earliest."""
        everywhere = gathered(self.values)
        if len(everywhere.values) <= count:
            return self
        return self.at(everywhere.ours(largest_of(everywhere.values, count)[0]))


def largest_of(values: Float[Tensor, " M"], count: int) -> tuple[Int[Tensor, " m"], Float[Tensor, ""]]:
    """Where the `count` largest values are, of those tied at the smallest the earliest; and the smallest of them."""
    threshold = _smallest_of_largest(values, count)
    chosen = (values >= threshold).nonzero()[:, 0]
    if len(chosen) > count:
        above, tied = values > threshold, values == threshold
        chosen = (above | (tied & (tied.cumsum(0) <= count - above.sum()))).nonzero()[:, 0]
    return chosen, threshold


def _smallest_of_largest(values: Float[Tensor, " M"], count: int) -> Tensor:
    """The smallest of the `count` largest values."""
    rank = len(values) - count
    if values.device.type != "cpu":
        return values.kthvalue(rank + 1).values
    return torch.as_tensor(np.partition(values.detach().numpy(), rank)[rank])  # the same, in half the time of `kthvalue`


Scale = Callable[[Float[Tensor, " M"], Pattern], Float[Tensor, " M"]]
"""What an arm makes of pre-activations at the entries of a pattern."""


def select_largest(
    x: Float[Tensor, "N D"],
    encoder: Float[Tensor, "F D"],
    bias: Float[Tensor, " F"],
    count: int,
    guess: float,
    blocks: Callable[[float], Sequence[Block]],
    scale: Scale,
    dtype: torch.dtype,
) -> Codes:
    """The `count` largest positive codes of a batch (all positive ones where there are fewer), selected exactly. Of several processes that
    share the batch each gets those of its rows.

    `guess` is the expected threshold, 0 where nothing is known. The product with the encoder, in `dtype`, only nominates
    candidates, those above a little less than the guess; they are measured in float32 and the selection is exact among them. When the
    threshold turns out to lie so low that a candidate may have been missed, a guess from a sample, and at last 0, is tried.
    Of entries tied at the threshold the earliest are taken.
    """
    margin = 1.0 if dtype == torch.float32 else 1.0 + BFLOAT16_MARGIN
    for floor in _floors(STEADY * guess / margin, partial(_sampled_guess, x, encoder, bias, count, scale)):
        pattern, raw = measured_above(x, encoder, bias, blocks(floor), dtype)
        codes = Codes(pattern, raw, scale(raw, pattern))
        if floor == 0:
            break
        everywhere = gathered(codes.values)
        if len(everywhere.values) >= count:
            chosen, threshold = largest_of(everywhere.values, count)
            if float(threshold) >= floor * margin:
                return codes.at(everywhere.ours(chosen))
    return codes.above(0.0).largest(count)


def _floors(expected: float, sampled: Callable[[], float]) -> Iterator[float]:
    """Ever lower floors to collect candidates above; a sample is taken only when the one expected was too high, or missing."""
    if expected > 0:
        yield expected
    yield sampled()
    yield 0.0


def _sampled_guess(x: Tensor, encoder: Tensor, bias: Tensor, count: int, scale: Scale) -> float:
    """A floor that leaves about twice as many candidates as are wanted, from a sample of rows; 0 where there are too few."""
    step = max(1, len(x) // SAMPLE_ROWS)
    sample = x[::step]
    pattern, found = entries_above(sample, encoder, bias, whole(len(sample), 0.0))
    values = scale(found, Pattern(pattern.row * step, pattern.feature, len(x), len(encoder)))
    wanted = 2 * count * len(sample) // total(len(x))
    guess = 0.0 if len(values) <= wanted else float(values.kthvalue(len(values) - wanted).values)
    return float(lowest(torch.tensor(guess, dtype=torch.float64, device="cpu")))  # the same for all


def select_largest_static(parts: Iterable[tuple[Float[Tensor, "n F"], Float[Tensor, "n F"]]], count: int, scale: Scale) -> Codes:
    """The same selection in shapes that do not depend on the data, for devices that a program must not wait for: as long as no other
    process has a share of the batch.

    `parts` are the pre-activations of consecutive rows, and what the arm makes of all of them, so many rows at a time. Where fewer than
    `count` are positive the rest are codes of value 0.
    """
    found, rows, features = [], 0, 0
    for pre, codes in parts:
        top = codes.view(-1).topk(min(count, codes.numel()), sorted=False)
        found.append((top.values, top.indices + rows * pre.shape[1], pre.reshape(-1).index_select(0, top.indices)))
        rows, features = rows + len(pre), pre.shape[1]
    values, flat, raw = (torch.cat(columns) for columns in zip(*found, strict=True))
    if len(values) > count:
        values, flat, raw = _at(values.topk(count, sorted=False).indices, values, flat, raw)
    flat, order = flat.sort()
    everywhere = gathered(values.index_select(0, order))
    if len(everywhere.values) > count:
        kept = everywhere.ours(largest_of(everywhere.values, count)[0])
        flat, order = _at(kept, flat, order)
    raw, pattern = raw.index_select(0, order).float().relu(), pattern_of(flat, rows, features)
    return Codes(pattern, raw, scale(raw, pattern))


def _at(places: Int[Tensor, " m"], *columns: Tensor) -> list[Tensor]:
    return [column.index_select(0, places) for column in columns]


class _SparseEncode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, x: Tensor, encoder: Tensor, encoder_bias: Tensor, decoder_bias: Tensor, pattern: Pattern
    ) -> Tensor:
        ctx.save_for_backward(x, encoder)
        ctx.pattern = pattern
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, encoder = ctx.saved_tensors
        encoder_gradient = ctx.pattern.combine_by_feature(gradient, x)
        bias_gradient = ctx.pattern.feature_sum(gradient)
        return None, None, encoder_gradient, bias_gradient, -(bias_gradient @ encoder), None


def sparse_encode(
    values: Float[Tensor, " M"],
    x: Float[Tensor, "N D"],
    encoder: Float[Tensor, "F D"],
    encoder_bias: Float[Tensor, " F"],
    decoder_bias: Float[Tensor, " D"],
    pattern: Pattern,
) -> Float[Tensor, " M"]:
    """Make `values`, the entries of `x @ encoder.T + encoder_bias` at the pattern, differentiable.

    `x` is already centred on `decoder_bias`, which gets its gradient here; `x` itself gets none.
    """
    return _SparseEncode.apply(values, x, encoder, encoder_bias, decoder_bias, pattern)


class _SparseDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, decoder: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(values, decoder)
        ctx.pattern = pattern
        return pattern.combine(values, decoder)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].contiguous()
        values, decoder = ctx.saved_tensors
        return ctx.pattern.inner(gradient, decoder), ctx.pattern.combine_by_feature(values, gradient), None


def sparse_decode(values: Float[Tensor, " M"], decoder: Float[Tensor, "F D"], pattern: Pattern) -> Float[Tensor, "N D"]:
    """`codes @ decoder` for sparse codes; differentiable in both."""
    return _SparseDecode.apply(values, decoder, pattern)

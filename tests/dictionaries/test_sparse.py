"""Sparse codes against the dense computation that they replace."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings, strategies as st

from temporallens.dictionaries import sparse
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.dictionaries.arms.sliced import Sliced
from temporallens.dictionaries.arms.topk import TopK
from temporallens.dictionaries.masks import CLOSED, gated_blocks
from temporallens.dictionaries.sparse import (
    Block,
    Floor,
    Pattern,
    Scratch,
    dense_of,
    entries_above,
    fast_product,
    many_products,
    pattern_of,
    select_largest,
    select_largest_static,
    sparse_decode,
    sparse_encode,
    whole,
)


def unscaled(raw: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    return raw


def integers(rows: int, features: int, seed: int, levels: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations, encoder and bias of small whole numbers: exact in every dtype, and full of ties."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randint(-levels, levels + 1, shape, generator=generator).float()

    return draw(rows, 4), draw(features, 4), draw(features)


@given(
    rows=st.integers(1, 12),
    features=st.integers(1, 20),
    count=st.integers(1, 150),
    guess=st.sampled_from([0.0, 0.1, 3.0, 9.0, 1000.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=200)
def test_selection_is_exact_whatever_the_guess_the_dtype_and_the_ties(rows, features, count, guess, dtype, seed):
    x, encoder, bias = integers(rows, features, seed)
    values = x @ encoder.T + bias
    pattern, raw, found = select_largest(x, encoder, bias, count, guess, partial(whole, rows), unscaled, dtype)
    expected = values[values > 0].sort(descending=True).values[:count]
    assert torch.equal(found.sort(descending=True).values, expected)
    assert torch.equal(values[pattern.row, pattern.feature], found)
    assert torch.equal(raw, found)
    flat = pattern.row * features + pattern.feature
    assert torch.equal(flat, flat.unique())
    assert torch.equal(pattern.offsets.diff(), torch.bincount(pattern.row, minlength=rows))
    if len(found):  # of the ties the earliest
        smallest = (values == found.min()).view(-1).nonzero()[:, 0]
        taken = flat[found == found.min()]
        assert torch.equal(taken, smallest[: len(taken)])


@given(seed=st.integers(0, 1000), guess=st.sampled_from([0.0, 0.9, 1.1, 2.0]))
@settings(max_examples=50)
def test_a_bfloat16_product_nominates_and_float32_decides(seed, guess):
    generator = torch.Generator().manual_seed(seed)
    x, encoder = torch.randn(64, 32, generator=generator), torch.randn(96, 32, generator=generator)
    bias = torch.randn(96, generator=generator)
    values = torch.addmm(bias, x, encoder.T)
    smallest = float(values.view(-1).sort(descending=True).values[64 * 6 - 1])
    codes = select_largest(x, encoder, bias, 64 * 6, guess * smallest, partial(whole, 64), unscaled, torch.bfloat16)
    expected = values >= smallest
    chosen = torch.zeros_like(expected)
    chosen[codes.pattern.row, codes.pattern.feature] = True
    differing = (values[chosen != expected] - smallest).abs()
    assert len(codes.values) == 64 * 6
    assert (differing < 1e-4).all()  # two ways of adding up may order the closest pair differently
    torch.testing.assert_close(codes.values, values[codes.pattern.row, codes.pattern.feature], rtol=1e-4, atol=1e-4)


@given(seed=st.integers(0, 300), groups=st.integers(1, 6), floor=st.sampled_from([0.0, 1.0]))
@settings(max_examples=50)
def test_closed_columns_are_left_out_and_gates_raise_the_floor(seed, groups, floor):
    generator = torch.Generator().manual_seed(seed)
    x, encoder, bias = (
        torch.randn(70, 5, generator=generator),
        torch.randn(16, 5, generator=generator),
        torch.randn(16, generator=generator),
    )
    gates = torch.rand(groups, 16, generator=generator) * (torch.rand(groups, 16, generator=generator) < 0.4)
    of_row = torch.randint(0, groups, (70,), generator=generator).sort().values
    pattern, values = entries_above(x, encoder, bias, gated_blocks(gates, of_row, floor))
    flat = pattern.flat()
    pre = torch.addmm(bias, x, encoder.T)
    expected = (pre.relu() * gates[of_row] > floor) & (gates[of_row] > CLOSED)
    found = torch.zeros_like(expected).view(-1)
    found[flat] = True
    near = ((pre * gates[of_row] - floor).abs() < 1e-5).view(-1)
    assert torch.equal(found | near, expected.view(-1) | near)
    torch.testing.assert_close(values, pre.view(-1)[flat], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("floor", [0.0, 0.7, "by feature"])
def test_bfloat16_entries_are_those_whose_values_exceed_the_floor(floor):
    generator = torch.Generator().manual_seed(0)
    x, encoder, bias = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((60, 8), (24, 8), (24,)))
    if floor == "by feature":
        floor = torch.rand(24, generator=generator).masked_fill(torch.arange(24) % 5 == 0, torch.inf)
    pattern, values = entries_above(x, encoder, bias, [Block(None, [Floor(0, 60, floor)])])
    flat = pattern.flat()
    pre = torch.addmm(bias, x, encoder.T)
    above = pre > torch.as_tensor(floor).bfloat16()
    assert 0 < len(flat) < above.numel()
    assert torch.equal(flat, above.view(-1).nonzero()[:, 0])
    assert torch.equal(values, pre[above])


@pytest.mark.parametrize("rows", [0, 1, 33])
def test_the_product_is_the_same_where_pytorch_lacks_the_faster_operator(rows, monkeypatch):
    x, weight, bias = torch.randn(rows, 8), torch.randn(5, 8, requires_grad=True), torch.randn(5)
    fast = fast_product(x, weight, bias, Scratch(x))
    assert not fast.requires_grad
    torch.testing.assert_close(fast, (x @ weight.T + bias).detach())
    monkeypatch.setattr(sparse, "_onednn_product", lambda: None)
    torch.testing.assert_close(fast_product(x, weight, bias, Scratch(x)), fast)


def test_codes_at_inference_have_the_bits_of_a_plain_product():
    dictionary = BatchTopK(features=256, k=4).make(576, 8, torch.Generator().manual_seed(0))
    dictionary.threshold.fill_(1.0)
    x = torch.randn(64, 576)
    pre = torch.addmm(dictionary.encoder_bias, x - dictionary.decoder_bias, dictionary.encoder.T)
    with torch.no_grad():
        assert torch.equal(dictionary.encode(x), pre * (pre > 1.0))


@pytest.mark.parametrize("rows", [15, 16, 40, 1024, 1030])
@pytest.mark.parametrize("floor", [0.5, "by feature"])
def test_many_small_products_find_the_same_entries(rows, floor):
    generator = torch.Generator().manual_seed(rows)
    x, encoder, bias = (torch.randn(*shape, generator=generator) for shape in ((rows, 8), (24, 8), (24,)))
    if floor == "by feature":
        floor = torch.rand(24, generator=generator).masked_fill(torch.arange(24) % 5 == 0, torch.inf)
    some = torch.arange(3, 23)
    blocks = [Block(None, [Floor(0, 5, floor), Floor(5, rows - 3, 0.25)]), Block(some, [Floor(rows - 3, rows, 0.0)])]
    one = entries_above(x, encoder, bias, blocks)
    with many_products():
        many = [entries_above(x, encoder, bias, blocks) for _ in range(2)]
    for pattern, values in many:  # the second in the memory of the first
        assert torch.equal(pattern.row, one[0].row) and torch.equal(pattern.feature, one[0].feature)
        torch.testing.assert_close(values, one[1])


@pytest.mark.parametrize("arm", [BatchTopK(features=64, k=4), Sliced(features=64, k=4, groups=3), TopK(features=64, k=4)])
def test_sparse_codes_are_the_codes_in_order_of_rows(arm):
    dictionary = arm.make(8, 6, torch.Generator().manual_seed(0))
    x, positions = torch.randn(20, 8), torch.arange(20).flip(0) % 6
    assert dictionary.sparse_codes(x, positions) is None  # somebody may learn from them
    with torch.no_grad():
        found = dictionary.sparse_codes(x, positions)
        assert found is not None and torch.equal(dense_of(*found), dictionary.codes(x, positions))
    assert len(found.values) and bool((found.pattern.row.diff() >= 0).all())


def test_the_static_selection_is_the_same_selection():
    x, encoder, bias = torch.randn(40, 8), torch.randn(30, 8), torch.randn(30)
    gates = torch.rand(40, 30)

    def scale(raw: torch.Tensor, pattern: Pattern) -> torch.Tensor:
        return raw * gates[pattern.row, pattern.feature]

    def blocks(floor: float) -> list[Block]:
        return [Block(None, [Floor(n, n + 1, floor / gates[n]) for n in range(40)])]

    dynamic = select_largest(x, encoder, bias, 100, 0.5, blocks, scale, torch.float32)
    pre = torch.addmm(bias, x, encoder.T)
    static = select_largest_static(zip(pre.split(7), (pre.relu() * gates).split(7), strict=True), 100, scale)
    assert torch.equal(static.pattern.row, dynamic.pattern.row)
    assert torch.equal(static.pattern.feature, dynamic.pattern.feature)
    torch.testing.assert_close(static.values, dynamic.values)


def dense_and_sparse(dtype: torch.dtype, rows: int = 30, features: int = 20, width: int = 7):
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    weights = [leaf(features, width), leaf(features), leaf(features, width), leaf(width)]
    x = torch.randn(rows, width, generator=generator, dtype=dtype)
    target = torch.randn(rows, width, generator=generator, dtype=dtype)
    return weights, x, target


def losses(weights: list[torch.Tensor], x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    encoder, encoder_bias, decoder, decoder_bias = weights
    centred = x - decoder_bias
    pre = centred @ encoder.T + encoder_bias
    with torch.no_grad():
        blocks = partial(whole, len(x))
        pattern, selected, _ = select_largest(centred.detach(), encoder.detach(), encoder_bias.detach(), 90, 0.0, blocks, unscaled, x.dtype)
        mask = torch.zeros_like(pre)
        mask[pattern.row, pattern.feature] = 1
    dense = ((pre * mask) @ decoder + decoder_bias - target).square().sum()
    values = sparse_encode(selected.to(pre.dtype), centred.detach(), encoder, encoder_bias, decoder_bias, pattern)
    sparse = (sparse_decode(values, decoder, pattern) + decoder_bias - target).square().sum()
    return dense, sparse


def test_gradients_equal_the_dense_ones():
    weights, x, target = dense_and_sparse(torch.float32)
    dense, sparse = losses(weights, x, target)
    torch.testing.assert_close(dense, sparse)
    expected, found = torch.autograd.grad(dense, weights), torch.autograd.grad(sparse, weights)
    for left, right in zip(expected, found, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weight", range(4))
def test_gradients_agree_with_finite_differences(weight):
    weights, x, target = dense_and_sparse(torch.float64, rows=4, features=5, width=3)
    pattern = pattern_of(torch.tensor([0, 2, 7, 9, 13, 14, 16]), 4, 5)

    def loss(changed: torch.Tensor) -> torch.Tensor:
        encoder, encoder_bias, decoder, decoder_bias = [changed if n == weight else w.detach() for n, w in enumerate(weights)]
        centred = x - decoder_bias.detach() if weight != 3 else x - decoder_bias
        raw = (centred @ encoder.T + encoder_bias)[pattern.row, pattern.feature].detach()
        values = sparse_encode(raw, centred.detach(), encoder, encoder_bias, decoder_bias, pattern)
        return (sparse_decode(values, decoder, pattern) + decoder_bias - target).square().sum()

    assert torch.autograd.gradcheck(loss, (weights[weight],))

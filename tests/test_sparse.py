"""Sparse codes against the dense computation that they replace."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from temporallens.dictionaries.sparse import pattern_of, select_largest, sparse_decode, sparse_encode


@given(
    rows=st.integers(1, 12),
    features=st.integers(1, 20),
    count=st.integers(1, 150),
    guess=st.sampled_from([0.0, 0.1, 0.5, 5.0]),
    levels=st.sampled_from([3, 1000]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=200, deadline=None)
def test_selection_is_exact_whatever_the_guess_and_the_ties(rows, features, count, guess, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-levels, levels, (rows, features), generator=generator) / levels
    pattern, found = select_largest(values, count, guess)
    positive = values[values > 0]
    expected = positive.sort(descending=True).values[:count]
    assert torch.equal(found.sort(descending=True).values, expected)
    assert torch.equal(values[pattern.row, pattern.feature], found)
    flat = pattern.row * features + pattern.feature
    assert torch.equal(flat, flat.sort().values)
    assert len(flat.unique()) == len(flat)
    assert torch.equal(pattern.per_row(), torch.bincount(pattern.row, minlength=rows))


def test_the_guess_never_changes_which_entries_are_taken():
    values = torch.randint(0, 4, (40, 30)).float()
    chosen = [select_largest(values, 100, guess)[0] for guess in (0.0, 1.0, 2.5, 9.0)]
    assert all(torch.equal(chosen[0].row, p.row) and torch.equal(chosen[0].feature, p.feature) for p in chosen)


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
        pattern, selected = select_largest(pre.detach(), 90, 0.0)
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

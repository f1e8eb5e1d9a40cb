"""Linear probes with the regularisation chosen inside the training rows: k-sparse ones and dense ones, many of them at once.

`docs/method.md`, "Pooled probing", is the protocol. A probe minimises `|w|^2 / 2 + C * sum log(1 + exp(-s (w . z + b)))`, s = +-1 and b
free, as scikit-learn's logistic regression does, to its minimum by Newton's method. C is the one of a grid with the least log loss on
the validation folds of the training rows; a k-sparse probe chooses its columns anew for every fold, so that validation rows take no
part in the choice. All probes of a labelled set are fitted together: they are small and many. A dense probe works on the Cholesky
factor of the rows' inner products, which gives the same minimum in as many dimensions as there are rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

FOLDS = 3
SPARSE_GRID = (0.001, 0.01, 0.1, 1.0)
"""Of C, for columns of unit variance; ascending, as each fit starts from the one before."""
DENSE_GRID = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Of C, for training rows of unit mean square distance from their mean; ascending."""

NEWTON_STEPS, HALVINGS = 30, 8
CONVERGED = 1e-5
"""A sparse probe is at its minimum when no derivative, by row, exceeds this."""
FLAT = 1e-6
"""A column whose standard deviation is less than this share of its largest number does not vary: the rest is rounding."""
SAFE = 1e-10
"""Keeps a curvature from being singular, and rounding from looking like a worse loss."""
DENSE_STEPS, DENSE_INNER_STEPS = 12, 40
DENSE_CONVERGED, DENSE_PRECISION = 1e-4, 1e-2
"""The same for a dense probe; and how far each step's equations are solved, relative to where they start."""
JITTER = 1e-4
"""Added to the diagonal of inner products, as a share of its mean, and ten times as much where that is not enough: rows can be equal,
and float32 rounds. A dense probe at the largest C of the grid already bears 4 / C = 0.04 of it."""
FITTED_NUMBERS = 1 << 22
"""Numbers in the largest array while fitting: so many probes are fitted at once."""


class Tasks(NamedTuple):
    """B binary tasks over the rows of one table, padded to common lengths with row 0 at weight 0."""

    train: Int[Tensor, "B n"]
    train_label: Bool[Tensor, "B n"]
    fold: Int[Tensor, "B n"]  # in which a training row is for validation; -1 for padding
    test: Int[Tensor, "B m"]
    test_label: Bool[Tensor, "B m"]
    tested: Bool[Tensor, "B m"]  # False for padding
    positive: list[str]  # class of each; seed by seed, and within a seed class by class


class Probed(NamedTuple):
    """Logits of the probes on test rows."""

    score: Float[Tensor, "B m"]  # logit of the positive class; 0 for padding
    regularisation: Float[Tensor, " B"]  # the C that was chosen


def draw_tasks(labels: Sequence[str], seeds: Sequence[int], test_share: float) -> Tasks:
    """Every class against the others for every seed; of two classes, the second against the first.

    A seed divides the rows of each class into training and test rows. A task has as many negatives as positives in either part, the
    same share from each other class; validation folds keep the balance.
    """
    columns = np.array(labels)
    classes = list(dict.fromkeys(labels))
    drawn = []
    for seed in seeds:
        generator = np.random.default_rng(seed)
        parts: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
        for name in classes:
            rows = generator.permutation(np.flatnonzero(columns == name))
            cut = min(max(round(test_share * len(rows)), 1), len(rows) - FOLDS)
            parts[0][name], parts[1][name] = rows[cut:], rows[:cut]
        for name in classes if len(classes) > 2 else classes[1:]:
            drawn.append((name, [_against(part, name, generator) for part in parts]))
    train, train_label, real = _padded([rows[0] for _, rows in drawn])
    test, test_label, tested = _padded([rows[1] for _, rows in drawn])
    fold = torch.where(real, _folds(train_label, real), -1)
    return Tasks(train, train_label, fold, test, test_label, tested, [name for name, _ in drawn])


def _against(part: dict[str, np.ndarray], name: str, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a class, and as many of the others; fewer where the others have not as many."""
    positive, others = part[name], [rows for other, rows in part.items() if other != name]
    share = -(-len(positive) // len(others))
    negative = generator.permutation(np.concatenate([generator.permutation(rows)[:share] for rows in others]))
    count = min(len(positive), len(negative))
    return positive[:count], negative[:count]


def _padded(tasks: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Int[Tensor, "B n"], Bool[Tensor, "B n"], Bool[Tensor, "B n"]]:
    length = max(len(positive) + len(negative) for positive, negative in tasks)
    rows = torch.zeros(len(tasks), length, dtype=torch.long)
    label, real = torch.zeros(len(tasks), length, dtype=torch.bool), torch.zeros(len(tasks), length, dtype=torch.bool)
    for number, (positive, negative) in enumerate(tasks):
        count = len(positive) + len(negative)
        rows[number, :count] = torch.from_numpy(np.concatenate([positive, negative]))
        label[number, : len(positive)] = True
        real[number, :count] = True
    return rows, label, real


def _folds(label: Bool[Tensor, "B n"], real: Bool[Tensor, "B n"]) -> Int[Tensor, "B n"]:
    """Rows of either class in turn to each fold; they are in random order already."""
    rank = torch.where(label, (label & real).long().cumsum(1), (~label & real).long().cumsum(1)) - 1
    return rank % FOLDS


def training_weights(tasks: Tasks) -> Float[Tensor, "B Q n"]:
    """1 for the rows that a fit learns from: those outside of each validation fold, and, last, all."""
    inside = torch.stack([(tasks.fold >= 0) & (tasks.fold != fold) for fold in range(FOLDS)] + [tasks.fold >= 0], 1)
    return inside.double()


def best_columns(table: Float[Tensor, "T W"], tasks: Tasks, count: int) -> Int[Tensor, "B Q k"]:
    """For each fit, the `count` columns that correlate best with the label, whatever the sign: the difference of the class means in
    standard deviations of the column. Ties fall in order of number, and columns that do not vary come last.
    """
    columns = _worth_ranking(table, count)
    table = table[:, columns]
    centred = table - table.mean(0)
    inside = training_weights(tasks).float()
    label = tasks.train_label[:, None].float()
    weights = []
    for chosen in (inside * label, inside * (1 - label)):
        weight = chosen.new_zeros(*inside.shape[:2], len(table)).scatter_add_(2, tasks.train[:, None].expand_as(inside), chosen)
        weights.append(weight.flatten(0, 1) / weight.sum(2).flatten()[:, None])
    weight = torch.cat(weights)
    mean = weight @ centred
    (positive, negative), (spread, other) = mean.chunk(2), (weight @ centred.square() - mean.square()).clamp(min=0).chunk(2)
    difference = (positive - negative).abs()
    scale = ((spread + other) / 2 + difference.square() / 4).sqrt()
    separation = torch.where(scale > FLAT * table.abs().amax(0), difference / scale, 0.0)
    return columns[_largest_first(separation, count)].view(*inside.shape[:2], -1)


def _largest_first(values: Float[Tensor, "R w"], count: int) -> Int[Tensor, "R k"]:
    """Columns of the `count` largest numbers of each row, none of them negative, equal ones in order of number; all where there are fewer.
    A stable sort gives the same, but orders the others, too."""
    last = values.shape[1] - 1
    bits = values.view(torch.int32).long()  # ordered as the numbers are
    keys = (bits << 32) + torch.arange(last, -1, -1)
    return last - (keys.topk(min(count, last + 1), dim=1).values & 0xFFFFFFFF)


def _worth_ranking(table: Float[Tensor, "T W"], count: int) -> Int[Tensor, " w"]:
    """The columns that vary, and the first `count` of the others, which are all that could be among the `count` best."""
    flat = table.amin(0) == table.amax(0)
    return (~flat | (flat.cumsum(0) <= count)).nonzero()[:, 0]


def sparse_probes(table: Float[Tensor, "T W"], tasks: Tasks, k_values: Sequence[int]) -> dict[int, Probed]:
    """Probes on the k best columns, for every k that the table is wide enough for."""
    k_values = [k for k in k_values if k <= table.shape[1]]
    if not k_values:
        return {}
    chosen = best_columns(table, tasks, max(k_values))
    found: dict[int, list[Probed]] = {k: [] for k in k_values}
    folds, rows = chosen.shape[1], tasks.train.shape[1]
    for k in k_values:
        size = max(1, FITTED_NUMBERS // (folds * rows * (k + 1)))
        for first in range(0, len(chosen), size):
            part = _part(tasks, first, first + size)
            found[k].append(_sparse(table, part, chosen[first : first + size, :, :k]))
    return {k: Probed(*(torch.cat(column) for column in zip(*parts, strict=True))) for k, parts in found.items()}


def _part(tasks: Tasks, first: int, last: int) -> Tasks:
    train, train_label, fold, test, test_label, tested = (column[first:last] for column in tasks[:6])
    return Tasks(train, train_label, fold, test, test_label, tested, tasks.positive[first:last])


def _sparse(table: Float[Tensor, "T W"], tasks: Tasks, chosen: Int[Tensor, "B Q k"]) -> Probed:
    inside, label = training_weights(tasks), tasks.train_label.double()
    x = table[tasks.train[:, None, :, None], chosen[:, :, None, :]].double()
    total = inside.sum(2)[:, :, None, None]
    centre = (x * inside[..., None]).sum(2, keepdim=True) / total
    spread = ((x - centre).square() * inside[..., None]).sum(2, keepdim=True).div(total).sqrt()
    spread = torch.where(spread > 0, spread, 1.0)
    x = (x - centre) / spread
    bias_column = torch.ones_like(x[..., :1])
    x = torch.cat([x, bias_column], 3)
    fits = torch.zeros(*chosen.shape[:2], x.shape[3], dtype=x.dtype)
    losses = []
    for c in SPARSE_GRID:
        fits = logistic(x, label, inside, torch.full((len(x),), c, dtype=torch.float32), fits)
        losses.append(_held_out_loss((x[:, :-1] @ fits[:, :-1, :, None]).squeeze(3), label, tasks.fold))
    best = torch.tensor(SPARSE_GRID, dtype=x.dtype)[torch.stack(losses, 1).argmin(1)]
    fit = logistic(x[:, -1:], label, inside[:, -1:], best, fits[:, -1:])[:, 0]
    tested = table[tasks.test[:, :, None], chosen[:, -1][:, None]].double()
    score = ((tested - centre[:, -1]) / spread[:, -1] @ fit[:, :-1, None]).squeeze(2) + fit[:, -1:]
    return Probed(torch.where(tasks.tested, score, 0.0), best)


def _held_out_loss(logits: Float[Tensor, "B Q n"], label: Float[Tensor, "B n"], fold: Int[Tensor, "B n"]) -> Float[Tensor, " B"]:
    """Log loss on the rows that each fit was not shown."""
    held_out = torch.stack([fold == number for number in range(FOLDS)], 1)
    return (functional.softplus(torch.where(label[:, None] > 0, -logits, logits)) * held_out).sum((1, 2))


def logistic(
    x: Float[Tensor, "B Q n k"],
    label: Float[Tensor, "B n"],
    inside: Float[Tensor, "B Q n"],
    c: Float[Tensor, " B"],
    start: Float[Tensor, "B Q k"],
) -> Float[Tensor, "B Q k"]:
    """Weights at the minimum, learnt from the rows where `inside` is 1; the last column of `x` is 1, its weight the bias and free.
    Newton's method with step halving."""
    penalty = torch.ones(x.shape[3], dtype=x.dtype)
    penalty[-1] = 0
    cost = c.to(x.dtype)[:, None, None] * inside
    rows = cost.sum(2).clamp(min=1)
    target = label[:, None]

    def loss_of(weight: Tensor) -> tuple[Tensor, Tensor]:
        logits = (x @ weight[..., None]).squeeze(3)
        return (weight.square() * penalty).sum(2) / 2 + (cost * (functional.softplus(logits) - target * logits)).sum(2), logits

    weight, (loss, logits) = start, loss_of(start)
    for _ in range(NEWTON_STEPS):
        share = logits.sigmoid()
        gradient = weight * penalty + ((cost * (share - target))[:, :, None] @ x).squeeze(2)
        if float((gradient.abs().amax(2) / rows).max()) < CONVERGED:
            break
        curvature = cost * share * (1 - share)
        hessian = (x * curvature[..., None]).transpose(2, 3) @ x + torch.diag(penalty + SAFE)
        step = torch.linalg.solve(hessian, gradient)
        for _ in range(HALVINGS):
            changed, logits = loss_of(weight - step)
            worse = changed > loss * (1 + SAFE)
            if not bool(worse.any()):
                break
            step = torch.where(worse[..., None], step / 2, step)
        else:
            logits = loss_of(weight - step)[1]  # of the step as it was halved last
        weight, loss = weight - step, changed
    return weight


def dense_probes(table: Float[Tensor, "T W"], tasks: Tasks) -> Probed:
    """Probes on all columns, at one common scale for all of them."""
    centred = table - table.mean(0)  # for the sake of rounding: the bias is free, so that no centre matters
    products = centred @ centred.T
    size = max(1, FITTED_NUMBERS // tasks.train.shape[1] ** 2)
    parts = [_dense(products, _part(tasks, first, first + size)) for first in range(0, len(tasks.train), size)]
    return Probed(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _dense(products: Float[Tensor, "T T"], tasks: Tasks) -> Probed:
    inside = training_weights(tasks).float()
    rows, real = tasks.train, (tasks.fold >= 0).float()
    block = products[rows[:, :, None], rows[:, None]] * real[:, :, None] * real[:, None]
    count = real.sum(1)
    scale = (block.diagonal(dim1=1, dim2=2).sum(1) / count - block.sum((1, 2)) / count.square())[:, None, None]
    scale = torch.where(scale > 0, scale, 1.0)
    both = _factor(block / scale)
    label = tasks.train_label.float()
    fits = Kernel(torch.zeros_like(inside), torch.zeros(len(rows), FOLDS + 1, dtype=torch.float32))
    losses = []
    for c in DENSE_GRID:
        fits = kernel_logistic(both, label, inside, torch.full((len(rows),), c, dtype=torch.float32), fits)
        logits = fits.weight[:, :-1] @ both.upper + fits.bias[:, :-1, None]
        losses.append(_held_out_loss(logits, label, tasks.fold))
    best = torch.tensor(DENSE_GRID, dtype=torch.float32)[torch.stack(losses, 1).argmin(1)]
    fit = kernel_logistic(both, label, inside[:, -1:], best, Kernel(fits.weight[:, -1:], fits.bias[:, -1:]))
    dual = torch.linalg.solve_triangular(both.upper, fit.weight.transpose(1, 2), upper=True)  # w is the sum of dual times row
    across = products[tasks.test[:, :, None], rows[:, None]] * real[:, None] / scale
    score = (across @ dual).squeeze(2) + fit.bias
    return Probed(torch.where(tasks.tested, score, 0.0).double(), best.double())


class Factor(NamedTuple):
    """A Cholesky factor both ways round: a product with rows on the left is several times as quick as one with columns."""

    lower: Float[Tensor, "B n n"]
    upper: Float[Tensor, "B n n"]


def _factor(products: Float[Tensor, "B n n"]) -> Factor:
    jitter = torch.full((len(products), 1, 1), JITTER, dtype=torch.float32)
    while True:
        factor, failed = torch.linalg.cholesky_ex(products + jitter * torch.eye(products.shape[1], dtype=products.dtype))
        if not bool(failed.any()):
            return Factor(factor.contiguous(), factor.transpose(1, 2).contiguous())
        jitter = torch.where(failed[:, None, None] > 0, 10 * jitter, jitter)


class Kernel(NamedTuple):
    """Probes on a Cholesky factor."""

    weight: Float[Tensor, "B J n"]
    bias: Float[Tensor, "B J"]


def kernel_logistic(
    factor: Factor, label: Float[Tensor, "B n"], inside: Float[Tensor, "B J n"], c: Float[Tensor, " B"], start: Kernel
) -> Kernel:
    """Weights and biases at the minimum for the rows of `factor`; Newton's method, each step by conjugate gradients."""
    cost = inside * c[:, None, None]
    scale = cost.sum(2).clamp(min=1)
    weight, bias = start
    for _ in range(DENSE_STEPS):
        share = (weight @ factor.upper + bias[..., None]).sigmoid()
        slope = cost * (share - label[:, None])
        gradient, offset = weight + slope @ factor.lower, slope.sum(2)
        size = (gradient.square().sum(2) + offset.square()).sqrt()
        if float((size / scale).max()) < DENSE_CONVERGED:
            break
        step, shift = _newton_step(factor, cost * share * (1 - share), gradient, offset)
        weight, bias = weight - step, bias - shift
    return Kernel(weight, bias)


def _newton_step(
    factor: Factor, curvature: Float[Tensor, "B J n"], gradient: Float[Tensor, "B J n"], offset: Float[Tensor, "B J"]
) -> tuple[Float[Tensor, "B J n"], Float[Tensor, "B J"]]:
    """Solve `(I + F' S F) step = gradient`, with the bias as one more dimension that `I` leaves out, by conjugate gradients."""
    step, shift = torch.zeros_like(gradient), torch.zeros_like(offset)
    left, rest = gradient, offset
    direction, turn = left, rest
    norm = left.square().sum(2) + rest.square()
    target = norm * DENSE_PRECISION**2
    for _ in range(DENSE_INNER_STEPS):
        image = curvature * (direction @ factor.upper + turn[..., None])
        product, total = direction + image @ factor.lower, image.sum(2)
        along = (direction * product).sum(2) + turn * total
        length = torch.where(along > 0, norm / along, 0.0)
        step, shift = step + length[..., None] * direction, shift + length * turn
        left, rest = left - length[..., None] * product, rest - length * total
        following = left.square().sum(2) + rest.square()
        if bool((following <= target).all()):
            break
        ratio = torch.where(norm > 0, following / norm, 0.0)
        direction, turn = left + ratio[..., None] * direction, rest + ratio * turn
        norm = following
    return step, shift

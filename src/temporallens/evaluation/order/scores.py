"""What probes reach on an order task: held-out accuracy and AUC with their intervals, p-values against chance, and fair gains.

Every item is answered for once, by probes that learned from the other folds. Intervals are by bootstrap over documents, with probes
as they were fitted. Chance is what labels exchanged inside groups give: a pair's two labels are equally likely either way where order
cannot be read. p-values are one-sided and of the accuracy; q-values are Benjamini-Hochberg over the tasks of one way of probing.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from temporallens.errors import TemporalLensError
from temporallens.evaluation.order.tasks import OrderTask
from temporallens.evaluation.probing.fitting import FOLDS, Probed, Tasks, dense_probes, sparse_probes
from temporallens.evaluation.probing.pooling import Pooling
from temporallens.evaluation.probing.scores import weighted_auc
from temporallens.evaluation.statistics import CONFIDENCE, Estimate, Verdict, estimate_of, q_values, resampled_documents

RESAMPLES = 1000
EXCHANGES = 1999
"""Draws of labels; the smallest p-value is one in a draw more."""

TIES = 4
"""Decimals of logits: items that a probe cannot tell apart get equal ones, whatever rounding does to them."""

DENSE = "dense"
Basis = Literal["dictionary", "activations", "bag of words", "bigrams", "surprisal"]
BASES: tuple[Basis, ...] = get_args(Basis)


class OrderScore(NamedTuple):
    """What one way of probing reaches on one task."""

    basis: Basis  # what the probe reads
    pooling: Pooling | None  # None where there are no tokens to pool
    probe: str  # `dense`, or `k=5`: on so many features
    accuracy: Estimate
    auc: Estimate  # of more than two classes, the mean over classes against the others
    p: float
    q: float
    hits: str  # right answers, item by item, a bit each; in hexadecimal

    @property
    def way(self) -> tuple[Basis, Pooling | None, str]:
        return self.basis, self.pooling, self.probe


class OrderTaskMeasures(NamedTuple):
    """One task."""

    name: str
    about_order: bool  # False for the control
    classes: list[str]
    chance: float
    items: int
    documents: int
    items_of_document: str  # how many items each document gives, four hexadecimal digits each
    scores: list[OrderScore]


class OrderMeasures(NamedTuple):
    """One dictionary on the order tasks of one text."""

    tasks: list[OrderTaskMeasures]
    fingerprint: str  # of tasks, model, layer and bins: scores of one fingerprint are on the same items
    bins: int
    no_surprisal: str | None  # why there is none


class OrderGain(NamedTuple):
    """An arm against an ordinary dictionary, with probes of the same size: it has to beat it pooled by position bins, and pooled alike."""

    task: str
    pooling: Pooling  # of the arm's codes
    probe: str
    against_bins: Estimate  # difference of accuracies to the ordinary codes pooled by bins
    against_same: Estimate  # to the ordinary codes pooled as the arm's are
    p: float  # of the weaker of the two differences, two-sided; 1 where one is above and the other is not
    q: float  # over the tasks that claim order, for each pooling and probe
    verdict: Verdict  # above or below both, at q below 5 %


@torch.inference_mode()
def held_out_logits(table: Float[np.ndarray, "n W"], task: OrderTask, k_values: Sequence[int]) -> dict[str, Float[np.ndarray, "n C"]]:
    """Logits of each class for every item, by probes that were fitted without the item's fold: on k features each, and on all."""
    features, tasks = torch.from_numpy(table), fold_tasks(task)
    probed = {f"k={k}": found for k, found in sparse_probes(features, tasks, k_values).items()} | {DENSE: dense_probes(features, tasks)}
    return {name: _by_item(found, tasks, task) for name, found in probed.items()}


def scaled_logits(table: Float[np.ndarray, "n W"], task: OrderTask) -> Float[np.ndarray, "n C"]:
    """The same on all of a few features, each at a scale of its own."""
    tasks, width = fold_tasks(task), table.shape[1]
    return _by_item(sparse_probes(torch.from_numpy(table), tasks, [width])[width], tasks, task)


def fold_tasks(task: OrderTask) -> Tasks:
    """For each fold, a task of every class against the others (of two classes, of the second against the first), which the other
    folds train; whole folds of them validate."""
    classes = range(1, 2) if len(task.classes) == 2 else range(len(task.classes))
    folds, of_item, label = np.unique(task.fold), torch.from_numpy(task.fold), torch.from_numpy(task.label)
    train, inner, test = [], [], []
    for fold in folds:
        validates = torch.from_numpy(np.searchsorted(folds[folds != fold], task.fold) % FOLDS)
        rows = (of_item != fold).nonzero()[:, 0]
        train += [rows] * len(classes)
        inner += [validates[rows]] * len(classes)
        test += [(of_item == fold).nonzero()[:, 0]] * len(classes)
    train_rows, test_rows, validates = _padded(train, 0), _padded(test, 0), _padded(inner, -1)
    tested = _padded([torch.ones_like(rows) for rows in test], 0) > 0
    positive = torch.tensor(list(classes)).repeat(len(folds))[:, None]
    train_label, test_label = (label[train_rows] == positive) & (validates >= 0), (label[test_rows] == positive) & tested
    names = [task.classes[number] for number in positive[:, 0].tolist()]
    return Tasks(train_rows, train_label, validates, test_rows, test_label, tested, names)


def _padded(rows: list[Tensor], value: int) -> Int[Tensor, "B n"]:
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def _by_item(found: Probed, tasks: Tasks, task: OrderTask) -> Float[np.ndarray, "n C"]:
    """Logits in the order of the items; of two classes, the first one's is 0."""
    classes = len(task.classes)
    logits = np.zeros((len(task.label), classes))
    fitted = 1 if classes == 2 else classes
    for number, (item, tested, score) in enumerate(zip(tasks.test, tasks.tested, found.score, strict=True)):
        logits[item[tested].numpy(), classes - fitted + number % fitted] = score[tested].double().numpy()
    return np.round(logits, TIES)


class Judge:
    """Scores answers on one task; resamples of its documents and exchanges of its labels are drawn once."""

    def __init__(self, task: OrderTask, seed: int) -> None:
        self.task = task
        self.document = np.unique(task.document, return_inverse=True)[1]
        generator = np.random.default_rng(seed)
        self.items_of = np.bincount(self.document)
        self.resampled = resampled_documents(len(self.items_of), RESAMPLES, generator)
        self.exchanged = _exchanges(task, generator)

    def score(self, basis: Basis, pooling: Pooling | None, probe: str, logits: Float[np.ndarray, "n C"]) -> OrderScore:
        """q is p until `with_q_values` knows all tasks."""
        task, answer = self.task, logits.argmax(1)
        hits = answer == task.label
        reached = (self.exchanged == answer).sum(1)
        p = (1 + int((reached >= hits.sum()).sum())) / (1 + EXCHANGES)
        return OrderScore(basis, pooling, probe, self._accuracy(hits), self._auc(logits), p, p, np.packbits(hits).tobytes().hex())

    def _accuracy(self, hits: Bool[np.ndarray, " n"]) -> Estimate:
        of_document = np.bincount(self.document, weights=hits)
        resampled = self.resampled @ of_document / (self.resampled @ self.items_of)
        return estimate_of(float(hits.mean()), resampled, len(hits), (0.0, 1.0))

    def _auc(self, logits: Float[np.ndarray, "n C"]) -> Estimate:
        classes = [1] if logits.shape[1] == 2 else list(range(logits.shape[1]))
        margin = torch.tensor(np.stack([_margin(logits, number) for number in classes]))
        positive = torch.tensor(np.stack([self.task.label == number for number in classes]))
        once, again = (torch.from_numpy(counts[:, self.document]).float() for counts in (np.ones_like(self.items_of)[None], self.resampled))
        weights = torch.cat([once, again]).expand(len(classes), -1, -1)
        aucs = weighted_auc(margin, positive, weights).mean(0).numpy()
        return estimate_of(float(aucs[0]), aucs[1:], len(logits), (0.0, 1.0))

    def measures(self, scores: Iterable[OrderScore]) -> OrderTaskMeasures:
        task = self.task
        chance, sizes = 1 / len(task.classes), self.items_of.astype(">u2").tobytes().hex()
        return OrderTaskMeasures(
            task.name, task.about_order, list(task.classes), chance, len(task.label), len(self.items_of), sizes, list(scores)
        )


def _margin(logits: Float[np.ndarray, "n C"], c: int) -> Float[np.ndarray, " n"]:
    """By how much the logit of a class exceeds the greatest of the others."""
    return np.round(logits[:, c] - np.delete(logits, c, axis=1).max(1), TIES)


def _exchanges(task: OrderTask, generator: np.random.Generator) -> Int[np.ndarray, "E n"]:
    """The labels, permuted inside each group."""
    classes = len(task.classes)
    order = generator.random((EXCHANGES, len(task.label) // classes, classes)).argsort(2)
    return np.take_along_axis(np.broadcast_to(task.label.reshape(-1, classes), order.shape), order, 2).reshape(EXCHANGES, -1)


def with_q_values(tasks: Sequence[OrderTaskMeasures]) -> list[OrderTaskMeasures]:
    """Benjamini-Hochberg over the tasks that claim order, for each way of probing; the control stands for itself."""
    changed = {(task.name, score.way): score for task in tasks for score in task.scores}
    for way in dict.fromkeys(score.way for task in tasks for score in task.scores):
        keys = [(task.name, way) for task in tasks if task.about_order and (task.name, way) in changed]
        for key, q in zip(keys, q_values(np.array([changed[key].p for key in keys])), strict=True):
            changed[key] = changed[key]._replace(q=float(q))
    return [task._replace(scores=[changed[task.name, score.way] for score in task.scores]) for task in tasks]


def order_gains(arm: OrderMeasures, ordinary: OrderMeasures, seed: int = 0) -> list[OrderGain]:
    """How much more an arm's codes say than those of an ordinary dictionary, on every task, for every pooling and probe.

    Raises TemporalLensError when the two were not measured on the same items.
    """
    if arm.fingerprint != ordinary.fingerprint:
        raise TemporalLensError("these two dictionaries were measured on different order tasks, models, layers or bins: measure both alike")
    gains: dict[tuple[Pooling, str], list[OrderGain]] = {}
    claims = {task.name for task in arm.tasks if task.about_order}
    for task, other in zip(arm.tasks, ordinary.tasks, strict=True):
        pairing = _Pairing(task, seed)
        hits = {score.way: _hits(score, task.items) for score in other.scores}
        for score in task.scores:
            if score.basis == "dictionary" and score.pooling is not None:
                differences = [_hits(score, task.items) - hits["dictionary", pooling, score.probe] for pooling in ("bins", score.pooling)]
                gains.setdefault((score.pooling, score.probe), []).append(pairing.gain(score.pooling, score.probe, differences))
    return [gain for group in gains.values() for gain in _judged(group, claims)]


class _Pairing:
    """Differences of two dictionaries on one task; resamples of its documents and signs are drawn once."""

    def __init__(self, task: OrderTaskMeasures, seed: int) -> None:
        self._task = task
        generator = np.random.default_rng(seed)
        self._sizes = np.frombuffer(bytes.fromhex(task.items_of_document), dtype=">u2").astype(np.int64)
        self._resampled = resampled_documents(len(self._sizes), RESAMPLES, generator)
        self._signs = generator.choice([-1, 1], (EXCHANGES, len(self._sizes)))

    def gain(self, pooling: Pooling, probe: str, differences: list[Float[np.ndarray, " n"]]) -> OrderGain:
        sums = [np.add.reduceat(difference, np.cumsum(self._sizes) - self._sizes) for difference in differences]
        bins, same = (self._estimate(of_document) for of_document in sums)
        agree = sums[0].sum() * sums[1].sum() > 0
        p = max(self._p(of_document) for of_document in sums) if agree else 1.0
        return OrderGain(self._task.name, pooling, probe, bins, same, p, p, "no difference")

    def _estimate(self, of_document: Float[np.ndarray, " D"]) -> Estimate:
        resampled = self._resampled @ of_document / (self._resampled @ self._sizes)
        return estimate_of(float(of_document.sum() / self._task.items), resampled, self._task.items)

    def _p(self, of_document: Float[np.ndarray, " D"]) -> float:
        """Share of sign changes, document by document, that bring as large a difference."""
        reached = np.abs(self._signs @ of_document) >= abs(of_document.sum())
        return (1 + int(reached.sum())) / (1 + EXCHANGES)


def _judged(gains: list[OrderGain], claims: set[str]) -> list[OrderGain]:
    """Gains of one pooling and probe with their q-values, and what they come to."""
    about_order = [gain for gain in gains if gain.task in claims]
    q = dict(zip([gain.task for gain in about_order], q_values(np.array([gain.p for gain in about_order])).tolist(), strict=True))
    return [gain._replace(q=q.get(gain.task, gain.p), verdict=_verdict(gain, q.get(gain.task, gain.p))) for gain in gains]


def _verdict(gain: OrderGain, q: float) -> Verdict:
    if q >= 1 - CONFIDENCE:
        return "no difference"
    return "above" if (gain.against_bins.value or 0) > 0 else "below"


def _hits(score: OrderScore, items: int) -> Float[np.ndarray, " n"]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(score.hits), dtype=np.uint8), count=items).astype(np.float64)

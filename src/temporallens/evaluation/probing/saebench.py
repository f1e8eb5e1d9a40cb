"""SAEBench's `sparse_probing`, number for number: what a linear probe on mean-pooled codes tells of labelled texts.

The protocol is that of sae_bench 0.6.0, written out in docs/method.md ("Sparse probing"): one-vs-rest tasks with negatives that are
drawn anew for every probe from one stream of random numbers, features ranked by the difference of class means, a logistic regression on
the best k of them, and a linear probe on all of them whose accuracy is the best over its epochs on the very test texts, which flatters
it. Means over tokens are blind to order by construction; `probing.section` and `order.section` look further.

What must not change, because results would: the order of random draws, the shapes in which sums are taken, and the dtype of each step.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from temporallens.activations.context import Context
from temporallens.activations.language.loading import AS_IT_IS, Loading
from temporallens.activations.language.models import Layer
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.model.passes import Side, TextActivations, open_model, text_activations
from temporallens.evaluation.probing.lbfgs_logistic import fit_logistic, predict_logistic
from temporallens.evaluation.texts.labelled import LabelledSet
from temporallens.progress import progress
from temporallens.settings import Length, Seed, Settings

TRAIN_SIZE, TEST_SIZE = 4000, 1000
"""SAEBench's; of a task, both its sides together."""
POSITIVE, NEGATIVE = 1, 0
PROBE_BATCH, EPOCHS, PATIENCE, LEARNING_RATE = 250, 100, 10, 1e-2
"""Of the probe on all features."""
CONSTANT_WITHIN = 16
"""Pooled codes that differ by no more than so many units in the last place are the same: rounding in a mean makes as much."""

Features = dict[str, Float[Tensor, "_ F"]]
"""Pooled features of the texts of each class."""
Accuracies = dict[str, float]
"""Test accuracy by class."""


class SparseProbingPolicy(Settings):
    """SAEBench's settings under SAEBench's names and defaults, and how rows of tokens are laid out."""

    random_seed: Seed = 42
    """Of the division into training and test texts, and of every draw of the probes."""
    probe_train_set_size: int = Field(TRAIN_SIZE, ge=2)
    """Training texts of a task, half of them of its class; sets whose source fixes the parts are used as they are."""
    probe_test_set_size: int = Field(TEST_SIZE, ge=2)
    """Test texts of a task, half of them of its class."""
    context_length: Length = Field(128, ge=2)
    """Tokens of a text that are read, BOS included; every row is padded to so many."""
    sae_batch_size: int = Field(125, ge=1)
    """Texts that are encoded together."""
    llm_batch_size: int = Field(32, ge=1)
    """Texts of a class in a forward pass."""
    llm_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the model, of the features, and of the probe on all features."""
    k_values: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 5, 10, 20, 50)
    """Numbers of features that probes are trained on."""
    padding: Side | None = None
    """The side on which short texts are padded; None: the tokenizer's own."""
    bos: bool = True
    """Whether rows open with BOS."""


class DividedSet(NamedTuple):
    """A labelled set as probes see it: texts by class, classes in the order in which negatives are drawn."""

    name: str
    train: dict[str, list[str]]
    test: dict[str, list[str]]


class ReadSet(NamedTuple):
    """A divided set as the model sees it, by class."""

    name: str
    train: Mapping[str, TextActivations]
    test: Mapping[str, TextActivations]


@dataclass(frozen=True)
class SparseProbing:
    """Test accuracies, by set, metric and class; metrics are called as in SAEBench's JSON (`sae_top_5_test_accuracy`)."""

    policy: SparseProbingPolicy
    model: str
    layer: Layer
    accuracies: dict[str, dict[str, Accuracies]]

    def by_set(self) -> dict[str, dict[str, float]]:
        """Mean over the classes of each set."""
        return {
            name: {metric: sum(classes.values()) / len(classes) for metric, classes in metrics.items()}
            for name, metrics in self.accuracies.items()
        }

    def averages(self) -> dict[str, float]:
        """Mean over sets, each counted once however many classes it has."""
        means = list(self.by_set().values())
        return {metric: sum(one[metric] for one in means) / len(means) for metric in means[0]}


@own_defaults()
def sparse_probing(
    dictionary: Dictionary,
    model: str,
    layer: Layer,
    sets: Sequence[LabelledSet | DividedSet],
    policy: SparseProbingPolicy,
    cache: Path | str,
    revision: str | None = None,
    loading: Loading = AS_IT_IS,
) -> SparseProbing:
    """Probe `dictionary` and the residual stream of `model` after `layer` on labelled sets, in their order.

    Activations are cached under `cache`. Raises TemporalLensError for a dictionary of another width, sets that cannot be divided or
    drawn from, and codes that are the same for every text, of which SAEBench would report 0.5.
    """
    divided = [divide(one, policy) if isinstance(one, LabelledSet) else one for one in sets]
    check_sets(divided)
    check_width(dictionary, model, layer, policy, revision, loading)

    def read(texts: dict[str, list[str]], title: str) -> dict[str, TextActivations]:
        """Activations of the texts of each class."""
        return {
            name: text_activations(
                model,
                layer,
                of_class,
                policy.context_length,
                policy.llm_dtype,
                policy.llm_batch_size,
                cache=cache,
                padding_side=policy.padding,
                bos=policy.bos,
                revision=revision,
                loading=loading,
                title=f"{title} of class '{name}'",
            )
            for name, of_class in texts.items()
        }

    def passes() -> Iterator[ReadSet]:
        for one in divided:
            with torch.random.fork_rng(devices=[]):  # whatever reading draws is not taken from the probes
                part = ReadSet(one.name, read(one.train, f"{one.name}, training texts"), read(one.test, f"{one.name}, test texts"))
            yield part

    return SparseProbing(policy, model, layer, probe_activations(dictionary, passes(), policy))


def probe_activations(dictionary: Dictionary, sets: Iterable[ReadSet], policy: SparseProbingPolicy) -> dict[str, dict[str, Accuracies]]:
    """The probes alone, on activations that are at hand: test accuracies by set, metric and class."""
    accuracies = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(policy.random_seed)
        for one in sets:
            train, test = pool_texts(dictionary, one.train, policy), pool_texts(dictionary, one.test, policy)
            check_codes(train.codes, test.codes, one.name)
            with progress(f"Probing {one.name}", 2 * (1 + len(policy.k_values)) * len(train.codes), "probes") as advance:
                accuracies[one.name] = _probe_set(train, test, policy.k_values, advance)
    return accuracies


def divide(labelled: LabelledSet, policy: SparseProbingPolicy) -> DividedSet:
    """Training and test texts of each class: those that the source names, as they are; else drawn by the policy's seed, half as many of
    each class as the policy's sizes say, by shuffling class after class with one generator, as SAEBench does for code and languages.

    Raises TemporalLensError where a class has too few texts.
    """
    if labelled.parts is not None:
        return DividedSet(labelled.name, labelled.by_class("train"), labelled.by_class("test"))
    counts = policy.probe_train_set_size // 2, policy.probe_test_set_size // 2
    generator = Random(policy.random_seed)
    train: dict[str, list[str]] = {}
    test: dict[str, list[str]] = {}
    for name, texts in labelled.by_class().items():
        if len(texts) < sum(counts):
            raise TemporalLensError(
                f"class '{name}' of '{labelled.name}' has {len(texts)} texts, and {counts[0]} training and {counts[1]} test texts of each "
                "class are asked for; ask for smaller sizes, twice as many in all (--train-size and --test-size, or probe_train_set_size "
                "and probe_test_set_size)"
            )
        shuffled = list(texts)
        generator.shuffle(shuffled)
        train[name], test[name] = shuffled[: counts[0]], shuffled[counts[0] : sum(counts)]
    return DividedSet(labelled.name, train, test)


def fitting_sizes(sets: Sequence[LabelledSet]) -> dict[str, int]:
    """The policy's sizes: SAEBench's, or what the smallest class allows of training to test texts as 4 to 1."""
    counts = [len(texts) for one in sets if one.parts is None for texts in one.by_class().values()]
    smallest = min(counts, default=TRAIN_SIZE // 2 + TEST_SIZE // 2)
    return {
        "probe_train_set_size": min(TRAIN_SIZE, 2 * (4 * smallest // 5)),
        "probe_test_set_size": min(TEST_SIZE, 2 * (smallest // 5)),
    }


def check_sets(sets: Sequence[DividedSet]) -> None:
    """Raise TemporalLensError where there is no set, a name comes twice, or a class cannot have as many negatives as it has texts."""
    if not sets:
        raise TemporalLensError("there is nothing to probe: the list of labelled sets is empty")
    names = [one.name for one in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise TemporalLensError(f"two labelled sets are called '{twice}'; rename one, or leave it out")
    for one in sets:
        for part, texts in (("training", one.train), ("test", one.test)):
            empty = next((name for name, of_class in texts.items() if not of_class), None)
            if empty is not None:
                raise TemporalLensError(f"class '{empty}' of '{one.name}' has no {part} text; give it some, or leave the class out")
        if len(one.train) < 2:
            raise TemporalLensError(f"'{one.name}' has one class only: a probe tells at least two classes apart")
        if list(one.train) != list(one.test):
            found = f"{', '.join(one.train)} to train on and {', '.join(one.test)} to test on"
            raise TemporalLensError(f"'{one.name}' has the classes {found}; give the same, in the same order")
        for part, texts in (("training", one.train), ("test", one.test)):
            for name in texts:
                wanted, against = len(texts[name]), _negatives_at_hand(texts, name)
                if against < wanted:
                    raise TemporalLensError(
                        f"class '{name}' of '{one.name}' has {wanted} {part} texts and the other classes have {against} to set against "
                        "them (each the same share); give the classes similar numbers of texts"
                    )


def _negatives_at_hand(texts: Mapping[str, list[str]], name: str) -> int:
    share = -(-len(texts[name]) // (len(texts) - 1))
    return sum(min(len(of_class), share) for other, of_class in texts.items() if other != name)


def check_width(
    dictionary: Dictionary, model: str, layer: Layer, policy: SparseProbingPolicy, revision: str | None, loading: Loading
) -> None:
    """Raise TemporalLensError unless the dictionary fits the model's residual stream, and the model has the layer."""
    network = open_model(model, layer, policy.llm_dtype, revision, loading)
    if dictionary.width != network.width:
        raise TemporalLensError(
            f"this dictionary is for activations of width {dictionary.width}, the residual stream of {network.title} has width "
            f"{network.width}; name the model that it was trained on"
        )


class Pooled(NamedTuple):
    """Mean over live tokens, by class."""

    stream: Features  # the residual stream itself
    codes: Features  # of the dictionary


def pool_texts(dictionary: Dictionary, activations: Mapping[str, TextActivations], policy: SparseProbingPolicy) -> Pooled:
    """The texts of each class, pooled, `sae_batch_size` of them at a time."""
    pooled = Pooled({}, {})
    for name, of_class in activations.items():
        stream, codes = [], []
        for first in range(0, len(of_class), policy.sae_batch_size):
            part, device = slice(first, first + policy.sae_batch_size), dictionary.encoder.device
            x = of_class.x[part].to(device)
            stream.append(pool_live(x, x))
            known = of_class.sequences(part).to(device)
            codes.append(pool_live(padded_codes(dictionary, x, of_class.position[part].to(device), known), x))
        pooled.stream[name], pooled.codes[name] = torch.cat(stream), torch.cat(codes)
    return pooled


@torch.no_grad()
def padded_codes(
    dictionary: Dictionary, x: Float[Tensor, "B S D"], position: Int[Tensor, "B S"], context: Context
) -> Float[Tensor, "B S F"]:
    """Codes of padded rows in which padding and BOS are zero, in the dtype of `x`.

    The dictionary computes in its own dtype, float32, whatever that of `x`.
    """
    return dictionary.encode(x, position, context).to(x.dtype)


@torch.no_grad()
def pool_live(features: Float[Tensor, "B S F"], x: Float[Tensor, "B S D"]) -> Float[Tensor, "B F"]:
    """Mean over the live tokens of each text: those whose activation `x` does not sum to 0."""
    live = (x.sum(2) != 0).to(x.dtype)
    weighed = features if features is x else features * live[:, :, None]  # x is zero already where it is not live
    return (weighed.sum(1) / live.sum(1)[:, None]).to(x.dtype)


def check_codes(train: Features, test: Features, name: str) -> None:
    """Raise TemporalLensError when no feature tells any two texts apart."""
    codes = torch.cat([*train.values(), *test.values()]).float()
    lowest, highest = codes.amin(0), codes.amax(0)
    resolution = max(torch.finfo(one.dtype).eps for one in train.values())
    if bool((highest - lowest <= CONSTANT_WITHIN * resolution * highest.abs().maximum(lowest.abs())).all()):
        raise TemporalLensError(
            f"the dictionary gives every text of '{name}' the same codes, so its probes would say 0.5 whatever the labels: "
            "its weights were never trained or loaded, or are for another model or layer"
        )


def _probe_set(train: Pooled, test: Pooled, k_values: Sequence[int], advance: Callable[[int], None]) -> dict[str, Accuracies]:
    """All probes of one set, in SAEBench's order of draws; metrics in the order of its results."""
    found: dict[str, Accuracies] = {}
    for what, features, tested in (("llm", train.stream, test.stream), ("sae", train.codes, test.codes)):
        for k in (None, *k_values):
            metric = f"{what}_test_accuracy" if k is None else f"{what}_top_{k}_test_accuracy"
            found[metric] = {name: _probe_class(features, tested, name, k) for name in features}
            advance(len(features))
    last = [metric for metric in found if metric.startswith("sae_top")]
    order = ["sae_test_accuracy", *(metric for metric in found if metric.startswith("llm")), *last]
    return {metric: found[metric] for metric in order}


def _probe_class(train: Features, test: Features, name: str, k: int | None) -> float:
    """Test accuracy of the probe for one class against the others, on the best k features (None: on all)."""
    train_x, train_y = _task(train, name)
    test_x, test_y = _task(test, name)
    if k is None:
        return full_probe(train_x, train_y, test_x, test_y)
    chosen = top_features(train_x, train_y, k)
    return logistic_probe(train_x[:, chosen], train_y, test_x[:, chosen], test_y)


def _task(features: Features, name: str) -> tuple[Float[Tensor, "m F"], Int[Tensor, " m"]]:
    """The texts of a class and as many of the others, shuffled. Draws from PyTorch's global generator."""
    positive = features[name]
    others = [rows for other, rows in features.items() if other != name]
    share = -(-len(positive) // len(others))
    negative = torch.cat([rows[torch.randperm(len(rows))[:share]] for rows in others])
    negative = negative[torch.randperm(len(negative))[: len(positive)]]
    both = torch.cat([positive, negative])
    labels = torch.full((len(both),), NEGATIVE, dtype=torch.int32, device=both.device)
    labels[: len(positive)] = POSITIVE
    order = torch.randperm(len(both))
    return both[order], labels[order]


def top_features(x: Float[Tensor, "m F"], labels: Int[Tensor, " m"], k: int) -> Int[Tensor, " k"]:
    """The k features whose means differ most between the classes, ascending; ties fall as PyTorch's unstable sort lets them."""
    difference = (x[labels == POSITIVE].mean(0) - x[labels == NEGATIVE].mean(0)).abs()
    return torch.argsort(difference, descending=True)[:k].sort().values


def logistic_probe(
    train: Float[Tensor, "m k"], train_labels: Int[Tensor, " m"], test: Float[Tensor, "n k"], test_labels: Int[Tensor, " n"]
) -> float:
    """Test accuracy of an L2-regularised logistic regression, in float32."""
    coefficients = fit_logistic(train.float().cpu().numpy(), train_labels.cpu().numpy() == POSITIVE)
    predicted = predict_logistic(coefficients, test.float().cpu().numpy())
    return float(np.mean(predicted == (test_labels.cpu().numpy() == POSITIVE)))


@torch.enable_grad()
def full_probe(
    train: Float[Tensor, "m F"], train_labels: Int[Tensor, " m"], test: Float[Tensor, "n F"], test_labels: Int[Tensor, " n"]
) -> float:
    """Best test accuracy over the epochs of a linear probe on all features. Draws from PyTorch's global generator."""
    probe = nn.Linear(train.shape[1], 1, dtype=train.dtype).to(train.device)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=LEARNING_RATE)
    criterion = nn.BCEWithLogitsLoss()
    targets = train_labels.to(train.dtype)
    best, waited = 0.0, 0
    for _ in range(EPOCHS):
        order = torch.randperm(len(train))
        for batch in order.split(PROBE_BATCH):
            loss = criterion(probe(train[batch]).squeeze(-1), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        accuracy = _linear_accuracy(probe, test, test_labels)
        best, waited = (accuracy, 0) if accuracy > best else (best, waited + 1)
        if waited >= PATIENCE:
            break
    return best


@torch.no_grad()
def _linear_accuracy(probe: nn.Linear, x: Float[Tensor, "n F"], labels: Int[Tensor, " n"]) -> float:
    """Share of labels that the sign of the logit predicts, in float32 as SAEBench counts it."""
    predicted = [probe(part).squeeze(-1) > 0 for part in x.split(PROBE_BATCH)]
    return (torch.cat(predicted) == (labels == POSITIVE)).float().mean().item()

"""Cause: is what is encoded of position also used by the model (`docs/method.md`, "Interventions")?

The stream that the store holds is changed at its layer (`changes`), the blocks above run on, and the next token is predicted. Every change
is compared with changes as large, over the same tokens: turned into other directions, and of what is alike but has nothing to do with
position. `encoded` is the share of the variance that a change takes away, `used` what it costs beyond its controls: KL of clean from
changed predictions in nats a token, or, of an encoder, the squared distance of its last hidden states as a share of their variance.
Intervals are by bootstrap over documents, paired by token.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator

from temporallens.activations.language.models import Layer
from temporallens.activations.store import ActivationStore
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.firings import Firings
from temporallens.evaluation.heldout import find_firings
from temporallens.evaluation.interventions.changes import (
    Change,
    Doing,
    How,
    activity,
    feature_change,
    matched,
    mean_change,
    turned,
    within,
)
from temporallens.evaluation.model.splicing import Losses, Means, Splicer, index_bins, last_streams, losses_of, opened
from temporallens.evaluation.positions.specialisation import PositionsPolicy, discover, usual_positions
from temporallens.evaluation.section import Section, Subject
from temporallens.evaluation.statistics import Estimate, estimate_of, resampled_documents
from temporallens.settings import Seed, Settings
from temporallens.wording import Row, Table, estimated, percent

TIED, LISTED, MEANS = "features tied to position", "chosen features", "means of positions"
TURNED, MATCHED = "turned", "matched"


class InterventionsPolicy(Settings):
    """The `interventions` section of a study's evaluation."""

    features: Literal["tied"] | tuple[int, ...] = "tied"
    """Which features are changed: those that depend on position (q < `q`), or a list of them."""
    how: How = "ablate"
    """Whether they are set to 0, clamped to `amount`, or `amount` is added to them; all at once."""
    amount: float = Field(1.0, gt=-100, lt=100)
    """In mean activations of each feature while it fires."""
    first: int = Field(1, ge=0)
    """The first index of a row at which the stream is changed."""
    last: int | None = Field(None, ge=0)
    """The last one; None: the row's."""
    q: float = Field(0.05, gt=0, le=0.05)
    """False discovery rate at which a feature is said to depend on position."""
    rows: int = Field(32, ge=2)
    """Held-out rows, evenly spaced. Each change and control reads them once: 32 of 128 tokens take a 135 M model some seconds from its
    middle on."""
    draws: int = Field(3, ge=1, le=100)
    """Of every control; they are averaged."""
    bins: int = Field(8, ge=1)
    """Log-spaced bins of the index in the row."""
    batch_size: int = Field(2, ge=1)
    """Rows in a forward pass: predictions of all changes over the whole vocabulary are held in float32."""
    resamples: int = Field(1000, ge=2)
    """Bootstrap resamples of the documents behind every interval."""
    seed: Seed = 0
    """Of draws and resamples."""

    @model_validator(mode="after")
    def _is_somewhere(self) -> "InterventionsPolicy":
        if self.last is not None and self.last < self.first:
            raise ValueError(f"the stream is changed from index {self.first} to {self.last}: last should not be below first")
        if self.features != "tied" and (not self.features or len(set(self.features)) < len(self.features)):
            raise ValueError("features are `tied`, or a list of features, each once")
        return self


class Effect(NamedTuple):
    """What a change does."""

    removed: float  # mean square of the change at changed tokens, as a share of the variance
    loss: Estimate  # cross-entropy beyond the clean one; of an encoder, as `kl`
    kl: Estimate  # KL in nats a token; of an encoder, squared distance of hidden states as a share of their variance


class BinEffects(NamedTuple):
    """`kl` of tokens at index `first` to `last` of their rows."""

    first: int
    last: int
    found: Estimate
    controls: dict[str, Estimate]


class Intervention(NamedTuple):
    """One change beside its controls."""

    name: str
    features: int | None  # that are changed; None of means
    found: Effect
    controls: dict[str, Effect]
    beyond: dict[str, Estimate]  # `kl` less that of each control
    bins: list[BinEffects]


class InterventionMeasures(NamedTuple):
    """One dictionary."""

    loss: Literal["cross-entropy", "hidden states"]
    tied: int | None  # features that depend on position; None where a list was given
    interventions: list[Intervention]
    rows: int
    documents: int
    tokens: int  # at which predictions are compared


@own_defaults()
def measure_interventions(
    dictionary: Dictionary,
    model: str,
    layer: Layer,
    store: ActivationStore,
    held_out: Int[np.ndarray, " n"],
    policy: InterventionsPolicy,
    cache: Path | None = None,
) -> InterventionMeasures:
    """Change the stream at `layer` of `model` by what `dictionary` says of it, and by what position says; encodings and passes are kept in
    `cache`.

    Raises TemporalLensError when dictionary, store and model do not belong together, rows are too short, or a listed feature is none.
    """
    if dictionary.config.open_loop:
        raise TemporalLensError(f"a '{dictionary.kind}' dictionary decodes from more than codes: leave interventions out for it")
    firings = find_firings(dictionary, store, held_out, cache)
    chosen = _chosen(firings, policy)
    work = opened(dictionary, model, layer, store, held_out, policy.rows, policy.batch_size, "interventions")
    generator = np.random.default_rng(policy.seed)
    plans = _plans(dictionary, store, firings, chosen, policy, generator)
    variance = float(store.moments.pooled_variance())
    tried = {
        (name, what, draw): change for name, plan in plans.items() for what, changes in plan.items() for draw, change in enumerate(changes)
    }
    sizes = {key: _removed(work, change, variance) for key, change in tried.items()}
    substitutes = {repr(key): _added_to(change) for key, change in tried.items()}
    losses = losses_of(work, last_streams(work, cache), substitutes, ("kept",))
    documents = int(work.document.max()) + 1
    times = resampled_documents(documents, policy.resamples, np.random.default_rng((policy.seed, 1)))
    summary = _Summary(work, losses, sizes, Means(work.document, np.concatenate([np.ones((1, documents)), times])), policy)
    return InterventionMeasures(
        loss="cross-entropy" if work.model.has_head else "hidden states",
        tied=len(chosen) if policy.features == "tied" else None,
        interventions=[
            summary.intervention(name, {what: len(plan[what]) for what in plan}, _counted(name, chosen)) for name, plan in plans.items()
        ],
        rows=len(work.chosen.length),
        documents=documents,
        tokens=len(work.index),
    )


def _counted(name: str, chosen: Int[np.ndarray, " f"]) -> int | None:
    return None if name == MEANS else len(chosen)


def _chosen(firings: Firings, policy: InterventionsPolicy) -> Int[np.ndarray, " f"]:
    """The features that are changed."""
    if policy.features != "tied":
        wrong = [feature for feature in policy.features if not 0 <= feature < firings.features]
        if wrong:
            raise TemporalLensError(f"there is no feature {wrong[0]} to change: this dictionary has {firings.features}, from 0")
        return np.array(sorted(policy.features), dtype=np.int64)
    asked = PositionsPolicy(q=policy.q)
    found = discover(usual_positions(firings, asked.least_tokens), asked)
    return found.feature[found.specialised]


FOUND = "found"


def _plans(
    dictionary: Dictionary,
    store: ActivationStore,
    firings: Firings,
    chosen: Int[np.ndarray, " f"],
    policy: InterventionsPolicy,
    generator: np.random.Generator,
) -> dict[str, dict[str, list[Change]]]:
    """Every change with the draws of its controls."""
    power, strength = activity(firings)
    doing = Doing(policy.how, policy.amount)
    plans: dict[str, dict[str, list[Change]]] = {}
    if len(chosen):
        change = feature_change(dictionary, chosen, doing, strength)
        others = [matched(chosen, power, generator) for _ in range(policy.draws)]
        plans[TIED if policy.features == "tied" else LISTED] = {
            FOUND: [change],
            TURNED: [turned(change, dictionary.width, generator) for _ in range(policy.draws)],
            MATCHED: [feature_change(dictionary, other, doing, strength) for other in others if len(other)],
        }
    change = mean_change(store.moments)
    orders = [_permuted(store.moments.count.numpy(), generator) for _ in range(policy.draws)]
    plans[MEANS] = {
        FOUND: [change],
        TURNED: [turned(change, dictionary.width, generator) for _ in range(policy.draws)],
        MATCHED: [mean_change(store.moments, order) for order in orders],
    }
    return {
        name: {what: [within(one, policy.first, policy.last) for one in changes] for what, changes in plan.items() if changes}
        for name, plan in plans.items()
    }


def _permuted(count: Int[np.ndarray, " P"], generator: np.random.Generator) -> Int[np.ndarray, " P"]:
    """Positions that have rows in another order, the others where they are."""
    order, seen = np.arange(len(count)), np.flatnonzero(count > 0)
    order[seen] = generator.permutation(seen)
    return order


def _added_to(change: Change) -> Callable[..., torch.Tensor]:
    return lambda rows: rows.x.float() + change(rows)


@torch.inference_mode()
def _removed(work: Splicer, change: Change, variance: float) -> float:
    """Mean square of a change at kept tokens, as a share of the variance."""
    total, tokens = 0.0, 0
    for batch in work.batches():
        own = batch.selected & (batch.rows.excluded == 0)
        total += float(change(batch.rows)[own].square().sum())
        tokens += int(own.sum())
    return total / (tokens * variance)


class _Summary:
    """Effects from losses."""

    def __init__(
        self, work: Splicer, losses: Losses, sizes: Mapping[tuple[str, str, int], float], means: Means, policy: InterventionsPolicy
    ) -> None:
        self._work, self._losses, self._sizes, self._means = work, losses, sizes, means
        self._bin_count = policy.bins

    def _of(self, name: str, what: str, draws: int, kind: str) -> Float[np.ndarray, " n"]:
        """A loss of every token, over the draws."""
        keys = [f"{kind}{(name, what, draw)!r}/kept" for draw in range(draws)]
        return np.mean([self._losses[key] for key in keys], axis=0)

    def _kl(self, name: str, what: str, draws: int) -> Float[np.ndarray, " n"]:
        return self._of(name, what, draws, "kl/") if self._work.model.has_head else self._of(name, what, draws, "")

    def _estimate(self, values: Float[np.ndarray, " n"], own: Bool[np.ndarray, " n"] | None = None) -> Estimate:
        own = np.ones(len(values), dtype=bool) if own is None else own
        found = self._means.of(values, own)
        return estimate_of(float(found[0]), found[1:], int(own.sum()))

    def _effect(self, name: str, what: str, draws: int) -> Effect:
        return Effect(
            removed=float(np.mean([self._sizes[name, what, draw] for draw in range(draws)])),
            loss=self._estimate(self._of(name, what, draws, "") - self._losses["clean"]),
            kl=self._estimate(self._kl(name, what, draws)),
        )

    def intervention(self, name: str, draws: Mapping[str, int], features: int | None) -> Intervention:
        """One change beside its controls, each of so many draws."""
        kl = {what: self._kl(name, what, count) for what, count in draws.items()}
        controls = [what for what in draws if what != FOUND]
        return Intervention(
            name=name,
            features=features,
            found=self._effect(name, FOUND, draws[FOUND]),
            controls={what: self._effect(name, what, draws[what]) for what in controls},
            beyond={what: self._estimate(kl[FOUND] - kl[what]) for what in controls},
            bins=self._bins(kl, controls),
        )

    def _bins(self, kl: Mapping[str, Float[np.ndarray, " n"]], controls: list[str]) -> list[BinEffects]:
        return [
            BinEffects(first, last, self._estimate(kl[FOUND], own), {what: self._estimate(kl[what], own) for what in controls})
            for first, last, own in index_bins(self._work.index, self._bin_count)
        ]


def in_words(name: str, measured: InterventionMeasures) -> str:
    """What position is to the model, as far as these changes say."""
    (means,) = [one for one in measured.interventions if one.name == MEANS]
    encoded, used = percent(means.found.removed), means.beyond[TURNED]
    unit = "nats a token" if measured.loss == "cross-entropy" else "of the hidden states' variance"
    if used.low is not None and used.low > 0:
        said = f"the model uses it: taking it away costs {estimated(used, 4)} {unit} more than as large a change in other directions"
    else:
        said = f"taking it away costs no more than as large a change in other directions ({estimated(used, 4)} {unit})"
    lost = "" if measured.loss != "cross-entropy" else f"; next-token loss changes by {estimated(means.found.loss, 4)}"
    return f"{name}: position is {encoded} of the variance, and {said}{lost}."


def _of_subject(subject: Subject, policy: InterventionsPolicy) -> InterventionMeasures:
    model, layer = subject.source["model"], subject.source["layer"]
    return measure_interventions(subject.dictionary, model, layer, subject.store, subject.held_out, policy, subject.cache)


def tables(found: Mapping[str, InterventionMeasures]) -> list[Table]:
    """What changes cost, beside changes as large."""
    rows = []
    for head, measured in found.items():
        for one in measured.interventions:
            title = f"{head}: {one.name}" + ("" if one.features is None else f" ({one.features:,})")
            cells = [f"{100 * one.found.removed:.2f} %", estimated(one.found.loss, 4), estimated(one.found.kl, 4)]
            for what in (TURNED, MATCHED):
                control = one.controls.get(what)
                cells += ["", ""] if control is None else [estimated(control.kl, 4), estimated(one.beyond[what], 4)]
            rows.append(Row(title, cells))
    first = next(iter(found.values()))
    measure = "KL, nats a token" if first.loss == "cross-entropy" else "hidden states, share of variance"
    columns = ["change", "encoded", "loss", measure, "turned", "beyond turned", "others alike", "beyond these"]
    note = (
        "Encoded: mean square of what is taken away, as a share of the variance. Turned: the same change in random directions. Others "
        "alike: other features as active, or the means of other positions. Intervals are over documents, paired by token. "
        + " ".join(in_words(head, measured) for head, measured in found.items())
    )
    return [Table("Is position used? The stream is changed and the model goes on", columns, rows, note)]


SECTION = Section(
    name="interventions",
    policy=InterventionsPolicy,
    version=1,
    measure=_of_subject,
    measures=InterventionMeasures,
    from_codes=True,
    reads_model=True,
    tables=tables,
)

"""What a model makes of a dictionary's reconstructions: cross-entropy recovered and KL when they are spliced in at its layer.

The stream that the store holds (of a pair, what its target holds) is replaced, the blocks above and the head run on, and the next token is
predicted. With CE the mean cross-entropy of those predictions, `recovered = (CE(ablated) - CE(spliced)) / (CE(ablated) - CE(clean))`, the
ablated stream being zero or the mean activation, and `KL = sum_v P(v) log(P(v) / Q(v))` of clean and spliced predictions, in nats. In the
headline the rows that a rule excludes (position 0, sinks, special tokens) stay as they are, and are counted nowhere; the same with every
row replaced stands beside it. Where an ablation is not shown to cost anything, a share of that cost is not told. In packed rows the
documents that are not held out stay as they are, too. An encoder predicts no next token: there the mean squared distance of its last hidden
states from the clean ones, as a share of their variance, takes the place of cross-entropy. Intervals are by bootstrap over documents.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from temporallens.activations.context import context_of
from temporallens.activations.language.loading import Loading
from temporallens.activations.language.model_files import content_stamp
from temporallens.activations.language.models import LanguageModel, Layer
from temporallens.activations.store import ActivationStore
from temporallens.activations.writer import Rows
from temporallens.cache import Cache
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.masks import group_starts
from temporallens.errors import TemporalLensError
from temporallens.evaluation.heldout import check_target, without_codes
from temporallens.evaluation.identity import store_fingerprint
from temporallens.evaluation.model.origin import TokenRows, check_origin, check_unchanged, choose_rows, harvest_of, padded
from temporallens.evaluation.section import Section, Subject
from temporallens.evaluation.statistics import Estimate, estimate_of, quotient, resampled_documents
from temporallens.precision import RequestedPrecision
from temporallens.progress import progress
from temporallens.settings import Seed, Settings
from temporallens.wording import Row, Table, estimated

FORMAT = "temporallens.splicing/1"
TOKENS_TOGETHER = 16
"""Tokens whose predictions are compared at a time: for a vocabulary of 50,000 they take 3 MB each way."""
LEAST_TOKENS = 3  # of a row: its first is excluded, and the last predicts nothing
Scope = Literal["kept", "all"]
SCOPES: tuple[Scope, ...] = ("kept", "all")


class SplicingPolicy(Settings):
    """The `splicing` section of a study's evaluation."""

    rows: int = Field(64, ge=1)
    """Held-out rows, evenly spaced. 64 of 128 tokens take a 135 M model about a minute on two cores, and half of that once the
    ablations of their layer are known."""
    bins: int = Field(8, ge=1)
    """Log-spaced bins of the index in the row for the results by position."""
    batch_size: int = Field(4, ge=1)
    """Rows in a forward pass: their predictions over the whole vocabulary are held in float32."""
    resamples: int = Field(1000, ge=2)
    """Bootstrap resamples of the documents behind every interval."""
    seed: Seed = 0
    """Draws the resamples."""


class Spliced(NamedTuple):
    """Losses (nats of cross-entropy per token; of an encoder, shares of variance) and their comparison."""

    clean: Estimate
    spliced: Estimate
    zero: Estimate  # with zeros in place of the stream
    mean: Estimate  # with the store's mean activation in its place
    recovered_zero: Estimate  # share of what zeros cost that the dictionary does not; nothing where they are not shown to cost anything
    recovered_mean: Estimate
    kl: Estimate | None  # of clean predictions from spliced ones, nats per token; None for encoders
    kl_zero: Estimate | None
    kl_mean: Estimate | None
    known: Estimate | None = None  # with what an expectation says in its place, without codes; None where nothing is known beforehand
    recovered_zero_known: Estimate | None = None
    recovered_mean_known: Estimate | None = None


class Bin(NamedTuple):
    """The headline for tokens at index `first` to `last` of their rows."""

    first: int
    last: int
    measured: Spliced


class SplicingMeasures(NamedTuple):
    """One dictionary spliced into its model."""

    loss: Literal["cross-entropy", "hidden states"]
    reason: str | None  # why there is neither cross-entropy nor KL
    headline: Spliced  # what a rule excludes stays as it is
    everything: Spliced  # every row is replaced, position 0 included; counted on the same tokens
    bins: list[Bin]  # the headline by index, without bins in which there is no token
    rows: int
    documents: int
    tokens: int  # at which predictions are compared


class _Batch(NamedTuple):
    """A batch on its way through the model; B sequences of at most S tokens."""

    rows: Rows
    x: Float[Tensor, "N D"]  # what is replaced: that of the rows, or of a pair the target's
    selected: Bool[Tensor, " N"]  # rows of held-out documents: all, but where documents are packed
    tokens: Int[Tensor, "B S"]
    mask: Bool[Tensor, "B S"]
    counted: Bool[Tensor, "B S"]  # tokens at which predictions are compared
    lengths: Int[np.ndarray, " B"]


Substitute = Callable[[Rows], Float[Tensor, "N D"]]
"""What takes the place of the stream at some rows."""

Losses = dict[str, Float[np.ndarray, " n"]]
"""Losses and KLs of the counted tokens, in the order of the batches, by name: `clean`, `zero/kept`, `kl/zero/kept`, ..."""


@own_defaults()
def measure_splicing(
    dictionary: Dictionary,
    model: str,
    layer: Layer,
    store: ActivationStore,
    held_out: Int[np.ndarray, " n"],
    policy: SplicingPolicy,
    cache: Path | None = None,
) -> SplicingMeasures:
    """Splice `dictionary` into `model` at the layer of the store, a transcoder at that of its target; what is the same for every dictionary
    is kept in `cache`.

    Raises TemporalLensError when dictionary, store and model do not belong together, or rows are too short.
    """
    work = opened(dictionary, model, layer, store, held_out, policy.rows, policy.batch_size, "splicing")
    substitutes: dict[str, Substitute] = {"spliced": lambda rows: dictionary(rows.x.float(), rows.position.long(), context_of(rows))}
    if dictionary.config.expectation is not None:
        substitutes["known"] = partial(without_codes, dictionary)
    files, key = None if cache is None else Cache(cache / "splicing", FORMAT), _ablated_key(work)
    ablated = None if files is None else files.tensors(key)
    if ablated is None:
        mean = store.given.moments.pooled_mean().float()
        substitutes |= {"zero": lambda rows: mean.new_zeros(len(rows.x), len(mean)), "mean": lambda rows: mean.expand(len(rows.x), -1)}
    losses = {name: values.numpy() for name, values in (ablated or {}).items()} | losses_of(work, last_streams(work, cache), substitutes)
    if ablated is None and files is not None:
        files.put_tensors(key, {name: torch.from_numpy(values) for name, values in losses.items() if not _of_dictionary(name)})
    return _summarise(work, losses, policy)


def opened(
    dictionary: Dictionary,
    model: str,
    layer: Layer,
    store: ActivationStore,
    held_out: Int[np.ndarray, " n"],
    rows: int,
    batch_size: int,
    what: str,
) -> "Splicer":
    """At most so many held-out rows, and the model that they go on through: from the layer of the store, or that of its target. `what` is
    done with them.

    Raises TemporalLensError as `measure_splicing` does.
    """
    check_origin(dictionary, store, model, layer)
    check_target(dictionary, store)
    chosen = choose_rows(store, held_out, rows, LEAST_TOKENS, what)
    harvest = harvest_of(store)
    network = whole_model(model, harvest.compute_dtype, harvest.revision, harvest.loading, content_stamp(model))
    check_unchanged(network, store)
    work = Splicer(network, layer if harvest.target is None else harvest.target, store, chosen, batch_size)
    if not int(work.counted.sum()):
        raise TemporalLensError(f"the held-out rows of {store.folder} hold no usable token before their last: nothing can be spliced")
    return work


def _of_dictionary(name: str) -> bool:
    """Whether a loss is that of a dictionary, not the same for all of them."""
    return "spliced" in name or "known" in name


@lru_cache(maxsize=1)
def whole_model(model: str, dtype: RequestedPrecision, revision: str | None, loading: Loading, _stamp: tuple[Any, ...]) -> LanguageModel:
    """All layers of `model` and its head, loaded once for all dictionaries of a study."""
    return LanguageModel.load(model, dtype=dtype, revision=revision, head=True, loading=loading)


class Splicer:
    """Rows of a store and the model that they go on through."""

    def __init__(self, model: LanguageModel, layer: Layer, store: ActivationStore, chosen: TokenRows, batch_size: int) -> None:
        self.model, self.layer, self.store, self.chosen, self.batch_size = model, layer, store, chosen, batch_size
        number = np.repeat(np.arange(len(chosen.length)), chosen.length)
        last = np.append(number[1:] != number[:-1], True)
        followed = ~last if model.has_head else np.ones(len(number), dtype=bool)
        self.counted = chosen.selected & (chosen.rows.excluded == 0) & torch.from_numpy(followed)
        counted = self.counted.numpy()
        self.document = np.searchsorted(np.unique(chosen.document), chosen.rows.document.numpy()[counted])  # of the counted tokens
        self.index = chosen.rows.index.numpy()[counted]

    def batches(self) -> Iterator[_Batch]:
        first = 0
        for part in self.chosen.parts(self.batch_size):
            rows, lengths = self.chosen.of(part), self.chosen.length[part]
            mask = torch.arange(int(lengths.max())) < torch.from_numpy(lengths)[:, None]
            part_rows = slice(first, first + len(rows.x))
            x = rows.x if self.chosen.target is None else self.chosen.target[part_rows]
            selected, counted = self.chosen.selected[part_rows], padded(self.counted[part_rows], lengths)
            yield _Batch(rows, x, selected, padded(rows.token, lengths), mask, counted, lengths)
            first += len(rows.x)

    def stream(self, batch: _Batch, instead: Float[Tensor, "N D"] | None, scope: Scope) -> Float[Tensor, "B S D"]:
        """The stored stream, with `instead` in its place: at usable rows of held-out documents, or at all rows of them."""
        x = batch.x
        if instead is not None:
            replaced = batch.selected & ((batch.rows.excluded == 0) | (scope == "all"))
            x = torch.where(replaced[:, None], instead.to(x.dtype), x)
        return padded(x, batch.lengths)

    def last_stream(self, batch: _Batch) -> Float[Tensor, "N D"]:
        """What the last block makes of the stored stream, at all rows of a batch."""
        stream = self.stream(batch, None, "kept")
        return self.model.carried(stream, self.layer, self.model.layers - 1, batch.tokens, batch.mask).cpu()[batch.mask]

    def clean(self, batch: _Batch, last: Float[Tensor, "N D"]) -> Float[Tensor, "M V"]:
        """Logits, or last hidden states, that end a pass whose last block gives `last`, at all B x S places of a batch."""
        stream = padded(last, batch.lengths)
        return self.model.continued(stream, self.model.layers - 1, batch.tokens, batch.mask).cpu().flatten(0, 1)

    def changed(self, batch: _Batch, instead: Float[Tensor, "N D"], scope: Scope) -> Float[Tensor, "M V"]:
        """The same with `instead` in place of the stream."""
        stream = self.stream(batch, instead, scope)
        return self.model.continued(stream, self.layer, batch.tokens, batch.mask).cpu().flatten(0, 1)

    def compare(
        self, batch: _Batch, clean: Float[Tensor, "M V"], changed: dict[str, Float[Tensor, "M V"]]
    ) -> Iterator[tuple[str, Float[Tensor, " n"]]]:
        """Losses and KLs of the counted tokens under their names, a few tokens at a time, whose predictions stay near the processor.
        Hidden states are compared by squared distance, and `clean` are the states themselves."""
        following = batch.tokens.roll(-1, 1).flatten()
        for tokens in batch.counted.flatten().nonzero()[:, 0].split(TOKENS_TOGETHER):
            if not self.model.has_head:
                states = clean[tokens].float()
                yield "clean", states.double()
                for name, other in changed.items():
                    yield name, (other[tokens].float() - states).square().sum(1, dtype=torch.float64)
                continue
            target = following[tokens, None]
            predicted_clean = functional.log_softmax(clean[tokens], 1, dtype=torch.float32)
            probability = predicted_clean.exp()
            yield "clean", -predicted_clean.gather(1, target)[:, 0].double()
            for name, other in changed.items():
                predicted = functional.log_softmax(other[tokens], 1, dtype=torch.float32)
                yield name, -predicted.gather(1, target)[:, 0].double()
                kl = (predicted_clean - predicted).mul_(probability).sum(1)  # an inner product would lose the many small terms
                yield f"kl/{name}", kl.double()


def last_streams(work: Splicer, cache: Path | None) -> Float[Tensor, "N D"]:
    """What the last block makes of the stored stream, at all rows; so the model's blocks are run once for all dictionaries."""
    files, key = None if cache is None else Cache(cache / "splicing", FORMAT), _ablated_key(work) | {"of": "last block"}
    found = None if files is None else files.tensors(key)
    if found is None:
        found = {"stream": _read_through(work)}
        if files is not None:
            files.put_tensors(key, found)
    return found["stream"]


def _read_through(work: Splicer) -> Float[Tensor, "N D"]:
    with progress(f"Reading with {work.model.title}", int(work.chosen.length.sum()), "tokens") as advance, torch.no_grad():
        parts = []
        for batch in work.batches():
            parts.append(work.last_stream(batch))
            advance(len(batch.rows.x))
    return torch.cat(parts)


def losses_of(work: Splicer, last: Float[Tensor, "N D"], substitutes: Mapping[str, Substitute], scopes: Sequence[Scope] = SCOPES) -> Losses:
    """Losses of every counted token with the stream as it is, and with each of the substitutes in its place."""
    found: dict[str, list[Tensor]] = {}
    read = 0
    with progress(f"Splicing into {work.model.title}", int(work.chosen.length.sum()), "tokens") as advance, torch.no_grad():
        for batch in work.batches():
            clean = work.clean(batch, last[read : read + len(batch.rows.x)])
            changed: dict[str, Tensor] = {}
            for name, substitute in substitutes.items():
                instead = substitute(batch.rows)
                changed |= {f"{name}/{scope}": work.changed(batch, instead, scope) for scope in scopes}
            for name, loss in work.compare(batch, clean, changed):
                found.setdefault(name, []).append(loss)
            read += len(batch.rows.x)
            advance(len(batch.rows.x))
    losses = {name: torch.cat(parts) for name, parts in found.items()}
    if not work.model.has_head:  # squared distances become shares of the variance of the clean states
        states = losses["clean"]
        losses = {name: loss / states.var(0, correction=0).sum() for name, loss in losses.items()}
        losses["clean"] = states.new_zeros(len(states))
    return {name: loss.numpy() for name, loss in losses.items()}


def _ablated_key(work: Splicer) -> dict[str, Any]:
    """Everything that shapes the losses under ablation, which are the same for every dictionary."""
    return {"store": store_fingerprint(work.store), "sequences": work.chosen.entry.tolist(), "batch_size": work.batch_size}


def _summarise(work: Splicer, losses: Losses, policy: SplicingPolicy) -> SplicingMeasures:
    documents = int(work.document.max()) + 1
    times = resampled_documents(documents, policy.resamples, np.random.default_rng(policy.seed))
    means = Means(work.document, np.concatenate([np.ones((1, documents)), times]))
    bins = [Bin(first, last, _measured(means, losses, "kept", own)) for first, last, own in index_bins(work.index, policy.bins)]
    every = np.ones(len(work.index), dtype=bool)
    head = work.model.has_head
    return SplicingMeasures(
        loss="cross-entropy" if head else "hidden states",
        reason=None if head else _reason(work.model),
        headline=_measured(means, losses, "kept", every),
        everything=_measured(means, losses, "all", every),
        bins=bins,
        rows=len(work.chosen.length),
        documents=documents,
        tokens=len(work.index),
    )


def index_bins(index: Int[np.ndarray, " n"], bins: int) -> Iterator[tuple[int, int, Bool[np.ndarray, " n"]]]:
    """Log-spaced bins of indices in the row in which there is a token: the first and last index, and which tokens."""
    longest = int(index.max()) + 1
    starts = np.array(group_starts(longest, max(1, min(bins, longest - 1))))
    bin_of = np.searchsorted(starts, index, side="right") - 1
    for number, start in enumerate(starts.tolist()):
        own = bin_of == number
        if own.any():
            yield max(1, start), (int(starts[number + 1]) if number + 1 < len(starts) else longest) - 1, own


def _reason(model: LanguageModel) -> str:
    why = "is an encoder, whose tokens see those after them" if model.is_encoder else "has no language-model head among its weights"
    return f"{model.title} {why}: it predicts no next token, so its last hidden states are compared instead of cross-entropy and KL"


class Means:
    """Means over tokens, as they are and in every resample of the documents."""

    def __init__(self, document: Int[np.ndarray, " n"], weights: Float[np.ndarray, "B1 D"]) -> None:
        self._document, self._weights = document, weights  # the first row of weights: each document once

    def of(self, values: Float[np.ndarray, " n"], tokens: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " B1"]:
        """NaN in resamples in which there is no such token."""
        documents = self._weights.shape[1]
        total = self._weights @ np.bincount(self._document[tokens], weights=values[tokens], minlength=documents)
        count = self._weights @ np.bincount(self._document[tokens], minlength=documents)
        return quotient(total, count)


def _measured(means: Means, losses: Losses, scope: Scope, over: Bool[np.ndarray, " n"]) -> Spliced:
    """The comparison over the tokens `over`."""
    tokens, is_known = int(over.sum()), f"known/{scope}" in losses

    def mean(name: str) -> Float[np.ndarray, " B1"]:
        return means.of(losses[name], over)

    def estimate(values: Float[np.ndarray, " B1"]) -> Estimate:
        return estimate_of(float(values[0]), values[1:], tokens)

    def recovered(ablation: str, by: str = "spliced") -> Estimate:
        ablated, cost = mean(f"{ablation}/{scope}"), mean(f"{ablation}/{scope}") - mean("clean")
        if not costs(cost):
            cost = np.full_like(cost, np.nan)
        return estimate(quotient(ablated - mean(f"{by}/{scope}"), cost))

    def costs(values: Float[np.ndarray, " B1"]) -> bool:
        """Whether an ablation is shown to cost anything: a share of what may be nothing says nothing."""
        low = estimate(values).low
        return bool(values[0] > 0) if low is None else low > 0

    def kl(name: str) -> Estimate | None:
        return estimate(mean(f"kl/{name}/{scope}")) if f"kl/{name}/{scope}" in losses else None

    return Spliced(
        clean=estimate(mean("clean")),
        spliced=estimate(mean(f"spliced/{scope}")),
        zero=estimate(mean(f"zero/{scope}")),
        mean=estimate(mean(f"mean/{scope}")),
        recovered_zero=recovered("zero"),
        recovered_mean=recovered("mean"),
        kl=kl("spliced"),
        kl_zero=kl("zero"),
        kl_mean=kl("mean"),
        known=estimate(mean(f"known/{scope}")) if is_known else None,
        recovered_zero_known=recovered("zero", "known") if is_known else None,
        recovered_mean_known=recovered("mean", "known") if is_known else None,
    )


def _of_subject(subject: Subject, policy: SplicingPolicy) -> SplicingMeasures:
    model, layer = subject.source["model"], subject.source["layer"]
    return measure_splicing(subject.dictionary, model, layer, subject.store, subject.held_out, policy, subject.cache)


COLUMNS: dict[str, Callable[[SplicingMeasures], str]] = {
    "tokens": lambda measure: f"{measure.tokens:,}",
    "clean": lambda measure: estimated(measure.headline.clean),
    "spliced": lambda measure: estimated(measure.headline.spliced),
    "recovered (zeros)": lambda measure: estimated(measure.headline.recovered_zero),
    "recovered (mean)": lambda measure: estimated(measure.headline.recovered_mean),
    "KL, nats": lambda measure: estimated(measure.headline.kl),
    "recovered, position 0 too": lambda measure: estimated(measure.everything.recovered_zero),
}
WITHOUT_CODES: dict[str, Callable[[SplicingMeasures], str]] = {
    "without codes (zeros)": lambda measure: estimated(measure.headline.recovered_zero_known),
    "without codes (mean)": lambda measure: estimated(measure.headline.recovered_mean_known),
}
"""Where something is known beforehand: the floor beside what is recovered."""


def tables(found: Mapping[str, SplicingMeasures]) -> list[Table]:
    """What the model loses when it goes on from reconstructions."""
    first = next(iter(found.values()))
    columns = COLUMNS | (WITHOUT_CODES if any(measure.headline.known for measure in found.values()) else {})
    rows = [Row(head, [cell(measure) for cell in columns.values()]) for head, measure in found.items()]
    loss = "cross-entropy" if first.loss == "cross-entropy" else "share of the last hidden states' variance lost"
    note = (
        f"Loss: {loss}. Recovered: share of what zeros, or the mean activation, in place of the layer would cost; – where that is not "
        "shown to cost anything."
    )
    if columns.keys() & WITHOUT_CODES.keys():
        note += " Without codes: the same of what is known beforehand alone."
    return [Table("Spliced into the model", ["dictionary", *columns], rows, f"{note} {first.reason}." if first.reason else note)]


SECTION = Section(
    name="splicing",
    policy=SplicingPolicy,
    version=2,  # 1 told shares of costs that were not shown to be any
    measure=_of_subject,
    measures=SplicingMeasures,
    reads_model=True,
    tables=tables,
)

"""The scan: where does position live in a model, before anything is trained?

One pass over a few hundred rows reads every layer. For every clock, eta^2 is the share of the activations' variance that the
clock's means explain (method, section 1): with n_c, m_c the count and mean of the tokens at clock value c, and m the mean of all,
eta^2 = sum_c n_c |m_c - m|^2 / sum |x - m|^2. Its noise floor is the same number when every row takes the clock of another row,
circularly shifted: whatever remains then is sampling noise. Index 0, sinks (norm rule) and special tokens are left out of eta^2 and
shown by index beside it. Sums are kept about a typical activation, in float64; clock values that know no bound are binned.

Where it is asked for, the same pass keeps the streams of all layers in a temporary file, and what is known of them beforehand from tokens
and the past is measured layer by layer (`beforehand`), and how much of their covariance's structure depends on each clock (`structure`).
"""

import itertools
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import embedding_bag

from temporallens import processes
from temporallens.activations.clocks import CLOCKS, TokenMarks, TokenRow
from temporallens.activations.language.corpora import at_commit, open_corpus
from temporallens.activations.language.harvest import TokenBatch, schedule
from temporallens.activations.language.loading import Loading, loading_field, recorded_loading
from temporallens.activations.language.model_check import check_finite
from temporallens.activations.language.models import LanguageModel, Layer
from temporallens.activations.language.token_rows import RowShape, row_shape, token_rows
from temporallens.activations.moments import beyond_norm
from temporallens.defaults import own_defaults
from temporallens.errors import TemporalLensError
from temporallens.evaluation.beforehand import FLOORS_EVERY, Beforehand, BeforehandPolicy, gather, measure, prepare
from temporallens.evaluation.bins import growing_starts
from temporallens.evaluation.structure import Structure, drawn, structure_share
from temporallens.files import explained as written
from temporallens.precision import ComputeDtype
from temporallens.progress import note, progress
from temporallens.settings import Length, Seed, Settings, not_asked

FORMAT = "temporallens.scan/1"
BATCH_TOKENS = 4096
EXACT_INDEX = 256  # bins of the index clock are single values up to here
EXACT_TIMES = 16  # the other clocks up to here
BIN_GROWTH = 1.25  # beyond, each bin begins so much later than the one before
MOST_DOCUMENTS = 1 << 20  # of a text that has no end, such as a hub data set
LATE = 8  # "late" statistics leave out the first tokens of a row, which differ from all later ones

Share = float | None  # None where there was no token


class ScanPolicy(Settings):
    """One entry under `scans:` of a study."""

    model: str
    """A shipped name, a hub name, a directory, or a .gguf file."""
    text: str = "sotu"
    """A shipped text, a text file or folder, or a hub data set."""
    context_length: Length = Field(128, ge=2)
    """Tokens in a row, BOS included."""
    sequences: int = Field(256, ge=2)
    """Rows to read: as many from every document as possible, chosen by the seed; of a text of more documents, one from each of so many."""
    compute_dtype: ComputeDtype = "auto"
    """What the model computes in; auto: bfloat16 where the processor multiplies it natively, else float32."""
    loading: Loading = loading_field()
    """How the model is held, as in `activations:`."""
    seed: Seed = 0
    """Chooses the rows, and the shifts behind the noise floor."""
    norm_multiple: float = Field(10.0, gt=1)
    """Tokens of more than so many times the batch's median norm are sinks."""
    shuffles: int = Field(1, ge=1)
    """Shuffled clocks behind the noise floor; their mean is reported."""
    beforehand: BeforehandPolicy | None = Field(None, exclude_if=not_asked)
    """What is known of activations beforehand: from tokens, position and the past, on held-out documents."""


@dataclass(frozen=True)
class ClockScan:
    """What one clock explains; `L` layers, `P` bins of clock values."""

    values: list[int]  # [P] the first value of each bin
    eta2: list[Share]  # [L] share of variance that the clock's means explain
    floor: list[Share]  # [L] the same under shuffled clocks
    share: list[list[Share]]  # [L][P] what each bin contributes to what the clock explains; sums to 1
    late_eta2: list[Share]  # [L] eta2 over tokens from index `late_from` on
    late_floor: list[Share]  # [L]
    structure: Annotated[list[Share] | None, Field(exclude_if=not_asked)] = None
    """[L] Share of the covariance's structure that depends on the clock after centring; None where streams are not kept."""
    structure_floor: Annotated[list[Share] | None, Field(exclude_if=not_asked)] = None
    """[L] The same under a shuffled clock."""


WHERE_ASKED = {"beforehand", "loading"}


@dataclass(frozen=True)
class Scan:
    """What a scan of a model finds; layers are `embed`, `0`, ..., each the output of that block."""

    model: str
    revision: str | None
    text: str
    dtype: str  # that the model computed in
    layers: list[str]  # [L]
    clocks: dict[str, ClockScan]
    norm: list[list[Share]]  # [L][S] mean norm by index, sinks included
    sinks: list[list[Share]]  # [L][S] share of tokens beyond the norm rule by index
    sequences: int
    tokens: int
    context_length: int
    seed: int
    excluded: dict[str, Any]  # the rules by which tokens are left out of eta2
    late_from: int = LATE
    format: str = field(default=FORMAT)
    beforehand: Annotated[Beforehand | None, Field(exclude_if=not_asked)] = None  # where it was asked for
    loading: Annotated[dict[str, Any] | None, Field(exclude_if=not_asked)] = None  # how the model was held, if not as its files have it

    def to_json(self) -> dict[str, Any]:
        content = {name: value for name, value in asdict(self).items() if name not in WHERE_ASKED or value is not None}
        clocks = {name: {key: value for key, value in clock.items() if value is not None} for name, clock in content["clocks"].items()}
        return content | {"clocks": clocks}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Scan":
        """Raises TemporalLensError when `content` is not a scan of this version."""
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise TemporalLensError(f"this is not a scan in format '{FORMAT}'; run the scan again")
        missing = sorted(({entry.name for entry in fields(cls)} ^ content.keys()) - WHERE_ASKED)
        if missing:
            raise TemporalLensError(f"this scan is damaged: the field '{missing[0]}' is missing or unknown; run the scan again")
        clocks = {name: ClockScan(**clock) for name, clock in content["clocks"].items()}
        found = content.get("beforehand")
        return cls(**{**content, "clocks": clocks, "beforehand": None if found is None else Beforehand.from_json(found)})


class Grouping(NamedTuple):
    """Clock values of all rows as group numbers; one grouping per clock and shuffle."""

    clock: str
    labels: list[Int[np.ndarray, " _"]]  # one array per row
    first: int  # number of this grouping's first group


class LayerSums:
    """Running sums of one layer, about `reference`: by group, over all tokens and over the late ones, and by index."""

    def __init__(self, groups: int, width: int, context_length: int) -> None:
        self.reference: Float[Tensor, " D"] | None = None
        self.sums = torch.zeros(2, groups, width + 1, dtype=torch.float64)  # early and late; the last column counts
        self.squares = torch.zeros(2, dtype=torch.float64)  # early and late
        self.by_index = torch.zeros(3, context_length, dtype=torch.float64)  # tokens, norms, sinks

    def add(
        self, x: Float[Tensor, "N D"], text: Bool[Tensor, " N"], index: Int[Tensor, " N"], bags: "Bags", norm_multiple: float
    ) -> Bool[Tensor, " N"]:
        """Count a batch in: `text` marks the tokens that stand for text, `bags` gives their groups; sinks are counted apart. Returns
        which tokens are counted in eta^2."""
        norms = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)
        sinks = beyond_norm(norms, index > 0, norm_multiple)
        for row, values in enumerate((torch.ones_like(norms), norms, sinks)):
            self.by_index[row].index_add_(0, index, values.double())
        text = text & ~sinks
        if self.reference is None:
            self.reference = x[text].float().mean(0)
        centred = torch.ones(len(x), x.shape[1] + 1, dtype=torch.float32)
        torch.sub(x, self.reference, out=centred[:, :-1])
        centred *= text[:, None]
        squares = torch.linalg.vector_norm(centred[:, :-1], dim=1).double().square()
        for when, late in enumerate((index < LATE, index >= LATE)):
            self.squares[when] += squares[late].sum()
        self.sums += embedding_bag(bags.tokens, centred, bags.starts, mode="sum").double().unflatten(0, (2, -1))
        return text


class Bags(NamedTuple):
    """The tokens of every group, for one sum over all groups of all clocks: early groups first, then the late ones."""

    tokens: Int[Tensor, " M"]
    starts: Int[Tensor, " G2"]


def scan(model: str | Path, *, text: str | Path | Iterable[str] = "sotu", **policy: Any) -> Scan:
    """Scan every layer of `model` for position; `policy` has the fields of ScanPolicy."""
    text, name = at_commit(text) if isinstance(text, str) else text, str(model) if isinstance(model, Path) else model
    return scan_policy(ScanPolicy(model=name, text=str(text) if isinstance(text, str | Path) else "given", **policy), text)


@own_defaults()
def scan_policy(policy: ScanPolicy, text: str | Path | Iterable[str] | None = None) -> Scan:
    """Scan as a study's entry says; `text` stands in for the text that the policy names."""
    corpus = open_corpus(policy.text if text is None else text)
    model = LanguageModel.load(policy.model, dtype=policy.compute_dtype, loading=policy.loading)
    if corpus.summary is not None:
        note(corpus.summary)
    shape = row_shape(model, policy.context_length, bos=model.bos is not None, rows="split")
    rows = choose_rows(model, corpus, shape, policy.sequences, np.random.default_rng(policy.seed))
    marks = TokenMarks.of(model.tokenizer)
    bins, groupings, groups = _groupings(rows, marks, policy)
    layers: list[Layer] = ["embed", *range(model.layers)]
    sums = [LayerSums(groups, model.width, policy.context_length) for _ in layers]

    def read(batch: TokenBatch) -> list[Tensor]:
        return _streams_of(model, batch, layers)

    with _kept_streams(policy, len(layers), (len(rows), policy.context_length, model.width)) as streams:
        with progress(f"Scanning {model.title}", sum(len(row.tokens) for row in rows), "tokens") as advance:
            batches = schedule(rows, max(1, BATCH_TOKENS // policy.context_length), model.padding_token, left=False)
            for batch, found in processes.dealt(batches, read):
                _add_batch(batch, found, sums, groupings, groups, marks, policy.norm_multiple, streams)
                advance(batch.size)

        def found_by_all() -> dict[str, Any]:
            known, structure = (None, {}) if streams is None else _known(streams, rows, bins, groupings, model, policy)
            clocks = {name: clock_scan(name, bins[name], groupings, sums, structure.get(name)) for name in bins}
            return _found(policy, corpus.name, model, layers, rows, sums, clocks, known).to_json()

        return Scan.from_json(processes.told(found_by_all))


def _found(
    policy: ScanPolicy,
    text: str,
    model: LanguageModel,
    layers: Sequence[Layer],
    rows: Sequence[TokenRow],
    sums: Sequence[LayerSums],
    clocks: dict[str, ClockScan],
    known: Beforehand | None,
) -> Scan:
    """What was found by layer and by clock, with what it was found on."""
    return Scan(
        model=policy.model,
        revision=model.revision,
        text=text,
        dtype=model.precision,
        layers=[str(layer) for layer in layers],
        clocks=clocks,
        norm=[finite_or_none(layer.by_index[1] / layer.by_index[0]) for layer in sums],
        sinks=[finite_or_none(layer.by_index[2] / layer.by_index[0]) for layer in sums],
        sequences=len(rows),
        tokens=sum(len(row.tokens) for row in rows),
        context_length=policy.context_length,
        seed=policy.seed,
        excluded={"position_zero": True, "special_tokens": True, "norm_multiple": policy.norm_multiple},
        beforehand=known,
        loading=recorded_loading(policy.loading).get("loading"),
    )


class Streams:
    """The streams of all layers, in a temporary file: `R` rows of `S` tokens, bfloat16, zeros behind the end of a row."""

    def __init__(self, file: IO[bytes], layers: int, shape: tuple[int, int, int]) -> None:
        self._file, self._shape, self.layers = file, shape, layers
        self.kept = np.ones(shape[:2], dtype=bool)  # tokens that no layer leaves out

    def add(self, layer: int, batch: TokenBatch, x: Float[Tensor, "N D"], kept: Bool[Tensor, " N"]) -> None:
        """Write a batch's tokens of one layer, row after row."""
        rows, length, width = self._shape
        lengths = [len(row.tokens) for row in batch.rows]
        for row, own, counted in zip(batch.sequences.tolist(), x.split(lengths), kept.split(lengths), strict=True):
            self._file.seek(2 * width * length * (layer * rows + row))
            self._file.write(own.bfloat16().contiguous().view(torch.int16).numpy().data)
            self.kept[row, : len(own)] &= counted.numpy()
            self.kept[row, len(own) :] = False

    def read(self, layer: int) -> Float[Tensor, "R S D"]:
        numbers = math.prod(self._shape)
        self._file.seek(2 * numbers * layer)
        content = bytearray(2 * numbers)
        filled = self._file.readinto(content)  # type: ignore[attr-defined]
        assert filled or not numbers
        return torch.frombuffer(content, dtype=torch.bfloat16).view(self._shape)


@contextmanager
def _kept_streams(policy: ScanPolicy, layers: int, shape: tuple[int, int, int]) -> Iterator[Streams | None]:
    """Where what is known beforehand is asked for."""
    if policy.beforehand is None:
        yield None
        return
    with written(Path(tempfile.gettempdir())), tempfile.TemporaryFile() as file:
        yield Streams(file, layers, shape)


def _known(
    streams: Streams,
    rows: Sequence[TokenRow],
    bins: Mapping[str, Int[np.ndarray, " _"]],
    groupings: Sequence[Grouping],
    model: LanguageModel,
    policy: ScanPolicy,
) -> tuple[Beforehand | None, dict[str, Structure]]:
    """What is known of the streams beforehand, one layer after the other, and by clock how much of their structure depends on it; nothing
    for a text of one document."""
    assert policy.beforehand is not None
    clocks = {}
    for name in CLOCKS:
        true, shuffled_once, *_ = [grouping.labels for grouping in groupings if grouping.clock == name]
        clocks[name] = (true, shuffled_once)
    try:
        text = prepare(rows, streams.kept, clocks, _embeddings(model), policy.beforehand, policy.seed)
    except TemporalLensError as error:
        note(str(error))  # the scan itself needs no second document
        return None, {}
    kept = np.flatnonzero(streams.kept)
    kept = kept[drawn(len(kept), policy.seed)]
    values = {name: bins[name][labels[:, kept].numpy()] for name, labels in text.clocks.items()}
    structure = {name: Structure([], []) for name in values}
    with progress("what is known beforehand", streams.layers, "layers") as advance:
        found = []
        for layer in range(streams.layers):
            x = streams.read(layer)
            found.append(measure(x, text, floors=layer % FLOORS_EVERY == 0))
            chosen = x.flatten(0, 1)[kept]
            for name, both in values.items():
                for shares, value in zip(structure[name], both, strict=True):
                    shares.append(structure_share(chosen, value))
            advance(1)
    return gather(found, text, encoder=model.is_encoder), structure


def _embeddings(model: LanguageModel) -> Float[Tensor, "V E"] | None:
    """None where the model has no table of them: means of tokens are then shrunk towards the mean of all."""
    try:
        return model.embeddings.cpu()
    except TemporalLensError:
        return None


def choose_rows(
    model: LanguageModel, documents: Iterable[str], shape: RowShape, wanted: int, generator: np.random.Generator
) -> list[TokenRow]:
    """About as many rows from each document, or from as many of them as rows are wanted, at random indices, in the order of the text."""
    ranked: list[tuple[int, int, int, TokenRow]] = []
    rows = token_rows(model, sampled(documents, wanted, generator.spawn(1)[0]), shape, "split")
    for document, group in itertools.groupby(rows, key=lambda row: int(row.document[0])):
        candidates = list(group)
        for rank, index in enumerate(generator.permutation(len(candidates))[:wanted]):
            ranked.append((rank, document, int(index), candidates[index]))
    ranked.sort(key=lambda entry: entry[:3])
    if len(ranked) < 2:
        raise TemporalLensError(f"the text has {len(ranked)} row of {shape.context_length} tokens; a scan needs at least 2")
    return [row for *_, row in sorted(ranked[:wanted], key=lambda entry: entry[1:3])]


def sampled(documents: Iterable[str], wanted: int, generator: np.random.Generator) -> list[str]:
    """So many of the documents in their order, each with the same chance, in one pass and in the memory of these (Vitter's algorithm R);
    all where there are no more, and none beyond the first MOST_DOCUMENTS."""
    kept: list[tuple[int, str]] = []
    for number, document in enumerate(itertools.islice(documents, MOST_DOCUMENTS)):
        if number < wanted:
            kept.append((number, document))
        elif (place := int(generator.integers(number + 1))) < wanted:
            kept[place] = (number, document)
    return [document for _, document in sorted(kept)]


def _groupings(rows: Sequence[TokenRow], marks: TokenMarks, policy: ScanPolicy) -> tuple[dict[str, np.ndarray], list[Grouping], int]:
    """The bins of every clock, its groupings (the true one first, then the shuffled ones), and the number of groups in all."""
    times = {name: [clock.times(row, marks) for row in rows] for name, clock in CLOCKS.items()}
    return group_times(times, policy.shuffles, policy.seed, ("index",))


def group_times(
    times_by_clock: Mapping[str, list[Int[np.ndarray, " _"]]], shuffles: int, seed: int, exactly: Sequence[str]
) -> tuple[dict[str, np.ndarray], list[Grouping], int]:
    """The same of what clocks say of every row; the values of some are told apart exactly, farther than those of others."""
    generator = np.random.default_rng([seed, 1])
    bins: dict[str, np.ndarray] = {}
    groupings: list[Grouping] = []
    groups = 0
    for name, times in times_by_clock.items():
        exact = EXACT_INDEX if name in exactly else EXACT_TIMES
        bins[name] = growing_starts(max(int(row.max()) for row in times), exact, BIN_GROWTH)
        labels = [np.searchsorted(bins[name], row, side="right") - 1 for row in times]
        for labelling in [labels, *(shuffled(labels, generator) for _ in range(shuffles))]:
            groupings.append(Grouping(name, labelling, groups))
            groups += len(bins[name])
    return bins, groupings, groups


def shuffled(labels: Sequence[Int[np.ndarray, " _"]], generator: np.random.Generator) -> list[Int[np.ndarray, " _"]]:
    """Every row takes the labels of another, circularly shifted (and repeated where that row is shorter)."""
    donors = [labels[donor] for donor in generator.permutation(len(labels))]
    shifts = [int(generator.integers(len(donor))) for donor in donors]
    return [np.resize(np.roll(donor, shift), len(row)) for row, donor, shift in zip(labels, donors, shifts, strict=True)]


def _streams_of(model: LanguageModel, batch: TokenBatch, layers: Sequence[Layer]) -> list[Tensor]:
    """The stream of each layer at the tokens of a batch, `[N, D]` each."""
    streams = model.residuals(batch.tokens, batch.mask, layers)
    found = []
    for layer in layers:
        stream = streams.pop(layer)
        x = stream[batch.mask.to(stream.device)].cpu()
        check_finite(x, layer, model.title)
        found.append(x)
    return found


def _add_batch(
    batch: TokenBatch,
    streams: Sequence[Float[Tensor, "N D"]],
    sums: Sequence[LayerSums],
    groupings: Sequence[Grouping],
    groups: int,
    marks: TokenMarks,
    norm_multiple: float,
    kept: Streams | None,
) -> None:
    index = torch.from_numpy(np.concatenate([np.arange(len(row.tokens)) for row in batch.rows]))
    tokens = np.concatenate([row.tokens for row in batch.rows])
    text = (index > 0) & ~torch.from_numpy(marks.special[tokens])
    bags = bags_of(batch.sequences.tolist(), groupings, groups, index)
    for depth, (x, layer_sums) in enumerate(zip(streams, sums, strict=True)):
        counted = layer_sums.add(x, text, index, bags, norm_multiple)
        if kept is not None:
            kept.add(depth, batch, x, counted)


def bags_of(rows: Sequence[int], groupings: Sequence[Grouping], groups: int, index: Int[Tensor, " N"]) -> Bags:
    """Sort the tokens of some rows by group, for all groupings at once."""
    late = groups * (index >= LATE).numpy()
    labels = np.concatenate([np.concatenate([grouping.labels[row] for row in rows]) + grouping.first + late for grouping in groupings])
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=2 * groups)
    return Bags(torch.from_numpy(order % len(index)), torch.from_numpy(np.cumsum(counts) - counts))


def clock_scan(
    name: str,
    values: Int[np.ndarray, " P"],
    groupings: Sequence[Grouping],
    sums: Sequence[LayerSums],
    structure: Structure | None,
) -> ClockScan:
    true, *nulls = [slice(grouping.first, grouping.first + len(values)) for grouping in groupings if grouping.clock == name]
    found = [explained(layer.sums[:, true].sum(0), layer.squares.sum()) for layer in sums]
    late = [explained(layer.sums[1, true], layer.squares[1]) for layer in sums]
    return ClockScan(
        values=values.tolist(),
        eta2=[share_of_total for share_of_total, _ in found],
        floor=[_mean([explained(layer.sums[:, null].sum(0), layer.squares.sum())[0] for null in nulls]) for layer in sums],
        share=[finite_or_none(shares) for _, shares in found],
        late_eta2=[share_of_total for share_of_total, _ in late],
        late_floor=[_mean([explained(layer.sums[1, null], layer.squares[1])[0] for null in nulls]) for layer in sums],
        structure=None if structure is None else structure.share,
        structure_floor=None if structure is None else structure.floor,
    )


def structure_of(clock: ClockScan, depth: int) -> tuple[Share, Share] | None:
    """The share of a layer's structure that depends on a clock, and its floor; None where it was not measured."""
    if clock.structure is None or clock.structure_floor is None:
        return None
    return clock.structure[depth], clock.structure_floor[depth]


def explained(sums: Float[Tensor, "P D1"], squares: Float[Tensor, ""]) -> tuple[Share, Float[Tensor, " P"]]:
    """eta^2, and what each group contributes to it, from group sums (whose last column counts) and the sum of squares."""
    totals, counts = sums[:, :-1], sums[:, -1]
    mean = totals.sum(0) / counts.sum()
    between = counts * (totals / counts.clamp(min=1)[:, None] - mean).square().sum(1)
    total = squares - counts.sum() * mean.square().sum()
    if not total > 0:
        return None, torch.full_like(between, torch.nan)
    return float(between.sum() / total), between / between.sum()


def _mean(values: Sequence[Share]) -> Share:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def finite_or_none(values: Float[Tensor, " n"]) -> list[Share]:
    """As JSON holds it: null where there was no token."""
    return [value if np.isfinite(value) else None for value in values.tolist()]

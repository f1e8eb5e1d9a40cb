"""Probing of labelled texts beyond SAEBench's protocol: poolings that know order, honest regularisation, intervals, baselines.

`docs/method.md`, "Pooled probing", is the specification. A text is the mean, the maximum, the last, or the mean by position bin of its
tokens' codes; probes on the k best columns and on all of them are fitted for every class against the others on several divisions of the
texts (`fitting`), and scored by AUC and accuracy with bootstrap intervals over texts (`scores`). The same probes on the
residual stream itself, its best channels or all, are what a dictionary has to beat. Model passes and channel baselines do not depend on
the dictionary and are kept in a cache, as is every set that is finished, so that a second dictionary is cheap and a stop costs one set.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field, model_validator

from temporallens.activations.language.contents import content_of
from temporallens.activations.language.loading import AS_IT_IS, Loading
from temporallens.activations.language.models import LanguageModel, Layer
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.masks import group_of_position
from temporallens.errors import TemporalLensError
from temporallens.evaluation.identity import dictionary_fingerprint
from temporallens.evaluation.model.passes import TextActivations, open_model, text_activations
from temporallens.evaluation.probing.fitting import Probed, dense_probes, draw_tasks, sparse_probes
from temporallens.evaluation.probing.pooling import POOLINGS, Pooling, every_token, pool_codes, pool_raw
from temporallens.evaluation.probing.results import (
    FORMAT,
    POSITIONAL,
    Gain,
    Kind,
    ProbedSet,
    ProbingMeasures,
    SetScores,
    collect,
    file_name,
    find_scores,
    probing_gains,
    save_scores,
    summarise,
)
from temporallens.evaluation.probing.saebench import SparseProbingPolicy, check_codes, sparse_probing
from temporallens.evaluation.probing.scores import Scored, resamples_of, score_probes
from temporallens.evaluation.section import Gains, Section, Subject, Tally, gains_table
from temporallens.evaluation.texts.labelled import LEAST_TEXTS, Columns, LabelledSet, first_of_each
from temporallens.evaluation.texts.sets import ALL_SHIPPED, open_sets
from temporallens.files import fingerprint, user_path
from temporallens.precision import ComputeDtype
from temporallens.progress import progress
from temporallens.settings import Length, Seed, Settings
from temporallens.wording import Row, Table, estimated

DRAW_SEED = 0
"""Of the draw of texts and of their resamples, which all dictionaries and all of a policy's seeds share."""
BATCH_TEXTS = 32
CHANNELS = "residual stream"


class ProbingPolicy(Settings):
    """What is probed, and how."""

    sets: tuple[str, ...] = (ALL_SHIPPED,)
    """Embedded sets by name or `embedded` for all, SAEBench's by their hub names or `saebench`, tables, or folders of tables."""

    text_column: str = "text"
    """The column of a table that holds the text."""

    label_column: str = "label"
    """The column of a table that holds the class."""

    texts_per_class: int = Field(500, ge=LEAST_TEXTS)
    """At most so many texts of each class are drawn, for training and test together."""

    context_length: Length = Field(64, ge=2)
    """Tokens of a text that are read, BOS included; SAEBench reads 128, at about 1.5 times the cost on the embedded suite."""

    compute_dtype: ComputeDtype = "auto"
    """What the model computes in; auto: bfloat16 where the processor multiplies it natively, else float32."""

    poolings: tuple[Pooling, ...] = POOLINGS
    """How tokens become a text: their mean, the last, their maximum, or their mean in each bin of positions."""

    bins: int = Field(4, ge=2)
    """Bins of positions, log-spaced, for the pooling `bins`."""

    k: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    """Sizes of sparse probes; a probe on everything is always added."""

    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Each divides the texts into training and test texts anew."""

    test_share: float = Field(1 / 3, gt=0, lt=1)
    """Share of the texts of each class that a division keeps for testing."""

    resamples: int = Field(400, ge=2)
    """Bootstrap resamples of the texts behind an interval."""

    saebench: SparseProbingPolicy | None = None
    """With settings (or `{}` for SAEBench's own), its protocol is run on the same sets as well."""

    @model_validator(mode="after")
    def _lists_hold_something_once(self) -> "ProbingPolicy":
        for name in ("sets", "poolings", "k", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} is {list(values)}; it should list at least one value, and none twice")
        if min(self.k) < 1:
            raise ValueError(f"k is {list(self.k)}; a sparse probe has at least one column")
        return self


class _Job(NamedTuple):
    """A set that is ready to be probed."""

    labels: list[str]
    described: ProbedSet
    activations: TextActivations
    rows: list[int]  # texts of the pass that are probed
    key: dict[str, Any]  # everything but the subject that shapes its scores


@own_defaults()
def measure_probing(
    dictionary: Dictionary,
    model: str,
    layer: Layer,
    policy: ProbingPolicy,
    cache: Path | str,
    revision: str | None = None,
    loading: Loading = AS_IT_IS,
) -> ProbingMeasures:
    """Probe `dictionary`, trained on `model` after `layer`, by `policy`; what can be used again is cached in the folder `cache`.

    Raises TemporalLensError for a dictionary of another width, a layer that the model has not, sets that cannot be read, classes of too
    few texts, texts without a token, and codes that are the same for every text.
    """
    sets = open_sets(policy.sets, Columns(policy.text_column, policy.label_column))
    network = open_model(model, layer, policy.compute_dtype, revision, loading)
    if dictionary.width != network.width:
        raise TemporalLensError(
            f"this dictionary is for activations of width {dictionary.width}, the residual stream of {network.title} has width "
            f"{network.width}; name the model that it was trained on"
        )
    folder, identity = user_path(cache), dictionary_fingerprint(dictionary)
    described, features, channels, files = [], {}, {}, {}
    for labelled in sets:
        job = _prepare(labelled, network, layer, policy, folder, revision)
        described.append(job.described)
        channels[labelled.name] = _scores(job, None, CHANNELS, policy, folder)
        features[labelled.name] = _scores(job, dictionary, identity, policy, folder)
        files[labelled.name] = file_name(job.key, identity)
    pooling_of = {labelled.name: labelled.pooling for labelled in sets}
    scores = summarise("features", features, pooling_of) + summarise("channels", channels, pooling_of)
    settings = policy.saebench
    saebench = None if settings is None else _saebench(dictionary, model, layer, sets, settings, folder, revision, loading)
    return ProbingMeasures(described, scores, files, saebench)


def _prepare(labelled: LabelledSet, network: LanguageModel, layer: Layer, policy: ProbingPolicy, cache: Path, revision: str | None) -> _Job:
    """Draw the texts of a set and read them. Of texts that are cut to the same tokens only the first stays."""
    drawn = labelled.without_duplicates().sample(policy.texts_per_class, DRAW_SEED).require()
    activations = text_activations(
        network.name,
        layer,
        drawn.texts,
        policy.context_length,
        policy.compute_dtype,
        BATCH_TEXTS,
        cache=cache,
        whole_context=False,
        revision=revision,
        loading=network.loading,
        title=f"'{labelled.name}'",
    )
    rows = first_of_each([row.numpy().tobytes() for row in activations.token], drawn.labels)
    probed = drawn.selected(rows).require()
    key = {
        "format": FORMAT,
        "set": probed.fingerprint,
        **network.content,
        "layer": layer,
        "policy": policy.model_dump(mode="json", exclude={"sets", "text_column", "label_column", "saebench", "compute_dtype"}),
    }
    filled = int((activations.live[rows].sum(1) >= policy.context_length - int(activations.bos)).sum())
    counts = {name: len(texts) for name, texts in probed.by_class().items()}
    described = ProbedSet(labelled.name, labelled.pooling, counts, filled, len(drawn.texts) - len(rows))
    return _Job(probed.labels, described, activations, rows, key)


def _scores(job: _Job, dictionary: Dictionary | None, subject: str, policy: ProbingPolicy, cache: Path) -> SetScores:
    """Scores of probes on codes, or, without a dictionary, on channels of the residual stream; from the cache where it has them."""
    found = find_scores(cache, job.key, subject)
    if found is None:
        found = _probe(job, dictionary, policy)
        save_scores(found, cache, job.key, subject)
    return found


@torch.inference_mode()
def _probe(job: _Job, dictionary: Dictionary | None, policy: ProbingPolicy) -> SetScores:
    """Pool every text in every way, and fit and score every kind of probe on it."""
    try:
        members = every_token(job.activations)
    except TemporalLensError as error:
        raise TemporalLensError(f"'{job.described.name}' cannot be pooled: {error}") from error
    bin_of = group_of_position(policy.context_length, policy.bins)
    if dictionary is None:
        pooled = pool_raw(job.activations, members, policy.poolings, bin_of)
    else:
        wanted = tuple(dict.fromkeys([*policy.poolings, "mean"]))  # the mean shows whether codes vary at all
        pooled = pool_codes(dictionary, job.activations, members, wanted, bin_of)
        codes = {"all": torch.from_numpy(pooled["mean"])}
        check_codes(codes, codes, job.described.name)
    tasks = draw_tasks(job.labels, policy.seeds, policy.test_share)
    resamples = resamples_of(job.labels, policy.resamples, DRAW_SEED)
    scored: dict[Kind, Scored] = {}
    with progress(f"Probing '{job.described.name}'", len(policy.poolings), "poolings") as advance:
        for pooling in policy.poolings:
            table = torch.from_numpy(pooled.pop(pooling))[job.rows]
            probes: list[tuple[int | None, Probed]] = [*sparse_probes(table, tasks, policy.k).items(), (None, dense_probes(table, tasks))]
            for k, probed in probes:
                scored[Kind(pooling, k)] = score_probes(probed.score, tasks, resamples)
            advance(1)
    classes = tasks.positive[: len(tasks.positive) // len(policy.seeds)]
    return collect(scored, classes, len(policy.seeds), len(tasks.test[tasks.tested].unique()))


def _saebench(
    dictionary: Dictionary,
    model: str,
    layer: Layer,
    sets: Sequence[LabelledSet],
    policy: SparseProbingPolicy,
    cache: Path,
    revision: str | None,
    loading: Loading,
) -> dict[str, Any]:
    """Accuracies by SAEBench's protocol."""
    found = sparse_probing(dictionary, model, layer, sets, policy, cache, revision, loading)
    return {"averages": found.averages(), "by_set": found.by_set(), "by_class": found.accuracies}


def _of_subject(subject: Subject, policy: ProbingPolicy) -> ProbingMeasures:
    model, layer, revision = (subject.source[name] for name in ("model", "layer", "revision"))
    return measure_probing(subject.dictionary, model, layer, policy, subject.cache, revision, subject.loading)


def tables(found: Mapping[str, ProbingMeasures]) -> list[Table]:
    """AUC of sparse probes, mean over sets."""
    rows = []
    for head, measure in found.items():
        for score in measure.scores:
            if score.set is None:
                cells = [estimated(score.auc), estimated(score.accuracy)]
                rows.append(Row(f"{head}: {score.subject}, {score.pooling}, {_size(score.k)}", cells))
    note = "Means over labelled sets; regularisation chosen by validation, bootstrap over tested texts. Mean pooling is blind to order."
    return [Table("Sparse probing", ["probe", "AUC", "accuracy"], rows, note)]


def _size(k: int | None) -> str:
    return "all columns" if k is None else f"k = {k}"


def _gains_table(against: str, gains: Mapping[str, Sequence[Gain]]) -> Table:
    tallies = [
        Tally(run, gain.pooling, _size(gain.k), gain.verdict, gain.auc.value)
        for run, found in gains.items()
        for gain in found
        if gain.set is not None and gain.against == POSITIONAL
    ]
    return gains_table("labelled sets", "AUC", "Above: the interval of the difference lies above zero.", against, tallies)


SECTION = Section(
    name="probing",
    policy=ProbingPolicy,
    version=1,
    measure=_of_subject,
    measures=ProbingMeasures,
    reads_model=True,
    gains=Gains(Gain, lambda own, ordinary, cache: probing_gains(own.kept, ordinary.kept, cache), _gains_table),
    content=lambda policy: fingerprint([content_of(name) for name in policy.sets]),
    tables=tables,
)

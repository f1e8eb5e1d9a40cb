"""What pooled probing finds, set by set and over all of them, and what one dictionary has over another (`docs/method.md`, "Pooled
probing").

Scores are cached with their bootstrap resamples, which all dictionaries share; gains are differences resample by resample.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from temporallens.errors import TemporalLensError
from temporallens.evaluation.probing.pooling import POOLINGS, Pooling
from temporallens.evaluation.probing.scores import Scored
from temporallens.evaluation.statistics import Estimate, Verdict, estimate_of, verdict_of
from temporallens.evaluation.texts.labelled import Place
from temporallens.files import fingerprint, inside, read_tensors, user_path, write_tensors

FORMAT = "temporallens.probing/1"
FOLDER = "probing"
"""Of the cache, for scores."""
OWN = "own"
"""Called so in results: each set's own pooling, mean or last token, as its source says."""
POSITIONAL: Pooling = "bins"
"""The pooling of an ordinary dictionary that a position-aware one has to beat."""

Subject = Literal["features", "channels"]


class Kind(NamedTuple):
    """One kind of probe."""

    pooling: Pooling
    k: int | None  # columns; None: all


class ProbedSet(NamedTuple):
    """A labelled set as it was probed."""

    name: str
    pooling: str  # its own: mean, or last where the label belongs to the last token
    classes: dict[str, int]  # with the texts of each
    filled: int  # texts that fill the context; longer ones were cut to it
    duplicates: int  # texts left out because another one has the same tokens


class Score(NamedTuple):
    """One kind of probe on one set, or its mean over sets."""

    subject: Subject  # codes of the dictionary, or channels of the residual stream
    set: str | None  # None: the mean over sets
    pooling: str
    k: int | None  # columns of the probe; None: all
    auc: Estimate  # mean over classes and seeds; n counts tested texts
    accuracy: Estimate
    seeds: list[float]  # AUC with each division of the texts
    classes: dict[str, Estimate]  # AUC of each class against the others


class Gain(NamedTuple):
    """What the probes of one dictionary have over those of another of the same size, on the same texts and resamples of them."""

    set: str | None  # None: the mean over sets
    pooling: str  # of the first
    against: str  # pooling of the second
    k: int | None
    auc: Estimate  # difference of AUC
    verdict: Verdict


class ProbingMeasures(NamedTuple):
    """What `measure_probing` finds."""

    sets: list[ProbedSet]
    scores: list[Score]
    kept: dict[str, str]  # set: file of the cache that holds the scores of the dictionary with their resamples
    saebench: dict[str, Any] | None  # accuracies by SAEBench's protocol: averages, by set, and by class


class SetScores(NamedTuple):
    """Scores of one subject on one set; rows are its classes and, last, their mean, R resamples."""

    classes: list[str]  # positive class of each task
    tested: int  # texts that were tested in one division or another
    auc: dict[Kind, Float[Tensor, " rows"]]
    accuracy: dict[Kind, Float[Tensor, " rows"]]
    seeds: dict[Kind, Float[Tensor, " seeds"]]  # AUC, mean over classes
    auc_resampled: dict[Kind, Float[Tensor, "rows R"]]
    accuracy_resampled: dict[Kind, Float[Tensor, "rows R"]]


TABLES = ("auc", "accuracy", "seeds", "auc_resampled", "accuracy_resampled")


def collect(scored: Mapping[Kind, Scored], classes: Sequence[str], seeds: int, tested: int) -> SetScores:
    """Mean over seeds, by class and over all; tasks come seed by seed, and within a seed class by class."""
    tables: dict[str, dict[Kind, Tensor]] = {name: {} for name in TABLES}
    for kind, found in scored.items():
        for name in ("auc", "accuracy", "auc_resampled", "accuracy_resampled"):
            by_seed = getattr(found, name).unflatten(0, (seeds, len(classes)))
            mean = by_seed.mean(0)
            tables[name][kind] = torch.cat([mean, mean.mean(0, keepdim=True)])
        tables["seeds"][kind] = found.auc.unflatten(0, (seeds, len(classes))).mean(1)
    return SetScores(list(classes), tested, **tables)


def save_scores(scores: SetScores, cache: Path, key: dict[str, Any], subject: str) -> None:
    tensors = {f"{table}/{kind.pooling}/{kind.k or 'all'}": values for table in TABLES for kind, values in getattr(scores, table).items()}
    head = {"format": FORMAT, "key": fingerprint(key), "subject": subject, "classes": scores.classes, "tested": scores.tested}
    write_tensors(cache / FOLDER / file_name(key, subject), tensors, head)


def file_name(key: dict[str, Any], subject: str) -> str:
    """The cache file of the scores of `subject` that `key` shaped."""
    return f"{fingerprint([key, subject])[:32]}.safetensors"


def find_scores(cache: Path, key: dict[str, Any], subject: str) -> SetScores | None:
    """What `save_scores` wrote; None where it wrote nothing, or what is there is damaged or of something else."""
    path = cache / FOLDER / file_name(key, subject)
    if not path.is_file():
        return None
    try:
        tensors, head = read_tensors(path, "probing scores")
    except TemporalLensError:
        return None
    if not isinstance(head, dict) or (head.get("format"), head.get("key"), head.get("subject")) != (FORMAT, fingerprint(key), subject):
        return None
    return _scores_of(tensors, head)


def _scores_of(tensors: dict[str, Tensor], head: dict[str, Any]) -> SetScores:
    tables: dict[str, dict[Kind, Tensor]] = {name: {} for name in TABLES}
    for name, values in tensors.items():
        table, pooling, k = name.split("/")
        tables[table][Kind(cast(Pooling, pooling), None if k == "all" else int(k))] = values
    return SetScores(head["classes"], head["tested"], **tables)


def summarise(subject: Subject, found: Mapping[str, SetScores], pooling_of: Mapping[str, Place]) -> list[Score]:
    """Scores of every kind of probe on each set, then their means over sets; `pooling_of` gives each set's own pooling."""
    summaries = [_score_of(subject, name, kind, scores) for name, scores in found.items() for kind in _ordered(scores.auc)]
    common = [kind for kind in _ordered(next(iter(found.values())).auc) if all(kind in scores.auc for scores in found.values())]
    means: list[tuple[str, int | None, dict[str, Kind]]] = [(*kind, dict.fromkeys(found, kind)) for kind in common]
    for k in dict.fromkeys(kind.k for kind in common):
        matching = {name: Kind(pooling_of[name], k) for name in found}
        if all(matching[name] in scores.auc for name, scores in found.items()):
            means.append((OWN, k, matching))
    return summaries + [_mean_over_sets(subject, pooling, k, kinds, found) for pooling, k, kinds in means]


def _ordered(kinds: Mapping[Kind, Any]) -> list[Kind]:
    """Poolings in their order, sizes ascending, all columns last."""
    order = list(POOLINGS)
    return sorted(kinds, key=lambda kind: (order.index(kind.pooling), math.inf if kind.k is None else kind.k))


def _score_of(subject: Subject, name: str, kind: Kind, scores: SetScores) -> Score:
    rows = [
        estimate_of(float(value), resampled.numpy(), scores.tested, (0, 1))
        for value, resampled in zip(scores.auc[kind], scores.auc_resampled[kind], strict=True)
    ]
    accuracy = estimate_of(float(scores.accuracy[kind][-1]), scores.accuracy_resampled[kind][-1].numpy(), scores.tested, (0, 1))
    classes = dict(zip(scores.classes, rows[:-1], strict=True))
    return Score(subject, name, kind.pooling, kind.k, rows[-1], accuracy, scores.seeds[kind].tolist(), classes)


def _mean_over_sets(subject: Subject, pooling: str, k: int | None, kinds: Mapping[str, Kind], found: Mapping[str, SetScores]) -> Score:
    tested = sum(scores.tested for scores in found.values())
    auc, accuracy = (
        estimate_of(float(_over_sets(table, kinds, found)), _over_sets(f"{table}_resampled", kinds, found).numpy(), tested, (0, 1))
        for table in ("auc", "accuracy")
    )
    seeds = torch.stack([found[name].seeds[kind] for name, kind in kinds.items()]).mean(0)
    return Score(subject, None, pooling, k, auc, accuracy, seeds.tolist(), {})


def _over_sets(table: str, kinds: Mapping[str, Kind], found: Mapping[str, SetScores]) -> Tensor:
    """Mean over sets of their means over classes."""
    return torch.stack([getattr(found[name], table)[kind][-1] for name, kind in kinds.items()]).mean(0)


def probing_gains(first: Mapping[str, str], second: Mapping[str, str], cache: Path | str) -> list[Gain]:
    """What one dictionary has over another, each given by what `ProbingMeasures.kept` names, by set and over those that both were
    probed on: pooling by pooling at equal k, and each pooling of the first against position bins of the second, which is what a
    position-aware dictionary has to beat.

    Raises TemporalLensError where they were not probed alike, or the cache no longer holds their scores.
    """
    names = [name for name in first if name in second]
    if not names:
        raise TemporalLensError("these two dictionaries were probed on no set in common, so nothing can be compared")
    pairs = {name: _pair(user_path(cache), name, first[name], second[name]) for name in names}
    ours, theirs = ({name: pair[side] for name, pair in pairs.items()} for side in (0, 1))
    common = [kind for kind in _ordered(ours[names[0]].auc) if all(kind in scores.auc for pair in pairs.values() for scores in pair)]
    gains = []
    for kind in common:
        for against in dict.fromkeys((kind.pooling, POSITIONAL)):
            other = Kind(against, kind.k)
            if other in common:
                gains += [_gain([name], kind, other, ours, theirs) for name in names]
                gains.append(_gain(names, kind, other, ours, theirs)._replace(set=None))
    return gains


def _pair(cache: Path, name: str, *files: str) -> list[SetScores]:
    found = []
    keys = set()
    for file in files:
        tensors, head = read_tensors(inside(cache / FOLDER, file), f"probing scores on '{name}'")
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise TemporalLensError(f"{cache / FOLDER / file} does not hold probing scores on '{name}'; probe the dictionary again")
        keys.add(head["key"])
        found.append(_scores_of(tensors, head))
    if len(keys) > 1:
        raise TemporalLensError(f"the two dictionaries were not probed alike on '{name}' (layer, texts or policy differ): probe both again")
    return found


def _gain(names: Sequence[str], kind: Kind, other: Kind, ours: Mapping[str, SetScores], theirs: Mapping[str, SetScores]) -> Gain:
    difference, resampled = (
        _over_sets(table, dict.fromkeys(names, kind), ours) - _over_sets(table, dict.fromkeys(names, other), theirs)
        for table in ("auc", "auc_resampled")
    )
    estimate = estimate_of(float(difference), resampled.numpy(), sum(ours[name].tested for name in names))
    return Gain(names[0], kind.pooling, other.pooling, kind.k, estimate, verdict_of(estimate.low, estimate.high))

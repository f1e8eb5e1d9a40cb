"""What a study file may say: frozen models, one per section, that refuse what they do not know.

The sections that belong to lower floors are those floors' own models (`HarvestPolicy`, the arms, `TrainingPolicy`), so a
study, the command line and the Python functions cannot drift apart. `reading.py` turns a YAML file into a `Study`.
"""

from collections.abc import Iterator
from itertools import pairwise, product
from typing import Annotated, Any, NamedTuple

from pydantic import Field, StringConstraints, field_validator, model_validator

from temporallens.activations.language.harvest import HarvestPolicy
from temporallens.dictionaries.kinds import Arm
from temporallens.errors import TemporalLensError, did_you_mean
from temporallens.evaluation.scan import ScanPolicy
from temporallens.evaluation.sections import SECTIONS, Evaluation
from temporallens.layout import RunId, as_file_name
from temporallens.settings import Seed, Settings, not_asked
from temporallens.study.sources import Activations, positions_of, target_in
from temporallens.training.policy import TrainingPolicy

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
"""Names become folder names, so they hold nothing that a path could misread."""


class OneSeed(Settings):
    """What is trained with the first seed only."""

    arms: tuple[Name, ...] = ()
    """Arms of the study: controls, where one look is enough."""
    activations: tuple[Name, ...] = ()
    """Entries of `activations`, with every arm."""


class Tuning(Settings):
    """How arms get their learning rates: from a grid, on data and seeds that the study does not compare them on."""

    learning_rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=3)]
    """The grid, rising. A best one at either end is said to be that: reach further."""
    activations: dict[Name, Activations] = Field(min_length=1)
    """Data of the grid: other documents, or other draws, than those of the study."""
    seeds: tuple[Seed, ...] = Field(min_length=1)
    """Of the grid's initial weights, none of them among the study's."""

    @field_validator("learning_rates")
    @classmethod
    def _rising(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if any(float(f"{left:g}") >= float(f"{right:g}") for left, right in pairwise(rates)):
            raise ValueError("the learning rates should rise, each standing here once, and differ in their first six digits")
        return rates


class Variant(NamedTuple):
    """An arm of a study at one level."""

    family: str  # its name in the study
    level: float | None  # None where its level is not varied
    arm: Arm


class Study(Settings):
    """A whole study. Every arm is trained on every entry of `activations`, at every level, once for each seed."""

    name: Name
    """An output folder belongs to one study; this name says to which."""
    scans: tuple[ScanPolicy, ...] = ()
    """Models whose every layer is scanned for position before any training."""
    activations: dict[Name, Activations] = Field(min_length=1)
    """What to harvest. Entries of a model that differ in nothing but the layer are harvested in one pass."""
    arms: dict[Name, Arm] = Field(min_length=1)
    """The dictionaries to compare."""
    levels: dict[str, Annotated[tuple[float, ...], Field(min_length=1)]] = Field({})
    """Values of the field that sets an arm's sparsity (`k`, `sparsity`, `l0`): an arm that has it is trained at each. FVE is compared
    at the L0 values that `k` (or else `l0`) names."""
    training: TrainingPolicy
    """How every arm is trained."""
    tuning: Tuning | None = Field(None, exclude_if=not_asked)
    """Where arms get learning rates of their own from; null: all have that of `training`."""
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    """One training run per seed and arm; one seed supports no comparison."""
    one_seed: OneSeed = OneSeed()
    """What is trained with the first seed only; every result of it is marked so."""
    evaluation: Evaluation = Evaluation()
    """What is measured of the dictionaries beyond reconstruction."""
    notes: dict[str, str] = Field({})
    """What earlier records said of an arm, printed beside its own line."""
    threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads of every stage; fixed threads give the same bits every time, null leaves the number to PyTorch."""

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed stands here twice, which would train the same dictionary twice")
        return seeds

    @field_validator("levels")
    @classmethod
    def _distinct_levels(cls, levels: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for field, values in levels.items():
            if len(set(values)) < len(values):
                raise ValueError(f"a value of {field} stands here twice, which would train the same dictionary twice")
        return levels

    @model_validator(mode="after")
    def _distinct_scans(self) -> "Study":
        names = [as_file_name(scan.model) for scan in self.scans]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the model '{twice[0]}' is scanned twice; one scan per model")
        return self

    @model_validator(mode="after")
    def _names_exist(self) -> "Study":
        named: list[tuple[str, str, Iterator[str] | list[str]]] = [
            *(("one_seed.arms", name, list(self.arms)) for name in self.one_seed.arms),
            *(("one_seed.activations", name, list(self.activations)) for name in self.one_seed.activations),
            *(("notes", name, list(self.arms)) for name in self.notes),
        ]
        for key, name, names in named:
            if name not in names:
                raise ValueError(f"{key} names '{name}', which this study does not have{did_you_mean(name, names)}")
        return self

    @model_validator(mode="after")
    def _levels_fit_arms(self) -> "Study":
        fields = {arm.level for arm in self.arms.values() if arm.level}
        for field in self.levels:
            if field not in fields:
                raise ValueError(f"no arm of this study has the level '{field}' that levels varies{did_you_mean(field, fields)}")
        names = [name for name, _ in self._variants()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two arms would be called '{twice[0]}', one of them an arm at a level; give one another name")
        return self

    @model_validator(mode="after")
    def _arms_fit_positions(self) -> "Study":
        """An arm that the clock has no room for is found here, and not after the harvest."""
        for entry, policy in self.activations.items():
            positions = positions_of(policy)
            for name, variant in self.variants().items():
                try:
                    variant.arm.check(positions)
                except TemporalLensError as error:
                    raise ValueError(f"arms.{name} does not fit activations.{entry}: {error}") from error
        return self

    @model_validator(mode="after")
    def _targets_are_not_trained(self) -> "Study":
        """No arm here learns to give activations of another point than it takes."""
        trained = next((name for name, arm in self.arms.items() if arm.trained), None)
        for entry, policy in self.activations.items():
            if trained is not None and target_in(policy) is not None:
                raise ValueError(
                    f"activations.{entry} has a target, which is for transcoders that are trained already, and arms.{trained} would be "
                    "trained on it: leave one of them out"
                )
        return self

    @model_validator(mode="after")
    def _arms_fit_batches_and_sections(self) -> "Study":
        """An arm that reads whole rows is trained on nothing else; one that looks back, or is in open loop, is measured by what can;
        processes share a stream's batches."""
        shared = any(map(self.stream_of, self.activations))
        sections = list(self.evaluation.sections(of_model=True))
        apart, from_codes = ([name for name in sections if getattr(SECTIONS[name], flag)] for flag in ("apart", "from_codes"))
        for name, arm in self.arms.items():
            try:
                arm.check_training(self.training.batches)
                if shared:
                    arm.check_sharing()
            except TemporalLensError as error:
                raise ValueError(f"arms.{name}: {error}") from error
            if arm.open_loop and from_codes:
                raise ValueError(
                    f"arms.{name} decodes from more than codes, and evaluation.{from_codes[0]} changes codes alone: leave one of them out"
                )
            if arm.looks_back and apart:
                raise ValueError(
                    f"arms.{name} looks back at earlier rows, and evaluation.{apart[0]} takes every row by itself: leave one of them out"
                )
        return self

    @model_validator(mode="after")
    def _sections_have_models(self) -> "Study":
        for name in self.evaluation.sections(of_model=True):
            if SECTIONS[name].reads_model and not self.from_models():
                raise ValueError(
                    f"evaluation.{name} reads a language model again, and no entry of activations comes from one; leave it out"
                )
        return self

    @model_validator(mode="after")
    def _tuned_on_other_data(self) -> "Study":
        if self.tuning is None:
            return self
        both = sorted(set(self.tuning.seeds) & set(self.seeds))
        if both:
            raise ValueError(f"tuning.seeds and seeds both have {both[0]}: a rate that was chosen on a seed is not compared on it")
        for entry, policy in self.tuning.activations.items():
            if policy in self.activations.values():
                raise ValueError(f"tuning.activations.{entry} is an entry of the study too: tune on other documents, or on other draws")
        if not tuned_families(self):
            raise ValueError("no arm of this study is trained at a number of codes (k or l0), so that tuning has nothing to tune")
        try:
            tuning_of(self)
        except TemporalLensError as error:
            raise ValueError(f"tuning: {error}") from error
        return self

    def _variants(self) -> Iterator[tuple[str, Variant]]:
        for family, arm in self.arms.items():
            if arm.level not in self.levels:
                yield family, Variant(family, None, arm)
                continue
            for value in self.levels[arm.level]:
                yield variant_name(family, arm.level, value), Variant(family, value, _at_level(family, arm, value))

    def variants(self) -> dict[str, Variant]:
        """Every arm, at each of its levels, by the name of its runs."""
        return dict(self._variants())

    def stream_of(self, entry: str) -> HarvestPolicy | None:
        """The policy of an entry that training reads straight from its model; None for one that is stored whole."""
        policy = self.activations[entry]
        return policy if isinstance(policy, HarvestPolicy) and policy.stream else None

    def trainings(self) -> list[RunId]:
        """Every dictionary that is trained, or read, in order."""
        return [
            RunId(entry, name, seed)
            for entry, (name, variant), seed in product(self.activations, self._variants(), self.seeds)
            if seed == self.seeds[0]
            or not (variant.family in self.one_seed.arms or entry in self.one_seed.activations or not variant.arm.trained)
        ]

    def measured(self) -> list[RunId]:
        """The dictionaries that `evaluation` measures, in order."""
        trainings = self.trainings()
        if self.evaluation.runs == "all":
            return trainings
        variants, chosen = self.variants(), []
        for entry, family in product(self.activations, self.arms):
            trained = [training for training in trainings if training.activations == entry and variants[training.arm].family == family]
            first = [training for training in trained if training.seed == trained[0].seed]
            chosen.append(first[len(first) // 2])
        return chosen

    def with_model(self, model: str) -> "Study":
        """The same study of another model: `model` in every entry that harvests one, those of its tuning too, and in one scan where there
        was any.

        Raises TemporalLensError where there is none.
        """
        if not self.from_models() and not self.scans:
            raise TemporalLensError(f"the study {self.name} reads no model that could be replaced: leave out --model")
        return self.model_copy(
            update={
                "scans": tuple(scan.model_copy(update={"model": model}) for scan in self.scans[:1]),
                "activations": _of_model(self.activations, model),
                "tuning": self.tuning and self.tuning.model_copy(update={"activations": _of_model(self.tuning.activations, model)}),
            }
        )

    def from_models(self) -> dict[str, HarvestPolicy]:
        """The entries of `activations` that harvest a language model."""
        return {name: entry for name, entry in self.activations.items() if isinstance(entry, HarvestPolicy)}


def _of_model(entries: dict[str, Activations], model: str) -> dict[str, Activations]:
    """The same entries, `model` in those that harvest one."""
    return {
        name: entry.model_copy(update={"model": model, "revision": None}) if isinstance(entry, HarvestPolicy) else entry
        for name, entry in entries.items()
    }


def variant_name(family: str, field: str, value: float) -> str:
    """`batchtopk-k16`; a dash more where the field ends in a digit: `jumprelu-l0-16`."""
    return f"{family}-{field}{'-' if field[-1].isdigit() else ''}{value:g}"


TUNED_LEVELS = ("k", "l0")
"""Levels that are numbers of codes: FVE at different learning rates is then at equal L0."""


def tuned_families(study: Study) -> list[str]:
    """The arms that a grid of learning rates tunes."""
    return [family for family, arm in study.arms.items() if arm.trained and arm.level in TUNED_LEVELS]


def tuning_of(study: Study) -> Study:
    """The grid as a study: every tuned arm at every rate, at the middle one of its levels."""
    assert study.tuning
    arms: dict[str, Arm] = {}
    for family in tuned_families(study):
        levels = [variant.arm for variant in study.variants().values() if variant.family == family]
        for rate in study.tuning.learning_rates:
            arms[rate_name(family, rate)] = levels[len(levels) // 2].model_copy(update={"learning_rate": rate})
    tuning = study.tuning
    return Study(
        name=study.name, activations=tuning.activations, arms=arms, training=study.training, seeds=tuning.seeds, threads=study.threads
    )


def rate_name(family: str, rate: float) -> str:
    """Of an arm at one rate of the grid."""
    return f"{family}-lr{rate:g}".replace("+", "")


def _at_level(family: str, arm: Arm, value: float) -> Any:
    """The same arm at another level; raises ValueError with the arm's own reason where that contradicts it."""
    try:
        return arm.at_level(value)
    except TemporalLensError as error:
        raise ValueError(f"levels.{arm.level} = {value:g} does not suit arms.{family}: {error}") from error

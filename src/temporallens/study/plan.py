"""The plan of a study, for `--dry-run`: what would be done, how much of it, and about how long, without doing any of it.

Nothing is written, no model or text is loaded or fetched. Sizes come from a model's `config.json` where one is at hand, tokens from
the study and the size of its texts, and times from the arithmetic of each stage and what `speeds` times on the spot, or has of a device
that is not here. What cannot be known without fetching something is said to be unknown; what is known of a model beforehand, so.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from temporallens.activations.language.corpora import folder_content
from temporallens.activations.language.harvest import HarvestPolicy
from temporallens.activations.language.hooks import block_of
from temporallens.activations.language.loading import Loading
from temporallens.activations.language.shipped import TEXTS
from temporallens.activations.made.records import RecordsPolicy
from temporallens.activations.made.worlds import WorldPolicy
from temporallens.activations.stored import StoredPolicy
from temporallens.dictionaries.arms.batchtopk import TopKConfig
from temporallens.files import user_path
from temporallens.precision import DTYPES, ModelPrecision
from temporallens.study.config import Study
from temporallens.study.dealing import divided
from temporallens.study.devices import Company, Traffic
from temporallens.study.models import ModelSizes, check_batches, check_models, check_texts, is_assumed, model_sizes
from temporallens.study.pins import pinned_study, read_pins
from temporallens.study.reading import StudyFile
from temporallens.study.run import refuse_foreign_folder
from temporallens.study.sources import Activations
from temporallens.study.speeds import Speeds, block_products
from temporallens.study.stages import PAIRED, Records, Stage, stages_of
from temporallens.study.tuning import GRID, UP_TO_LAST, grid_in, studies_in, tuned_before
from temporallens.training.loggers import check_loggers
from temporallens.wording import readable_bytes, readable_time

ALONE = Company()
BYTES_PER_TOKEN = 4.3
"""Of English text, roughly; the estimate for texts of the user's own."""
COLUMN_BYTES = 37
"""Of the columns beside an activation in the store."""
DENSE_PRODUCTS, SPARSE_PRODUCTS = 7.5, 2.7
"""A training step costs about so many products of the batch with a weight matrix: six, and what lies between, for dense codes, far fewer
for sparse ones."""
ENCODING_AND_DECODING = 2.0
"""Products of the held-out documents with a weight matrix in the one pass that FVE and all sections read (`evaluation/heldout.py`). What
sections do beyond it is not known beforehand."""
MOST_PASSES = 20
"""Passes over the same activations beyond which a plan says so."""
DRAWING_SECONDS, WRITING_SECONDS = 10.0, 2.0
"""Of all figures, and of the report."""
LOADING_SECONDS = 3.0
"""Of a model, or of a dictionary that is read."""
TOKENISED_PER_SECOND = 600_000
SCANNED_SECONDS = 2e-8
"""Of the sums by clock, for each token, layer and dimension."""
BEFOREHAND_SECONDS = 2e-7
"""The same of what is known beforehand, where it is asked for."""


class Course(NamedTuple):
    """Seconds of a dictionary's training; of a stream, which all dictionaries of its entry share, its part."""

    reading: float  # forward passes of a stream's model
    feeding: float  # cutting a stream's text and telling all processes what was read of it, in a thread beside the steps
    learning: float  # steps: arithmetic, update, exchanges

    @property
    def together(self) -> float:
        """Passes and steps are on one device."""
        return self.reading + max(self.feeding, self.learning)


class PlanLine(NamedTuple):
    """One stage; None where a number is unknown or does not apply."""

    stage: Stage
    finished: bool
    tokens: int | None
    bytes: int | None
    seconds: float | None
    memory: int | None = None  # bytes that each process holds at least
    traffic: Traffic | None = None  # in a training step of several processes
    course: Course | None = None  # of a training


class Plan(NamedTuple):
    """What a run would do, and what the numbers rest on."""

    lines: list[PlanLine]
    notes: list[str]
    company: Company


def plan_study(study_file: StudyFile, folder: Path, company: Company = ALONE) -> Plan:
    """The plan of a study in `folder`, done by such a company; raises TemporalLensError where a run would, as far as that can be known
    beforehand."""
    study, text = pinned_study(study_file.study, read_pins(folder)), study_file.text
    study = tuned_before(study, text, folder)
    refuse_foreign_folder(study, folder)
    for one in studies_in(study):
        check_models(one)
        check_texts(one)
        check_batches(one)
    check_loggers(study.training.loggers)
    speeds = Speeds(study.threads, company)
    lines = _lines(study, text, folder, speeds)
    if study.tuning:
        grid, own = grid_in(study, text, folder)
        needed = [line for line in _lines(grid, text, own, speeds) if line.stage.kind in UP_TO_LAST]
        lines = [*(line._replace(stage=replace(line.stage, name=f"{GRID}{line.stage.name}")) for line in needed), *lines]
    return Plan(lines, _notes(study, lines, speeds), company)


def _lines(study: Study, text: str, folder: Path, speeds: Speeds) -> list[PlanLine]:
    records = Records(folder)
    return [PlanLine(stage, records.finished(stage), *SIZES[stage.kind](stage, study, speeds)) for stage in stages_of(study, text)]


def _notes(study: Study, lines: list[PlanLine], speeds: Speeds) -> list[str]:
    to_do = [line for line in lines if not line.finished]
    finished = f"{len(lines) - len(to_do)} of {len(lines)} stages are finished"
    if not to_do:
        return [f"{finished}; there is nothing to do."]
    return [_amounts(finished, to_do), *_basis(speeds), *_assumed(study), *_small_texts(study), *_memory_notes(lines, speeds.company)]


def _amounts(finished: str, to_do: list[PlanLine]) -> str:
    seconds, size = sum(line.seconds or 0.0 for line in to_do), sum(line.bytes or 0 for line in to_do)
    amount = f"about {readable_time(seconds)} and {readable_bytes(size)} of disk"
    unknown = any(line.seconds is None for line in to_do)
    return f"{finished}; the rest takes {amount}" + (", without those marked ?, of which that is not known beforehand." if unknown else ".")


def _basis(speeds: Speeds) -> list[str]:
    """What the times rest on."""
    if speeds.company.device is not None:
        return speeds.company.notes()
    return [
        f"The times are each stage's arithmetic at {2 * speeds.products() / 1e9:.0f} GFLOP/s, timed just now with a matrix product on this"
        " machine, and of models with a block of their size; fetching and converting models is not in them.",
        *speeds.company.notes(),
    ]


def _assumed(study: Study) -> list[str]:
    names = {scan.model for scan in study.scans} | {policy.model for policy in study.from_models().values()}
    return [
        f"{name} is not at hand: its sizes are taken to be those of its published configuration."
        for name in sorted(names)
        if is_assumed(name)
    ]


def _small_texts(study: Study) -> list[str]:
    """Where training repeats its activations often, and where features hardly fire often enough to be asked of their positions."""
    training, asked, arms = study.training, study.evaluation.positions, [variant.arm for variant in study.variants().values()]
    notes = []
    for name, entry in study.activations.items():
        tokens = tokens_of(entry)
        if not tokens:
            continue
        passes = training.steps * training.batch_size / (tokens * (1 - training.held_out))
        if passes > MOST_PASSES:
            often = f"training goes over them {passes:.0f} times: read more, or take fewer steps"
            notes.append(f"activations.{name}: some {tokens:,} activations, so that {often}.")
        sparse = [(arm.k / arm.features, arm.features) for arm in arms if isinstance(arm, TopKConfig)]
        if asked is None or not sparse:
            continue
        share, features = min(sparse)
        firings = training.held_out * tokens * share
        if firings < asked.least_firings / 2:
            notes.append(
                f"activations.{name}: on documents that are held out one of {features:,} features fires {firings:.0f} times in the mean, "
                f"and evaluation.positions asks for {asked.least_firings}, so few will be measured: read more text, or hold out more."
            )
    return notes


def _memory_notes(lines: list[PlanLine], company: Company) -> list[str]:
    """How much a process holds at once: its dictionaries of an entry learn side by side, and beside the model where that is read."""
    if company == ALONE:
        return []
    words = f"At most {readable_bytes(most_memory(lines))} are held at once in each process: weights, gradients and Adam's moments (where"
    words += " it shares them, its share) of the dictionaries of an entry that it trains, and the model that a stream reads; what a step"
    words += " works with is not counted."
    device = company.device
    return [words if device is None else f"{words} Each {device.title} has {readable_bytes(device.memory)}."]


def most_memory(lines: Sequence[PlanLine]) -> int:
    """Bytes that a process holds at most at once, as far as that is known."""
    held: dict[tuple[bool, str], int] = {}
    streamed = set()
    for line in lines:
        entry = (line.stage.name.startswith(GRID), line.stage.activations)
        if line.stage.kind == "train":
            held[entry] = held.get(entry, 0) + (line.memory or 0)
            streamed |= {entry} if line.course and line.course.reading else set()
    models = {line.stage.activations: line.memory or 0 for line in lines if line.stage.kind == "harvest"}
    together = [size + (models.get(entry[1], 0) if entry in streamed else 0) for entry, size in held.items()]
    return max([*together, *(line.memory or 0 for line in lines)], default=0)


class Amount(NamedTuple):
    """What one stage handles; None where it is unknown or does not apply."""

    tokens: int | None
    bytes: int | None
    seconds: float | None
    memory: int | None = None
    traffic: Traffic | None = None
    course: Course | None = None


def _scan(stage: Stage, study: Study, speeds: Speeds) -> Amount:
    scan = next(scan for scan in study.scans if scan.model == stage.model)
    tokens = scan.sequences * scan.context_length
    sizes = model_sizes(scan.model)
    if sizes is None:
        return Amount(tokens, None, None)
    summed = SCANNED_SECONDS + (0.0 if scan.beforehand is None else BEFOREHAND_SECONDS)
    used = speeds.precision(scan.compute_dtype)
    seconds = tokens * sizes.layers * (speeds.block(sizes, used) / speeds.company.processes + summed * sizes.width)
    return Amount(tokens, None, LOADING_SECONDS + seconds, _model_bytes(sizes, sizes.layers, used, scan.loading))


def _harvest(stage: Stage, study: Study, speeds: Speeds) -> Amount:
    policy = study.activations[stage.activations]
    if not isinstance(policy, HarvestPolicy):
        made = 0.0 if isinstance(policy, StoredPolicy) else _making(policy, speeds)
        return Amount(policy.tokens, policy.tokens * (4 * policy.width + COLUMN_BYTES), made)
    tokens, sizes = harvest_tokens(policy), model_sizes(policy.model)
    if tokens is None or sizes is None:
        return Amount(tokens, None, None)
    element = 4 if policy.dtype == "float32" else 2
    seconds = _reading(policy, sizes, tokens, speeds)
    seconds += LOADING_SECONDS + (_text_size(policy)[0] or tokens) / TOKENISED_PER_SECOND
    memory = _model_bytes(sizes, block_of(policy.layer) + 1, speeds.precision(policy.precision), policy.loading)
    return Amount(tokens, tokens * (sizes.width * element + COLUMN_BYTES), seconds, memory)


def _reading(policy: HarvestPolicy, sizes: ModelSizes, tokens: int, speeds: Speeds) -> float:
    """Seconds for so many tokens through the blocks of the model that are needed, divided among all processes."""
    blocks = block_of(policy.layer) + 1
    return tokens * blocks * speeds.block(sizes, speeds.precision(policy.precision)) / speeds.company.processes if blocks else 0.0


def _model_bytes(sizes: ModelSizes, blocks: int, precision: ModelPrecision, loading: Loading) -> int:
    """Of the weights of so many blocks, and of the embeddings."""
    element = DTYPES[precision].itemsize
    of_blocks = element if loading.weights is None else 1
    return of_blocks * blocks * block_products(sizes.width, sizes.hidden) + element * sizes.vocabulary * sizes.width


def _making(policy: WorldPolicy | RecordsPolicy, speeds: Speeds) -> float:
    """Seconds for a world's codes and directions, or for training and reading the network of the records."""
    if isinstance(policy, WorldPolicy):
        return policy.tokens * policy.width * policy.features / speeds.products()
    sizes = ModelSizes(policy.width, 4 * policy.width, policy.layers, policy.positions)
    trained = 3 * policy.steps * policy.batch_size * policy.positions  # a step is a forward pass and two as dear
    return (trained + policy.tokens) * policy.layers * block_products(sizes.width, sizes.hidden) / speeds.products()


def _train(stage: Stage, study: Study, speeds: Speeds) -> Amount:
    assert stage.run
    arm, width = study.variants()[stage.run.arm].arm, width_of(study.activations[stage.activations])
    if not arm.trained:
        return Amount(None, None, LOADING_SECONDS)
    tokens = study.training.steps * study.training.batch_size
    if width is None:
        return Amount(tokens, None, None)
    entries = width * arm.features
    policy = study.activations[stage.activations]
    element = 4 if isinstance(policy, HarvestPolicy) and policy.dtype == "float32" else 2
    traffic = Traffic(
        gradients=2 * 4 * entries,
        candidates=4 * study.training.batch_size * (getattr(arm, "k", None) or 0),
        stream=element * study.training.batch_size * width if study.stream_of(stage.activations) else 0,
    )
    if share := _dealt(study, stage, speeds.company):
        learning = share * _course(study, stage, traffic, speeds, speeds.company.alone).learning
        memory = math.ceil(share * speeds.company.alone.holding(2 * entries))
        return Amount(tokens, 2 * 4 * entries, learning, memory, None, Course(0.0, 0.0, learning))
    course = _course(study, stage, traffic, speeds, speeds.company)
    shared = traffic if speeds.company.processes > 1 else None
    return Amount(tokens, 2 * 4 * entries, course.together, speeds.company.holding(2 * entries), shared, course)


def _dealt(study: Study, stage: Stage, company: Company) -> float | None:
    """The share of the dictionaries of an entry that one process trains, where each process trains dictionaries of its own; else None."""
    variants = study.variants()
    trained = sum(run.activations == stage.activations and variants[run.arm].arm.trained for run in study.trainings())
    parts = divided(list(range(trained)), company.processes)
    if company.processes == 1 or len(parts) < company.processes or study.stream_of(stage.activations):
        return None
    return sum(map(len, parts[:: company.processes])) / trained


def _course(study: Study, stage: Stage, traffic: Traffic, speeds: Speeds, company: Company) -> Course:
    policy, training = study.activations[stage.activations], study.training
    assert stage.run
    sparse = study.variants()[stage.run.arm].arm.level == "k"
    parameters = traffic.gradients // 4
    products = training.batch_size * parameters // 2 * (SPARSE_PRODUCTS if sparse else DENSE_PRODUCTS)
    step = products / company.processes / speeds.products() + company.updating(parameters) + company.exchanging(traffic)
    learning = training.steps * step
    if not isinstance(policy, HarvestPolicy) or not policy.stream or (sizes := model_sizes(policy.model)) is None:
        return Course(0.0, 0.0, learning)
    together = sum(run.activations == stage.activations for run in study.trainings())
    tokens = training.steps * training.batch_size
    feeding = tokens / TOKENISED_PER_SECOND + training.steps * company.spreading(traffic)
    return Course(_reading(policy, sizes, tokens, speeds) / together, feeding / together, learning)


def _evaluate(stage: Stage, study: Study, speeds: Speeds) -> Amount:
    if stage.section and stage.section != PAIRED:
        return Amount(None, None, None)
    if stage.run is None:  # what is assembled, or compared, of what was computed before
        return Amount(None, None, 0.0)
    policy = study.activations[stage.activations]
    harvested, width = tokens_of(policy), width_of(policy)
    tokens = None if harvested is None else round(harvested * study.training.held_out)
    arm = study.variants()[stage.run.arm].arm
    if tokens is None or width is None or not arm.trained:  # how wide one is that is not read yet, its file says
        return Amount(tokens, None, None)
    shared = min(speeds.company.processes, len(study.trainings()))  # each process measures dictionaries of its own
    return Amount(tokens, None, ENCODING_AND_DECODING * tokens * width * arm.features / speeds.products() / shared)


SIZES: dict[str, Callable[[Stage, Study, Speeds], Amount]] = {
    "scan": _scan,
    "harvest": _harvest,
    "train": _train,
    "evaluate": _evaluate,
    "figures": lambda *_: Amount(None, None, DRAWING_SECONDS),
    "report": lambda *_: Amount(None, None, WRITING_SECONDS),
}


def width_of(policy: Activations) -> int | None:
    """Width of an entry's activations; None where its model is not at hand."""
    if not isinstance(policy, HarvestPolicy):
        return policy.width
    sizes = model_sizes(policy.model)
    return sizes and sizes.width


def tokens_of(policy: Activations) -> int | None:
    """About how many activations an entry gives; None where that is not known."""
    return harvest_tokens(policy) if isinstance(policy, HarvestPolicy) else policy.tokens


def harvest_tokens(policy: HarvestPolicy) -> int | None:
    """About how many tokens a harvest reads: what its text holds, bounded by its policy, and of a stream what is stored of it; None when
    neither is known."""
    in_text, documents = _text_size(policy)
    bounds = [in_text, policy.max_tokens]
    if documents is not None and policy.rows_per_document is not None:
        bounds.append(documents * policy.rows_per_document * policy.context_length)
    elif documents is not None and policy.rows == "document":
        bounds.append(documents * policy.context_length)
    tokens = min((bound for bound in bounds if bound is not None), default=None)
    return tokens // policy.stored_every if policy.stream and tokens is not None else tokens


def _text_size(policy: HarvestPolicy) -> tuple[int | None, int | None]:
    """Tokens and documents of a policy's text, where they are known without reading it."""
    if policy.text in TEXTS:
        return TEXTS[policy.text].tokens, TEXTS[policy.text].documents
    path = user_path(policy.text)
    if path.is_file():
        return round(path.stat().st_size / BYTES_PER_TOKEN), None
    if path.is_dir():
        return round(sum(file.stat().st_size for file in folder_content(path).files) / BYTES_PER_TOKEN), None
    return None, None

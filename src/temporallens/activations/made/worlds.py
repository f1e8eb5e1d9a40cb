"""Worlds with known answers: activations made of feature directions whose rates by position are written down.

A row is `x = sum_f a_f d_f + offset[p] + noise`: feature f is active with probability `rate[f, p]`, independently, with a positive
amplitude. Where tokens mean something `said[token]` is added, and where features last what `carried` makes of the row before, less what
position and token say of it. A feature's rate averaged over positions 1 to P - 1 depends on its Zipf rank and never on its class, so that
no class is easier for being more frequent. Position 0 holds no feature. Everything random comes from generators keyed by seed, purpose and
document, so that `true_codes` gives back what was active in any sequence of a finished store. The truth is written beside the
store (`docs/formats.md`), before its manifest.
"""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, ValidationError, model_validator

from temporallens.activations.manifest import StoreDescription, is_store
from temporallens.activations.moments import FIRST
from temporallens.activations.store import ActivationStore
from temporallens.activations.writer import Rows, StoreWriter
from temporallens.defaults import own_defaults
from temporallens.errors import TemporalLensError
from temporallens.files import read_json, read_tensors, user_path, write_json, write_tensors
from temporallens.progress import progress
from temporallens.settings import Seed, Settings

FORMAT = "temporallens.world/1"
CLASSES = ("global", "window", "start", "ramp", "periodic")
GLOBAL, WINDOW, START, RAMP, PERIODIC = range(len(CLASSES))
LIMITED = (WINDOW, START, PERIODIC)
"""Classes whose features are silent somewhere: those of which a mask has something to say."""

DOCUMENT = 4
"""Sequences of a document; the unit that training and held-out data divide, and that one generator makes."""
APPEND_DOCUMENTS = 64
AMPLITUDE_FLOOR, AMPLITUDE_SCALE = 1.0, 0.5
"""An active feature has amplitude 1 + exponential of mean .5: its mean is 1.5, its mean square 2.5."""
AMPLITUDE_SQUARE = AMPLITUDE_FLOOR**2 + 2 * AMPLITUDE_FLOOR * AMPLITUDE_SCALE + 2 * AMPLITUDE_SCALE**2
RAMP_FLOOR = 0.1
"""The low end of a ramp, as a share of its high end: a ramp is never silent."""
SINK_NORM = 100.0
"""Norm of the sink at position 0, in norms of the signal (SmolLM2: 180)."""
DIRECTIONS, PROFILES, OFFSET, LENGTHS, ROWS, TOKENS, CARRIED = range(7)
"""Purposes of the generators."""
PUSHES = 2000
"""Repulsion steps after which feature directions are given up."""
LARGEST_TABLE = 1 << 26
"""Entries of a table of features by features, positions or dimensions; such tables are held in memory."""


class WorldPolicy(Settings):
    """One entry under `activations:` of a study with `source: world`: a world whose every feature is known."""

    source: Literal["world"] = "world"
    """Says that these activations are made, not harvested."""
    variant: Literal["known", "null", "shifted", "growing", "token", "dynamic"] = "known"
    """`known`: all five classes. `null`: every feature is global. `shifted`: the clock behind rates and offset starts elsewhere and
    wraps around, while the position column does not know. `growing`: rows of lengths from a quarter to all of the positions.
    `token`: as known, and every row has a token that says part of it. `dynamic`: part of a row is carried over to the next, too."""
    width: int = Field(96, ge=2)
    """Dimensions of an activation."""
    features: int = Field(256, ge=len(CLASSES))
    """True features; classes take turns, rank by rank."""
    positions: int = Field(64, ge=8)
    """Tokens in a full row; position 0 holds no feature and is excluded from training."""
    sequences: int = Field(6400, ge=2 * DOCUMENT, le=1 << 26)
    """Rows of the world; four in a document."""
    coherence: float = Field(0.4, gt=0, lt=1)
    """Largest cosine, either sign, between two feature directions: random ones are pushed apart until it holds."""
    active: float = Field(6.0, gt=0)
    """Features active in a token, on average over positions 1 and later."""
    zipf: float = Field(0.5, ge=0, le=10)
    """Exponent of the rates: the five features of rank j have a mean rate proportional to j to the power of minus this."""
    highest_rate: float = Field(0.06, gt=0, le=1)
    """Where the head of the Zipf law is cut off: a feature that lives at few positions cannot have a high mean rate."""
    start: int = Field(16, ge=1)
    """Start-only features live at positions 1 to this."""
    windows: tuple[float, ...] = Field((0.125, 0.25, 0.5), min_length=1)
    """Widths of windows, as shares of the positions; the centres of each width are log-spaced."""
    periods: tuple[int, ...] = Field((4, 8), min_length=1)
    """Periodic features are active at every so manieth position, at evenly spread phases."""
    shift: int | None = Field(None, ge=1)
    """Positions by which the clock of a shifted world runs ahead; None: a quarter of them. For `shifted` only."""
    vocabulary: int = Field(256, ge=2, le=1 << 20, exclude_if=lambda size: size == 256)
    """Tokens, the one of rank j being as frequent as 1 / (j + 2). This and the two below: for `token` and `dynamic` only."""
    said: float = Field(1.0, ge=0, le=1e6, exclude_if=lambda norm: norm == 1.0)
    """Norm of what tokens say, in norms of the signal; 0: tokens mean nothing."""
    carried: float = Field(0.5, ge=0, lt=1, exclude_if=lambda share: share == 0.5)
    """Norm of what is carried over to the next row, turned to other directions, in norms of what it was; for `dynamic`."""
    growth: float = Field(1.0, ge=1)
    """How many times as often a feature is active at the last position as at the first, on top of its class's profile and at the
    same mean rate; with 1 only the classes shape L0 by position."""
    offset: float = Field(0.3, ge=0, le=1e6)
    """Norm of the mean offset, which moves smoothly with position, in norms of the signal (root mean square)."""
    noise: float = Field(0.05, ge=0, le=1e6)
    """Norm of the Gaussian noise, in norms of the signal."""
    sink: bool = False
    """Whether position 0 is an attention sink of 100 times the signal's norm."""
    seed: Seed = 0
    """Of everything random here."""

    @model_validator(mode="after")
    def _possible(self) -> "WorldPolicy":
        lived, largest = self.positions - 1, max(self.features, self.positions, self.width)
        if self.features * largest > LARGEST_TABLE:
            raise ValueError(
                f"{self.features} features need a table of {self.features} by {largest}, more than {LARGEST_TABLE:,} entries; "
                "give fewer features, positions or dimensions"
            )
        welch = np.sqrt(max(0.0, (self.features - self.width) / (self.width * (self.features - 1))))
        if self.coherence <= welch:
            raise ValueError(
                f"coherence = {self.coherence} cannot be: {self.features} directions in {self.width} dimensions reach {welch:.3f} at least"
            )
        if self.start >= lived:
            raise ValueError(f"start = {self.start} leaves no position without start-only features; give less than {lived}")
        if not all(0 < share <= 1 for share in self.windows):
            raise ValueError(f"windows = {self.windows}: widths are shares of the positions, above 0 and up to 1")
        if not all(2 <= period <= lived for period in self.periods):
            raise ValueError(f"periods = {self.periods}: a period lies between 2 and {lived}")
        if self.shift is not None and (self.variant != "shifted" or self.shift >= lived):
            raise ValueError(f"shift = {self.shift} goes with variant: shifted, and is less than {lived}")
        if self.active >= self.features * self.highest_rate:
            raise ValueError(
                f"active = {self.active} cannot come from {self.features} features of rate {self.highest_rate} at most; raise highest_rate"
            )
        profiles = _profiles(self)
        highest, where = float(profiles.rate.max()), np.unravel_index(profiles.rate.argmax(), profiles.rate.shape)[0]
        if highest > 1:
            raise ValueError(
                f"a {CLASSES[profiles.kind[where]]} feature would be active {highest:.2f} times in a token; lower highest_rate "
                f"(now {self.highest_rate}), active or growth, or let its class live at more positions"
            )
        return self

    @property
    def tokens(self) -> int:
        """About how many rows the store will hold."""
        mean = (self.positions + _shortest(self)) / 2 if self.variant == "growing" else self.positions
        return round(self.sequences * mean)


class Profiles(NamedTuple):
    """What every feature does, by position."""

    rate: Float[np.ndarray, "F P"]  # float64; probability of being active
    kind: Int[np.ndarray, " F"]  # index into CLASSES
    centre: Float[np.ndarray, " F"]  # mean of the positions of a window or start-only feature; NaN elsewhere, and where a shift divides it
    width: Float[np.ndarray, " F"]  # how many positions those are; NaN elsewhere
    period: Int[np.ndarray, " F"]  # of a periodic feature; 0 elsewhere


class Truth(NamedTuple):
    """What is known of a world by construction."""

    policy: WorldPolicy
    directions: Float[np.ndarray, "F D"]  # float32, unit rows
    profiles: Profiles
    offset: Float[np.ndarray, "P D"]  # float32, mean offset by position
    said: Float[np.ndarray, "V D"] | None  # float32, by token; None where there are none
    carried: Float[np.ndarray, "D D"] | None  # float32, from a row to the next; None where nothing is

    @property
    def open(self) -> Bool[np.ndarray, "P F"]:
        """Where each feature may be active: a rate above 1 % of its highest (here: above 0, a ramp's low end being 10 %)."""
        rate = self.profiles.rate.T
        return rate > 0.01 * rate.max(0)


def _shortest(policy: WorldPolicy) -> int:
    return max(2, policy.positions // 4)


def _generator(policy: WorldPolicy, purpose: int, *further: int) -> np.random.Generator:
    return np.random.default_rng((policy.seed, purpose, *further))


def zipf_rates(features: int, active: float, exponent: float, highest: float) -> Float[np.ndarray, " F"]:
    """Mean rates that sum to `active`: Zipf's law over ranks of one feature per class, cut off at `highest`."""
    weights = (1.0 + np.arange(features) // len(CLASSES)) ** -exponent
    tails = np.cumsum(weights[::-1])[::-1]
    factors = (active - highest * np.arange(features)) / tails  # of the law, were the first n features cut off
    return np.minimum(factors[np.argmax(factors * weights <= highest)] * weights, highest)


@lru_cache(maxsize=8)
def _profiles(policy: WorldPolicy) -> Profiles:
    """Rates of every feature on the position column, and the numbers behind them."""
    features, lived = policy.features, policy.positions - 1
    position = np.arange(1, policy.positions)
    generator = _generator(policy, PROFILES)
    kind = np.arange(features) % len(CLASSES) if policy.variant != "null" else np.full(features, GLOBAL)
    shape = np.ones((features, lived))
    period = np.zeros(features, dtype=np.int64)
    for feature, (first, last) in zip(generator.permutation(np.flatnonzero(kind == WINDOW)), _windows(policy), strict=False):
        shape[feature] = (position >= first) & (position <= last)
    shape[kind == START] = position <= policy.start
    rising = np.linspace(RAMP_FLOOR, 1.0, lived)
    for number, feature in enumerate(generator.permutation(np.flatnonzero(kind == RAMP))):
        shape[feature] = rising if number % 2 else rising[::-1]
    for number, feature in enumerate(generator.permutation(np.flatnonzero(kind == PERIODIC))):
        turn, choice = divmod(number, len(policy.periods))
        period[feature] = policy.periods[choice]
        shape[feature] = position % period[feature] == turn % period[feature]
    shape *= np.linspace(1.0, policy.growth, lived)
    if policy.variant == "shifted":
        shape = np.roll(shape, -_shift(policy), axis=1)
    mean = zipf_rates(features, policy.active, policy.zipf, policy.highest_rate)
    rate = np.zeros((features, policy.positions))
    rate[:, 1:] = shape * (mean / shape.mean(1))[:, None]
    centre, width = extent(rate.T > 0)
    located = np.isin(kind, (WINDOW, START)) & _contiguous(rate > 0)
    return Profiles(rate, kind, np.where(located, centre, np.nan), np.where(located, width, np.nan), period)


def _contiguous(lives: Bool[np.ndarray, "F P"]) -> Bool[np.ndarray, " F"]:
    """Which features live in one run of positions: a window that a shift wraps around lives in two."""
    return (lives[:, 1:] & ~lives[:, :-1]).sum(1) == 1


def extent(weight: Float[np.ndarray, "P F"] | Bool[np.ndarray, "P F"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean position (NaN where there is no weight) and total weight of each feature over positions 1 and later."""
    total = weight[1:].sum(0, dtype=np.float64)
    position = np.arange(1, len(weight), dtype=np.float64)
    return np.divide(position @ weight[1:], total, out=np.full(len(total), np.nan), where=total > 0), total


def _shift(policy: WorldPolicy) -> int:
    return policy.positions // 4 if policy.shift is None else policy.shift


def _windows(policy: WorldPolicy) -> list[tuple[int, int]]:
    """First and last position of each window: widths take turns, the centres of each are log-spaced as far as whole windows fit."""
    lived = policy.positions - 1
    count = len(range(WINDOW, policy.features, len(CLASSES)))
    windows = []
    for choice, share in enumerate(policy.windows):
        width = max(1, round(share * lived))
        half = (width - 1) / 2
        of_this_width = len(range(choice, count, len(policy.windows)))
        for centre in np.geomspace(1 + half, lived - half, max(1, of_this_width)):
            first = round(centre - half)
            windows.append((first, first + width - 1))
    return windows


def _directions(policy: WorldPolicy) -> Float[np.ndarray, "F D"]:
    """Random unit vectors, those too near each other pushed apart until the stated coherence holds."""
    generator = _generator(policy, DIRECTIONS)
    directions = generator.normal(size=(policy.features, policy.width))
    for _ in range(PUSHES):
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        cosines = directions @ directions.T
        np.fill_diagonal(cosines, 0.0)
        if np.abs(cosines).max() <= policy.coherence:
            return directions.astype(np.float32)
        directions -= 0.5 * np.sign(cosines) * np.maximum(np.abs(cosines) - 0.98 * policy.coherence, 0.0) @ directions
    raise TemporalLensError(
        f"{policy.features} directions in {policy.width} dimensions could not be pushed apart to a coherence of {policy.coherence}; "
        "allow more, or give fewer features"
    )


def signal_norm(policy: WorldPolicy) -> float:
    """Root mean square norm of the features' sum, were they orthogonal: what offset, noise and sink are multiples of."""
    return float(np.sqrt(policy.active * AMPLITUDE_SQUARE))


def _offset(policy: WorldPolicy) -> Float[np.ndarray, "P D"]:
    """A curve of three harmonics in `log(1 + p) / log(P)`, fast in early positions and slow in late ones."""
    generator = _generator(policy, OFFSET)
    u = np.log1p(np.arange(policy.positions)) / np.log(policy.positions)
    waves = np.cos(np.pi * np.arange(1, 4) * u[:, None])
    curve = waves @ (generator.normal(size=(3, policy.width)) / np.arange(1, 4)[:, None])
    norm = np.sqrt(np.square(curve[1:]).sum(1).mean())
    curve *= policy.offset * signal_norm(policy) / norm
    if policy.variant == "shifted":
        curve[1:] = np.roll(curve[1:], -_shift(policy), axis=0)
    return curve.astype(np.float32)


def truth_of(policy: WorldPolicy) -> Truth:
    """The world that a policy describes. Raises TemporalLensError when its directions cannot be as incoherent as asked."""
    return Truth(policy, _directions(policy), _profiles(policy), _offset(policy), _said(policy), _carried(policy))


def token_rates(policy: WorldPolicy) -> Float[np.ndarray, " V"]:
    """How frequent each token is."""
    weights = 1 / (np.arange(policy.vocabulary) + 2)
    return np.asarray(weights / weights.sum())


def _said(policy: WorldPolicy) -> Float[np.ndarray, "V D"] | None:
    """What tokens say: 0 on average, of the stated root mean square norm."""
    if policy.variant not in ("token", "dynamic"):
        return None
    rates, table = token_rates(policy), _generator(policy, TOKENS).normal(size=(policy.vocabulary, policy.width))
    table -= rates @ table
    norm = np.sqrt(rates @ np.square(table).sum(1))
    return (table * (policy.said * signal_norm(policy) / norm)).astype(np.float32)


def _carried(policy: WorldPolicy) -> Float[np.ndarray, "D D"] | None:
    """A random rotation, shrunk."""
    if policy.variant != "dynamic":
        return None
    rotation = np.linalg.qr(_generator(policy, CARRIED).normal(size=(policy.width, policy.width)))[0]
    return (policy.carried * rotation).astype(np.float32)


def _lengths(policy: WorldPolicy) -> Int[np.ndarray, " n"]:
    """Tokens of each sequence."""
    if policy.variant != "growing":
        return np.full(policy.sequences, policy.positions)
    return _generator(policy, LENGTHS).integers(_shortest(policy), policy.positions, size=policy.sequences, endpoint=True)


def _active(policy: WorldPolicy, rate: Float[np.ndarray, "P F"], document: int) -> tuple[np.random.Generator, np.ndarray]:
    """Codes `[4, P, F]` of a document's sequences, as if all were of full length, and the generator for what comes on top."""
    generator = _generator(policy, ROWS, document)
    active = np.flatnonzero(generator.random((DOCUMENT, *rate.shape), dtype=np.float32) < rate)
    codes = np.zeros(DOCUMENT * rate.size, dtype=np.float32)
    codes[active] = AMPLITUDE_FLOOR + AMPLITUDE_SCALE * generator.standard_exponential(len(active), dtype=np.float32)
    return generator, codes.reshape(DOCUMENT, *rate.shape)


def true_codes(policy: WorldPolicy, sequences: Int[np.ndarray, " n"]) -> Float[np.ndarray, "N F"]:
    """What was active in these sequences: rows as `ActivationStore.read` gives them, sequence after sequence."""
    rate, lengths = _profiles(policy).rate.T.astype(np.float32), _lengths(policy)
    parts: list[np.ndarray] = []
    document, codes = -1, np.empty(0)
    for sequence in sequences.tolist():
        if sequence // DOCUMENT != document:
            document = sequence // DOCUMENT
            codes = _active(policy, rate, document)[1]
        parts.append(codes[sequence % DOCUMENT, : lengths[sequence]])
    return np.concatenate(parts)


def _rows(truth: Truth, documents: range) -> Rows:
    """The rows of these documents with their columns."""
    policy, rate = truth.policy, truth.profiles.rate.T.astype(np.float32)
    lengths = _lengths(policy)[documents.start * DOCUMENT : documents.stop * DOCUMENT]
    noise = policy.noise * signal_norm(policy) / np.sqrt(policy.width)
    x = np.empty((len(documents), DOCUMENT, policy.positions, policy.width), dtype=np.float32)
    for number, document in enumerate(documents):
        generator, codes = _active(policy, rate, document)
        x[number] = codes @ truth.directions
        if truth.carried is not None:
            for position in range(1, policy.positions):
                x[number, :, position] += x[number, :, position - 1] @ truth.carried
        x[number] += truth.offset
        x[number] += np.float32(noise) * generator.standard_normal(x[number].shape, dtype=np.float32)
    if policy.sink:
        x[:, :, 0] += SINK_NORM * signal_norm(policy) * _sink_direction(policy)
    x = x.reshape(-1, policy.positions, policy.width)[: len(lengths)]
    token = _tokens(policy, documents)[: len(lengths)]
    if truth.said is not None:
        x += truth.said[token]
    present = np.arange(policy.positions) < lengths[:, None]
    index = torch.from_numpy(np.broadcast_to(np.arange(policy.positions), present.shape)[present])
    sequence = torch.from_numpy(np.repeat(np.arange(len(lengths)) + documents.start * DOCUMENT, lengths))
    return Rows(
        x=torch.from_numpy(x[present]),
        position=index,
        index=index,
        document_position=index,
        sequence=sequence,
        document=sequence // DOCUMENT,
        token=torch.from_numpy(token[present]),
        excluded=(index == 0).to(torch.uint8) * FIRST,
    )


def _tokens(policy: WorldPolicy, documents: range) -> Int[np.ndarray, "n P"]:
    """Those of the sequences of these documents, -1 where tokens mean nothing in this world."""
    shape = (DOCUMENT, policy.positions)
    if policy.variant not in ("token", "dynamic"):
        return np.full((len(documents) * DOCUMENT, policy.positions), -1)
    rates = token_rates(policy)
    return np.concatenate([_generator(policy, TOKENS, document).choice(len(rates), shape, p=rates) for document in documents])


def _sink_direction(policy: WorldPolicy) -> Float[np.ndarray, " D"]:
    direction = _generator(policy, OFFSET, 1).normal(size=policy.width)
    return (direction / np.linalg.norm(direction)).astype(np.float32)


def _description(policy: WorldPolicy) -> StoreDescription:
    return StoreDescription(
        source={"kind": "world", "policy": policy.model_dump(mode="json")},
        policies={
            "rows": "world",
            "clock": "index",
            "context_length": policy.positions,
            "position_zero": "excluded",
            "norm_multiple": None,
        },
        width=policy.width,
        dtype="float32",
        positions=policy.positions,
    )


@own_defaults()
def harvest_world(policy: WorldPolicy, out: Path | str) -> ActivationStore:
    """Make the world of `policy` in the folder `out`, with its truth; a finished one is returned as it is.

    An interrupted call goes on when it is repeated. Raises TemporalLensError when `out` holds anything else.
    """
    out, description = user_path(out), _description(policy)
    if is_store(out):
        store = ActivationStore(out)
        if store.manifest.description != description:
            raise TemporalLensError(f"{out} already holds another store; choose another folder or remove it")
        read_truth(out)
        return store
    truth = truth_of(policy)
    _remove_truth(out)
    writer = StoreWriter(out, description)
    documents = -(-policy.sequences // DOCUMENT)
    with progress("making a world", policy.tokens, "tokens") as advance:
        for number, first in enumerate(range(0, documents, APPEND_DOCUMENTS)):
            if number >= writer.appends_done:
                rows = _rows(truth, range(first, min(first + APPEND_DOCUMENTS, documents)))
                writer.append(rows)
                advance(len(rows.x))
    _write_truth(truth, out)
    return ActivationStore(writer.finish())


def _tensors(truth: Truth) -> dict[str, np.ndarray]:
    """The arrays of `truth.safetensors`, by name."""
    named = {
        "directions": truth.directions,
        **truth.profiles._asdict(),
        "offset": truth.offset,
        "said": truth.said,
        "carried": truth.carried,
    }
    present = {name: array for name, array in named.items() if array is not None}
    return {"class" if name == "kind" else name: np.ascontiguousarray(array) for name, array in present.items()}


def _checksum(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].tobytes())
    return digest.hexdigest()


def _write_truth(truth: Truth, folder: Path) -> None:
    tensors = _tensors(truth)
    content = {
        "format": FORMAT,
        "policy": truth.policy.model_dump(mode="json"),
        "classes": list(CLASSES),
        "limited": [CLASSES[kind] for kind in LIMITED],
        "sha256": _checksum(tensors),
    }
    write_json(folder / "truth.json", content)  # first, so that what an interruption leaves can be told from a stranger's files
    write_tensors(folder / "truth.safetensors", {name: torch.from_numpy(array) for name, array in tensors.items()})


def _remove_truth(folder: Path) -> None:
    """Remove the truth that a call left which was interrupted just before its manifest."""
    path = folder / "truth.json"
    if path.is_file() and _is_truth(read_json(path, "the truth of a world", foreign=True)):
        (folder / "truth.safetensors").unlink(missing_ok=True)
        path.unlink()


def _is_truth(content: object) -> bool:
    return isinstance(content, dict) and content.get("format") == FORMAT


def read_truth(folder: Path) -> Truth:
    """The truth beside a store. Raises TemporalLensError when there is none, or when it is damaged."""
    path, remedy = folder / "truth.json", f"remove {folder} and run again"
    content = read_json(path, "the truth of a world with known answers")
    if not _is_truth(content):
        raise TemporalLensError(f"{path} is not of the format '{FORMAT}' that this version reads; {remedy}")
    found, _ = read_tensors(folder / "truth.safetensors", "the truth of a world with known answers")
    tensors = {name: tensor.numpy() for name, tensor in found.items()}
    if _checksum(tensors) != content.get("sha256"):
        raise TemporalLensError(f"{folder / 'truth.safetensors'} does not have the checksum that {path.name} states; {remedy}")
    try:
        policy = WorldPolicy.model_validate(content["policy"])
        profiles = Profiles(**{name: tensors["class" if name == "kind" else name] for name in Profiles._fields})
        said, carried = tensors.get("said"), tensors.get("carried")
        if (said is None) != (_said(policy) is None) or (carried is None) != (_carried(policy) is None):
            raise KeyError("said" if said is None else "carried")
        return Truth(policy, tensors["directions"], profiles, tensors["offset"], said, carried)
    except (KeyError, ValidationError) as error:
        raise TemporalLensError(f"{path} is damaged ({error}); {remedy}") from error

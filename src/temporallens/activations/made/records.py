"""A network whose positions carry roles: a small transformer that reads records of a fixed format, and its activations as a store.

Every record is one line of 43 characters, the line break that opens it included, in which each column belongs to one field (`FIELDS`):

    1998-01-24T08:13Z GOLF6 T+03.1 L+016.97 #4

date and time, station, temperature, latitude, check digit. Fields are drawn independently and uniformly, and the check digit
follows from two others, so the entropy of a record, and with it the least loss that any network can reach, is known exactly. The
network is made and trained here (about a minute); what is known by construction is written beside the store, before its manifest.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import cross_entropy

from temporallens.activations.language.shipped import quiet_transformers
from temporallens.activations.manifest import StoreDescription, is_store
from temporallens.activations.moments import FIRST
from temporallens.activations.store import ActivationStore
from temporallens.activations.writer import Rows, StoreWriter
from temporallens.defaults import own_defaults
from temporallens.errors import TemporalLensError
from temporallens.files import explained, locked, make_folder, read_json, user_path, write_json, write_tensors
from temporallens.progress import progress
from temporallens.settings import Seed, Settings

FORMAT = "temporallens.records/1"
Network = Any
"""transformers' GPT2LMHeadModel, whose import takes seconds."""

EXAMPLE = "\n1998-01-24T08:13Z GOLF6 T+03.1 L+016.97 #4"
"""A record; the line break at column 0 is where nothing has been read yet."""
_ROLES = "|YYYY|MM|DD|hh|mm||SSSSS|TTTTTT|LLLLLLLL|CC"
"""To which field each column belongs."""
_NAMES = {
    "Y": "year",
    "M": "month",
    "D": "day",
    "h": "hour",
    "m": "minute",
    "S": "station",
    "T": "temperature",
    "L": "latitude",
    "C": "check digit",
    "|": "separators",
}
COLUMNS = len(EXAMPLE)
FIELDS: dict[str, tuple[int, ...]] = {
    name: tuple(column for column, letter in enumerate(_ROLES) if letter == role) for role, name in _NAMES.items()
}
"""Columns of each field."""

STATIONS = ("ALFA", "ECHO", "GOLF", "KILO", "LIMA", "MIKE", "PAPA", "XRAY", "ZULU")
FIRST_MINUTE, LAST_MINUTE = (int(np.datetime64(f"{year}-01-01T00:00", "m").astype(np.int64)) for year in (1950, 2050))
TENTHS = 499
"""Temperatures lie within 49.9 degrees of 0, evenly in tenths."""
HUNDREDTHS = 9000
"""Latitudes lie within 90.00 degrees of 0, evenly in hundredths."""
VOCABULARY = "".join(sorted(set("\n0123456789-:+.# TZL" + "".join(STATIONS))))
"""The characters; a token is an index into it."""
ENTROPY = math.log(LAST_MINUTE - FIRST_MINUTE) + math.log(10 * len(STATIONS)) + math.log(2 * TENTHS + 1) + math.log(2 * HUNDREDTHS + 1)
"""Of a record, in nats; the check digit adds nothing."""
FLOOR = ENTROPY / (COLUMNS - 1)
"""The least loss, in nats per predicted character."""

TRAINED, HARVESTED, TESTED, WEIGHTS = range(4)
"""Purposes of the generators."""
WARM_UP = 0.06
"""Share of the steps in which the learning rate rises; then it falls along a cosine."""
TEST_RECORDS = 2048
APPEND_DOCUMENTS = 64


class RecordsPolicy(Settings):
    """One entry under `activations:` of a study with `source: records`: the record network and what is harvested from it."""

    source: Literal["records"] = "records"
    """Says that these activations come from the record network, which is trained on the spot."""
    records: int = Field(8192, ge=2, le=1 << 26)
    """Records to harvest, of 43 tokens each; drawn anew, not those trained on."""
    records_per_document: int = Field(8, ge=1)
    """Records of a document, the unit that training and held-out data divide."""
    layer: int = Field(1, ge=0)
    """The residual stream after this block, counted from 0."""
    layers: int = Field(3, ge=1, le=96)
    """Blocks of the network."""
    width: int = Field(128, ge=1, le=8192)
    """Dimensions of the residual stream."""
    heads: int = Field(4, ge=1)
    """Attention heads of a block."""
    steps: int = Field(500, ge=1)
    """Training steps of the network."""
    batch_size: int = Field(64, ge=1)
    """Records in a training step; every step sees new ones."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of AdamW, at its height."""
    largest_excess: float = Field(0.1, gt=0)
    """The network is refused when its loss on new records is more than this above the known floor, in nats per character."""
    seed: Seed = 0
    """Of the network's weights and of all records."""

    @model_validator(mode="after")
    def _possible(self) -> "RecordsPolicy":
        if self.layer >= self.layers:
            raise ValueError(f"layer = {self.layer} is out of range: a network of {self.layers} layers has layers 0 to {self.layers - 1}")
        if self.width % self.heads:
            raise ValueError(f"width = {self.width} cannot be shared by {self.heads} heads; give a multiple of {self.heads}")
        if self.records <= self.records_per_document:
            raise ValueError(
                f"records = {self.records} make one document of {self.records_per_document}: a held-out split needs at least two documents"
            )
        return self

    @property
    def positions(self) -> int:
        """Positions of the store's clock."""
        return COLUMNS

    @property
    def tokens(self) -> int:
        """Rows that the store will hold."""
        return self.records * COLUMNS


class Trained(NamedTuple):
    """The network after training."""

    network: Network
    loss: Float[Tensor, " C"]  # on new records, nats, of predicting each column from those before it; 0 at column 0

    @property
    def mean_loss(self) -> float:
        """Nats per predicted character."""
        return float(self.loss[1:].mean())


class Layout(NamedTuple):
    """What is known of a store's columns by construction."""

    fields: dict[str, tuple[int, ...]]  # columns of each field
    vocabulary: str  # character of each token
    example: str  # a record


# Records


def make_records(count: int, generator: np.random.Generator) -> UInt8[np.ndarray, "N C"]:
    """Records as ASCII codes."""
    records = np.empty((count, COLUMNS), dtype=np.uint8)
    records[:] = np.frombuffer(EXAMPLE.encode(), dtype=np.uint8)
    minutes = generator.integers(FIRST_MINUTE, LAST_MINUTE, count).astype("datetime64[m]")
    records[:, 1:17] = np.datetime_as_string(minutes, unit="m").astype("S16").view(np.uint8).reshape(count, 16)
    names = np.frombuffer("".join(STATIONS).encode(), dtype=np.uint8).reshape(-1, 4)
    records[:, 19:23] = names[generator.integers(0, len(STATIONS), count)]
    _write_digits(records, (23,), generator.integers(0, 10, count))
    _write_signed(records, 26, (27, 28, 30), generator.integers(-TENTHS, TENTHS + 1, count))
    _write_signed(records, 33, (34, 35, 36, 38, 39), generator.integers(-HUNDREDTHS, HUNDREDTHS + 1, count))
    _write_digits(records, (42,), check_digit(records))
    return records


def _write_signed(records: UInt8[np.ndarray, "N C"], sign: int, columns: tuple[int, ...], values: Int[np.ndarray, " N"]) -> None:
    records[:, sign] = np.where(values < 0, ord("-"), ord("+"))
    _write_digits(records, columns, np.abs(values))


def _write_digits(records: UInt8[np.ndarray, "N C"], columns: tuple[int, ...], values: Int[np.ndarray, " N"]) -> None:
    for power, column in enumerate(reversed(columns)):
        records[:, column] = ord("0") + values // 10**power % 10


def check_digit(records: UInt8[np.ndarray, "N C"]) -> Int[np.ndarray, " N"]:
    """Mean of the station's digit and the temperature's tenths, rounded up: a sum that must be computed, and can be learned in few steps
    (the same sum modulo 10 cannot)."""
    return (records[:, 23].astype(np.int64) + records[:, 30] - 2 * ord("0") + 1) // 2


def tokens_of(records: UInt8[np.ndarray, "N C"]) -> Int[Tensor, "N C"]:
    """Token of each character."""
    lookup = np.zeros(256, dtype=np.int64)
    lookup[np.frombuffer(VOCABULARY.encode(), dtype=np.uint8)] = np.arange(len(VOCABULARY))
    return torch.from_numpy(lookup[records])


def _generator(policy: RecordsPolicy, purpose: int) -> np.random.Generator:
    return np.random.default_rng((policy.seed, purpose))


# The network


def new_network(policy: RecordsPolicy) -> Network:
    """An untrained network: GPT-2's blocks with learned positions, characters as tokens, no dropout."""
    with quiet_transformers():
        from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(VOCABULARY),
        n_positions=COLUMNS,
        n_embd=policy.width,
        n_layer=policy.layers,
        n_head=policy.heads,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own, in one kernel
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=VOCABULARY.index("\n"),
        eos_token_id=VOCABULARY.index("\n"),
        use_cache=False,
    )
    seed = int(_generator(policy, WEIGHTS).integers(2**31))
    with torch.random.fork_rng(devices=[]), quiet_transformers():  # transformers draws weights from the global generator
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


def losses(network: Network, tokens: Int[Tensor, "N C"]) -> Float[Tensor, "N C1"]:
    """Cross-entropy of every character but the first, given those before it."""
    logits = network(tokens).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(tokens), -1)


def train_network(policy: RecordsPolicy) -> Trained:
    """Train the network that `policy` describes. Raises TemporalLensError when it did not learn the format."""
    network, generator = new_network(policy), _generator(policy, TRAINED)
    optimizer = torch.optim.AdamW(network.parameters(), lr=policy.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    with progress("training the record network", policy.steps, "steps") as advance:
        for step in range(policy.steps):
            tokens = tokens_of(make_records(policy.batch_size, generator))
            optimizer.param_groups[0]["lr"] = policy.learning_rate * rate(step, policy.steps)
            optimizer.zero_grad(set_to_none=True)
            losses(network, tokens).mean().backward()
            optimizer.step()
            advance(1)
    with torch.inference_mode():
        loss = losses(network, tokens_of(make_records(TEST_RECORDS, _generator(policy, TESTED)))).mean(0)
    trained = Trained(network, torch.cat([torch.zeros(1, dtype=torch.float32), loss]))
    excess = trained.mean_loss - FLOOR
    if not excess <= policy.largest_excess:
        raise TemporalLensError(
            f"after {policy.steps} steps the record network's loss on new records is {excess:.3f} nats per character above the floor of "
            f"{FLOOR:.3f}, and largest_excess is {policy.largest_excess}: it did not learn the format; raise steps, or change learning_rate"
        )
    return trained


def rate(step: int, steps: int) -> float:
    """Learning rate at a step, as a share of its height."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@torch.inference_mode()
def residual(network: Network, tokens: Int[Tensor, "N C"], layer: int) -> Float[Tensor, "N C D"]:
    """The residual stream after block `layer`."""
    streams: list[Tensor] = []

    def keep(block: Any, arguments: Any, output: Any) -> None:
        streams.append(output[0] if isinstance(output, tuple) else output)

    hook = network.transformer.h[layer].register_forward_hook(keep)
    try:
        network.transformer(tokens)
    finally:
        hook.remove()
    return streams[0]


# The store


@own_defaults()
def harvest_records(policy: RecordsPolicy, out: Path | str) -> ActivationStore:
    """Train the record network and harvest it into the folder `out`, with what is known and the network; a finished one is opened.

    An interrupted call starts over when it is repeated. Raises TemporalLensError when `out` holds anything else, or when the
    network did not learn the format.
    """
    out, description = user_path(out), _description(policy)
    with locked(out):
        if is_store(out) and ActivationStore(out).manifest.description == description:
            return ActivationStore(out)
        _start_over(out, description)
        writer = StoreWriter(out, description)
        trained = train_network(policy)
        with progress("harvesting the record network", policy.tokens, "tokens") as advance:
            for rows in _rows(policy, trained.network):
                writer.append(rows)
                advance(len(rows.x))
        _write_truth(policy, trained, out)
        return ActivationStore(writer.finish())


def _start_over(out: Path, description: StoreDescription) -> None:
    """Remove what an interrupted call left; whatever else is in the folder stays, and is refused by the store's writer."""
    if is_store(out):
        return
    path = out / "truth.json"  # written before the other files beside the store: it says whose they are
    if path.exists():
        content = read_json(path, "what is known of a store of records", foreign=True)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            return
        with explained(out):
            for name in ("model.safetensors", "config.json", "generation_config.json"):
                (out / "network" / name).unlink(missing_ok=True)
            if (out / "network").is_dir():
                (out / "network").rmdir()
            (out / "truth.safetensors").unlink(missing_ok=True)
            path.unlink()
    if (out / "progress.safetensors").exists():
        StoreWriter(out, description).discard()


def _rows(policy: RecordsPolicy, network: Network) -> Iterator[Rows]:
    """The store's rows, so many documents at a time."""
    generator, size = _generator(policy, HARVESTED), APPEND_DOCUMENTS * policy.records_per_document
    for first in range(0, policy.records, size):
        tokens = tokens_of(make_records(min(size, policy.records - first), generator))
        index = torch.arange(COLUMNS).repeat(len(tokens))
        sequence = torch.arange(first, first + len(tokens)).repeat_interleave(COLUMNS)
        yield Rows(
            x=residual(network, tokens, policy.layer).flatten(0, 1),
            position=index,
            index=index,
            document_position=index + COLUMNS * (sequence % policy.records_per_document),
            sequence=sequence,
            document=sequence // policy.records_per_document,
            token=tokens.flatten(),
            excluded=(index == 0).to(torch.uint8) * FIRST,
        )


def _description(policy: RecordsPolicy) -> StoreDescription:
    where = {"model": "record network", "layer": policy.layer, "hook": "resid_post", "layers_total": policy.layers}
    policies = {"rows": "records", "clock": "index", "context_length": COLUMNS, "position_zero": "excluded", "norm_multiple": None}
    return StoreDescription(
        source={"kind": "records", **where, "policy": policy.model_dump(mode="json")},
        policies=policies,
        width=policy.width,
        dtype="float32",
        positions=COLUMNS,
    )


def _write_truth(policy: RecordsPolicy, trained: Trained, out: Path) -> None:
    """What is known of the columns, how well the network learned, and the network itself, as transformers loads it."""
    truth = {
        "format": FORMAT,
        "policy": policy.model_dump(mode="json"),
        "fields": {name: list(columns) for name, columns in FIELDS.items()},
        "vocabulary": VOCABULARY,
        "example": EXAMPLE,
        "loss": trained.mean_loss,
        "floor": FLOOR,
        "loss_by_column": [float(value) for value in trained.loss],
    }
    write_json(out / "truth.json", truth)
    names = list(FIELDS)
    field = torch.zeros(COLUMNS, dtype=torch.int64)
    for number, name in enumerate(names):
        field[list(FIELDS[name])] = number
    write_tensors(out / "truth.safetensors", {"field": field, "loss": trained.loss})
    with explained(out / "network"), quiet_transformers():
        trained.network.save_pretrained(make_folder(out / "network"))


def read_layout(folder: Path) -> Layout:
    """What is known of the columns of a store of records. Raises TemporalLensError when there is nothing, or when it is damaged."""
    path = folder / "truth.json"
    content = read_json(path, "what is known of a store of records")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TemporalLensError(f"{path} is not of the format '{FORMAT}' that this version reads; remove {folder} and run again")
    try:
        fields = {str(name): tuple(int(column) for column in columns) for name, columns in content["fields"].items()}
        return Layout(fields, str(content["vocabulary"]), str(content["example"]))
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise TemporalLensError(f"{path} is damaged ({error!r}); remove {folder} and run again") from error

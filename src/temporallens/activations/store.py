"""The activation store: a folder of safetensors shards in which every activation keeps its place.

A store holds rows of the residual stream (or of any sequential array) with the columns that say where each comes from:
`position` (what the study's clock says), `index` (in its row), `document_position`, `sequence`, `document`, `token` and
`excluded` (why it is left out of training, see `moments`). The rows of a sequence stand together, in order; its table has an entry for
each run of them that is of one document, so that whoever divides entries by document divides the text. `docs/formats.md` is the
normative description, `writer` what writes one.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from temporallens.activations.duplicates import twins, with_twins
from temporallens.activations.importing import store_arrays
from temporallens.activations.manifest import Shard, read_manifest, remedy
from temporallens.activations.moments import Moments, MomentSums
from temporallens.activations.writer import COLUMNS, TABLE_DTYPES, TARGET, Rows
from temporallens.errors import TemporalLensError
from temporallens.files import inside, read_tensors, sha256, user_path
from temporallens.precision import DTYPES
from temporallens.progress import note
from temporallens.settings import whole_seed

ACROSS_DOCUMENTS = "attention_across_documents"
"""The policy of packed rows, and of no others, that tokens see those of the documents before them in their row."""
SAFETENSORS_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int32: "I32", torch.int64: "I64", torch.uint8: "U8"}


class SequenceTable(NamedTuple):
    """Where each sequence lies, in stored order; one entry per sequence, or of packed ones per document in it."""

    shard: np.ndarray  # int32 [n]
    start: np.ndarray  # int64 [n], first row in its shard
    length: np.ndarray  # int32 [n], rows
    sequence: np.ndarray  # int64 [n], the id in the rows' column
    document: np.ndarray  # int64 [n], that of all its rows

    @property
    def whole(self) -> Int[np.ndarray, " n"]:
        """Number of the sequence that each entry is of: entries of a sequence stand together."""
        return np.cumsum(np.diff(self.sequence, prepend=self.sequence[:1]) != 0)


class Split(NamedTuple):
    """Entries of the sequence table, divided so that no document is on both sides."""

    train: np.ndarray
    held_out: np.ndarray


MOMENT_DTYPES = dict.fromkeys(Moments._fields, torch.int64) | dict.fromkeys(("mean", "second_moment", "norm", "all_norm"), torch.float64)


def _joined(starts: np.ndarray, lengths: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of rows that follow each other both where they lie and where they go, as one: fewer and longer reads."""
    apart = (starts[1:] != starts[:-1] + lengths[:-1]) | (targets[1:] != targets[:-1] + lengths[:-1])
    first = np.concatenate([[0], np.flatnonzero(apart) + 1])
    return starts[first], np.add.reduceat(lengths, first), targets[first]


class ActivationStore:
    """A finished store, opened for reading. Raises TemporalLensError when the folder is not one, or is damaged.

    Opening checks the manifest and every file's size; a shard's checksum is verified once, before its content is first used.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = user_path(folder)
        self.manifest = read_manifest(self.folder)
        self._verified: set[int] = set()
        self._said_copies = False
        for shard in self.manifest.shards:
            path = inside(self.folder, shard.file)
            size = path.stat().st_size if path.is_file() else -1
            if size != shard.bytes:
                found = "is missing" if size < 0 else f"has {size} bytes instead of {shard.bytes}: it is truncated or foreign"
                raise TemporalLensError(f"shard {path} {found}; {self._remedy}")
            if shard.rows * self.row_bytes > shard.bytes:
                raise self._contradiction(f"{shard.rows} rows do not fit into the {shard.bytes} bytes of {shard.file}")

    @property
    def row_bytes(self) -> int:
        """Of one activation."""
        description = self.manifest.description
        return description.width * DTYPES[description.dtype].itemsize

    def _contradiction(self, what: str) -> TemporalLensError:
        """A stranger's store may be whole and still say what cannot be."""
        return TemporalLensError(f"{self.folder} contradicts itself: {what}; {self._remedy}")

    @property
    def _remedy(self) -> str:
        return remedy(self.folder)

    @classmethod
    def from_arrays(cls, x: Any, out: Path | str, **options: Any) -> "ActivationStore":
        """Store your own `[N, S, D]` activations; see `importing.store_arrays` for the options."""
        return cls(store_arrays(x, out, **options))

    @property
    def width(self) -> int:
        return self.manifest.description.width

    @property
    def positions(self) -> int:
        return self.manifest.description.positions

    @property
    def rows(self) -> int:
        return self.manifest.rows

    @property
    def sequences(self) -> int:
        return self.manifest.sequences

    @property
    def documents(self) -> int:
        return self.manifest.documents

    @cached_property
    def sequence_table(self) -> SequenceTable:
        shapes = dict.fromkeys(TABLE_DTYPES, (self.sequences,))
        tensors = self._sidecar("index.safetensors", self.manifest.index_sha256, "the sequence table of a store", shapes, TABLE_DTYPES)
        table = SequenceTable(**{name: tensors[name].numpy() for name in SequenceTable._fields})
        rows = np.array([shard.rows for shard in self.manifest.shards])
        known = (table.shard >= 0) & (table.shard < len(rows)) & (table.start >= 0) & (table.length >= 1)
        if not known.all() or (table.start > rows[table.shard] - table.length).any() or table.length.sum(dtype=np.int64) != self.rows:
            raise self._contradiction("its sequence table names rows that its shards do not have")
        return table

    @cached_property
    def target(self) -> "ActivationStore | None":
        """What stands at another point for the very same rows, for dictionaries that give it instead of what they take; None where what is
        read is what is given back.

        Raises TemporalLensError where it is not there, or holds other rows.
        """
        if TARGET not in self.manifest.description.policies:
            return None
        target = ActivationStore(self.folder / TARGET)
        columns = ("length", "sequence", "document")
        own, other = self.sequence_table, target.sequence_table
        if self.positions != target.positions or not all(np.array_equal(getattr(own, name), getattr(other, name)) for name in columns):
            raise self._contradiction(f"{target.folder} does not hold the same rows")
        return target

    @property
    def given(self) -> "ActivationStore":
        """What is to be given back of the rows: what the target holds, where there is one."""
        return self.target or self

    @cached_property
    def moments(self) -> Moments:
        """Moments over every document; training uses those of its own training documents (`moments_of`)."""
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(Moments._fields, (self.positions,))
        shapes |= dict.fromkeys(("mean", "second_moment"), (self.positions, self.width))
        return Moments(
            **self._sidecar("moments.safetensors", self.manifest.moments_sha256, "the moments of a store", shapes, MOMENT_DTYPES)
        )

    def _sidecar(self, name: str, checksum: str, what: str, shapes: dict[str, Any], dtypes: dict[str, torch.dtype]) -> dict[str, Tensor]:
        path = inside(self.folder, name)
        if path.is_file() and sha256(path) != checksum:
            raise TemporalLensError(
                f"{path} does not have the checksum that the manifest states: it was changed or damaged; {self._remedy}"
            )
        tensors = read_tensors(path, what, self._remedy)[0]
        if {key: (tensor.shape, tensor.dtype) for key, tensor in tensors.items()} != {key: (shapes[key], dtypes[key]) for key in shapes}:
            raise self._contradiction(f"{name} does not hold what {what} does, in the manifest's sizes")
        return tensors

    def read(self, entries: Int[np.ndarray, " n"]) -> Rows:
        """Rows of these entries of the sequence table, entry after entry, in the order asked for."""
        entries = np.asarray(entries)
        table = self.sequence_table
        lengths = table.length[entries].astype(np.int64)
        targets = np.cumsum(lengths) - lengths
        total = int(lengths.sum())
        x = torch.empty(total, self.width, dtype=DTYPES[self.manifest.description.dtype], device="cpu")
        out = Rows(x, *(torch.empty(total, dtype=kind, device="cpu") for kind in COLUMNS.values()))
        for number in np.unique(table.shard[entries]):
            chosen = np.flatnonzero(table.shard[entries] == number)
            self._read_shard(int(number), table.start[entries[chosen]], lengths[chosen], targets[chosen], out)
        if total and not 0 <= int(out.position.min()) <= int(out.position.max()) < self.positions:
            raise self._contradiction(f"a position lies outside 0 to {self.positions - 1}")
        return out

    def _read_shard(self, number: int, starts: np.ndarray, lengths: np.ndarray, targets: np.ndarray, out: Rows) -> None:
        shard = self.manifest.shards[number]
        path = inside(self.folder, shard.file)
        starts, lengths, targets = _joined(starts, lengths, targets)
        if number not in self._verified and sha256(path) != shard.sha256:
            raise TemporalLensError(
                f"shard {path} does not have the checksum that the manifest states: it was changed or damaged; {self._remedy}"
            )
        try:
            with safe_open(path, framework="pt") as file:
                if number not in self._verified:
                    self._check_columns(file, shard)
                    self._verified.add(number)
                for name, destination in zip(Rows._fields, out, strict=True):
                    source = file.get_tensor(name)  # mapped, not read; a slice of the file's own loses some bytes for ever
                    for start, length, target in zip(starts.tolist(), lengths.tolist(), targets.tolist(), strict=True):
                        destination[target : target + length] = source[start : start + length]
        except (SafetensorError, OSError) as error:
            raise TemporalLensError(f"shard {path} cannot be read ({error}); {self._remedy}") from error

    def _check_columns(self, file: Any, shard: Shard) -> None:
        """Raise TemporalLensError unless an open shard holds every column in the shape and type that the manifest promises."""
        wanted = {name: ([shard.rows], SAFETENSORS_NAMES[kind]) for name, kind in COLUMNS.items()}
        wanted["x"] = ([shard.rows, self.width], SAFETENSORS_NAMES[DTYPES[self.manifest.description.dtype]])
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()} != wanted:
            raise self._contradiction(f"{shard.file} does not hold the columns of {shard.rows} rows of width {self.width}")

    def documents_of(self, entries: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The document of each of these entries of the sequence table.

        Raises TemporalLensError for packed rows of an earlier version, whose entries hold several documents and name the first.
        """
        policies = self.manifest.description.policies
        if policies.get("rows") == "packed" and ACROSS_DOCUMENTS not in policies:
            raise TemporalLensError(
                f"{self.folder} was harvested before packed rows were divided by document, so that training and held-out data would share "
                "documents; remove it and harvest again"
            )
        return self.sequence_table.document[entries]

    def split(self, held_out: float, seed: int) -> Split:
        """Divide the entries of the sequence table by document; documents that are mostly copies of a held-out one are held out with it,
        unless all are, which is said. Raises TemporalLensError when either side would be empty."""
        if not 0 < held_out < 1:
            raise TemporalLensError(f"held_out is {held_out}: it should be a share of the documents, above 0 and below 1")
        document = self.documents_of(np.arange(self.sequences))
        documents = np.unique(document)
        if len(documents) < 2:
            raise TemporalLensError(f"{self.folder} holds {len(documents)} document: a held-out split by document needs at least 2")
        count = min(max(1, round(held_out * len(documents))), len(documents) - 1)
        chosen = np.random.default_rng(whole_seed(seed)).permutation(documents)[:count]
        mask = np.isin(document, with_twins(chosen, self.twins))
        if mask.all():
            self._say_copies()
            mask = np.isin(document, chosen)
        return Split(train=np.flatnonzero(~mask), held_out=np.flatnonzero(mask))

    def _say_copies(self) -> None:
        if not self._said_copies:
            note(f"{self.folder}: documents are mostly copies of each other, so that held-out ones are much like those of training")
        self._said_copies = True

    @cached_property
    def twins(self) -> Int[np.ndarray, "E 2"]:
        """Pairs of documents that are mostly copies of each other, by their tokens; none where rows have no tokens."""
        return twins(self._texts(), self.rows)

    def _texts(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Token, sequence and document of the rows that have a token, shard by shard."""
        table = self.sequence_table
        for number, shard in enumerate(self.manifest.shards):
            own = np.flatnonzero(table.shard == number)
            own = own[np.argsort(table.start[own], kind="stable")]
            sequence, document = (np.repeat(column[own], table.length[own]) for column in (table.sequence, table.document))
            with safe_open(inside(self.folder, shard.file), framework="np") as file:
                token = file.get_tensor("token")
            known = token >= 0
            yield token[known], sequence[known], document[known]

    def moments_of(self, entries: Int[np.ndarray, " n"], chunk: int = 512) -> Moments:
        """Moments over these entries of the sequence table alone, in bounded memory."""
        sums = MomentSums(self.positions, self.width)
        for first in range(0, len(entries), chunk):
            rows = self.read(entries[first : first + chunk])
            sums.add(rows.x, rows.position, rows.excluded)
        return sums.moments()

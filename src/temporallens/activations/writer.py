"""Writing an activation store, append by append: the rows, their columns, shards, and what goes on after an interruption.

Shards are written to a temporary name, flushed and renamed; the manifest is written last, so a folder without `manifest.json` is not a
store, and a harvest that was interrupted continues where its last whole shard ended. `docs/formats.md` is the normative description.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Integer
from pydantic import ValidationError
from torch import Tensor

from temporallens.activations.manifest import FORMAT, MANIFEST, Manifest, PositionCounts, Shard, StoreDescription, is_store, remedy
from temporallens.activations.moments import Moments, MomentSums
from temporallens.errors import TemporalLensError
from temporallens.files import inside, make_folder, read_tensors, sha256, user_path, write_json, write_tensors
from temporallens.precision import DTYPES

SHARD_BYTES = 64 << 20
PROGRESS_FILE = "progress.safetensors"
TARGET = "target"
"""Folder, in that of a store, of the store of what is to be given back instead; and the policy that says what stands there."""
COLUMNS = {
    "position": torch.int32,
    "index": torch.int32,
    "document_position": torch.int32,
    "sequence": torch.int64,
    "document": torch.int64,
    "token": torch.int64,
    "excluded": torch.uint8,
}
TABLE_DTYPES = {"shard": torch.int32, "start": torch.int64, "length": torch.int32, "sequence": torch.int64, "document": torch.int64}


class Rows(NamedTuple):
    """Activations with their columns; all tensors have the same first dimension."""

    x: Float[Tensor, "N D"]
    position: Int[Tensor, " N"]  # what the clock says: the index in the row by default
    index: Int[Tensor, " N"]  # type: ignore[assignment]  # index in the row (shadows a method of tuples)
    document_position: Int[Tensor, " N"]  # index in the document
    sequence: Int[Tensor, " N"]  # which row of text
    document: Int[Tensor, " N"]  # which document
    token: Int[Tensor, " N"]  # token id, -1 where there is none
    excluded: Integer[Tensor, " N"]  # 0, or the sum of FIRST, NORM, SPECIAL (see moments)


def refuse_occupied(folder: Path) -> None:
    """Raise TemporalLensError where no store can be begun or gone on with: one is finished there, or other files are."""
    if is_store(folder):
        raise TemporalLensError(f"{folder} already holds a finished store; choose another folder or remove it")
    if folder.is_dir() and not (folder / PROGRESS_FILE).exists():
        foreign = sorted(path.name for path in folder.iterdir() if not path.name.startswith((".", "shard-")) and path.name != TARGET)
        if foreign:
            raise TemporalLensError(f"{folder} is not empty (it holds '{foreign[0]}'); choose an empty folder for the store")


def target_of(description: StoreDescription, source: Mapping[str, Any] | None = None) -> StoreDescription:
    """What the store of a target says, beside that of this description: of what it is one, and its own source."""
    policies = {name: value for name, value in description.policies.items() if name != TARGET}
    said = {**description.source, TARGET: True} if source is None else {**source, "target_of": description.source["layer"]}
    return description.model_copy(update={"source": said, "policies": policies})


class StoreWriter:
    """Writes a store append by append; a writer on the folder of an interrupted one goes on after its last whole shard.

    Each append holds whole sequences. `appends_done` says how many appends are already safe: a caller repeats its
    deterministic schedule and leaves those out. Raises TemporalLensError when the folder holds something else.
    """

    def __init__(self, folder: Path | str, description: StoreDescription, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder = user_path(folder)
        self.description = description
        self._shard_bytes = shard_bytes
        self._shards: list[Shard] = []
        self._table: dict[str, list[Tensor]] = {name: [] for name in TABLE_DTYPES}
        self._sums = MomentSums(description.positions, description.width)
        self._pending: list[Rows] = []
        self._pending_rows = 0
        self._pending_bytes = 0
        self._resume()

    @property
    def appends_done(self) -> int:
        return sum(shard.appends for shard in self._shards)

    @property
    def _progress_file(self) -> Path:
        return self.folder / PROGRESS_FILE

    def _resume(self) -> None:
        refuse_occupied(self.folder)
        if not self._progress_file.exists():
            make_folder(self.folder)
            return
        what = "the progress of an interrupted harvest"
        tensors, state = read_tensors(self._progress_file, what, remedy(self.folder))
        if state is None or state.get("format") != FORMAT or state.get("description") != self.description.model_dump(mode="json"):
            raise TemporalLensError(f"{self.folder} holds an unfinished harvest with other settings; choose another folder or remove it")
        try:
            self._shards = [Shard.model_validate(shard) for shard in state["shards"]]
            self._table = {name: [tensors[f"table.{name}"]] for name in TABLE_DTYPES}
            self._sums.load({name.removeprefix("sums."): tensor for name, tensor in tensors.items() if name.startswith("sums.")})
        except (KeyError, TypeError, RuntimeError, ValidationError) as error:
            raise TemporalLensError(f"{self._progress_file} is not {what} ({error}); {remedy(self.folder)}") from error
        for shard in self._shards:
            path = inside(self.folder, shard.file)
            if not path.is_file() or path.stat().st_size != shard.bytes or sha256(path) != shard.sha256:
                raise TemporalLensError(f"{path} was damaged after it was written; {remedy(self.folder)}")

    def append(self, rows: Rows) -> None:
        """Add whole sequences. Raises TemporalLensError for a wrong width, for NaN or infinity, naming sequence and index."""
        rows = rows._replace(x=rows.x.to(DTYPES[self.description.dtype]))
        self._check(rows)
        stored = Rows(rows.x, *(getattr(rows, name).to(kind) for name, kind in COLUMNS.items()))
        self._sums.add(stored.x, stored.position, stored.excluded)
        self._extend_table(stored)
        self._pending.append(stored)
        self._pending_rows += len(stored.x)
        self._pending_bytes += stored.x.numel() * stored.x.element_size()
        if self._pending_bytes >= self._shard_bytes:
            self._close_shard()

    def _check(self, rows: Rows) -> None:
        if rows.x.ndim != 2 or rows.x.shape[1] != self.description.width:
            raise TemporalLensError(f"activations of shape {tuple(rows.x.shape)} do not fit a store of width {self.description.width}")
        if len(rows.x) == 0:
            raise TemporalLensError("an append without rows: every sequence needs at least one token")
        finite = torch.isfinite(rows.x.sum(dim=1, dtype=torch.float64))
        if not finite.all():
            bad = int((~finite).nonzero()[0])
            where = f"sequence {int(rows.sequence[bad])}, index {int(rows.index[bad])}"
            half = self.description.policies.get("compute_dtype") == "float16"
            remedy = "float16 ends at 65,504: compute in bfloat16 or float32" if half else "mend the source and run again"
            raise TemporalLensError(f"the activations hold NaN or infinity at {where}; {remedy}")
        if int(rows.position.min()) < 0 or int(rows.position.max()) >= self.description.positions:
            raise TemporalLensError(f"a position lies outside 0 to {self.description.positions - 1}, the range of this store's clock")

    def _extend_table(self, rows: Rows) -> None:
        owners, lengths = torch.unique_consecutive(torch.stack([rows.sequence, rows.document]), dim=1, return_counts=True)
        starts = torch.cumsum(lengths, 0) - lengths
        entry = {
            "shard": torch.full_like(lengths, len(self._shards)),
            "start": starts + self._pending_rows,
            "length": lengths,
            "sequence": owners[0],
            "document": owners[1],
        }
        for name, kind in TABLE_DTYPES.items():
            self._table[name].append(entry[name].to(kind))

    def _close_shard(self) -> None:
        name = f"shard-{len(self._shards):05d}.safetensors"
        path = self.folder / name
        write_tensors(path, {column: torch.cat([getattr(rows, column) for rows in self._pending]) for column in Rows._fields})
        shard = Shard(file=name, rows=self._pending_rows, appends=len(self._pending), bytes=path.stat().st_size, sha256=sha256(path))
        self._shards.append(shard)
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0
        tensors = {f"table.{column}": table for column, table in self._table_tensors().items()}
        tensors |= {f"sums.{column}": sums for column, sums in self._sums.tensors.items()}
        state = {
            "format": FORMAT,
            "description": self.description.model_dump(mode="json"),
            "shards": [s.model_dump() for s in self._shards],
        }
        write_tensors(self._progress_file, tensors, state)

    def _table_tensors(self) -> dict[str, Tensor]:
        return {name: torch.cat(parts) if parts else torch.empty(0, dtype=TABLE_DTYPES[name]) for name, parts in self._table.items()}

    def discard(self) -> None:
        """Remove what was written, and the folder if nothing else is in it: the store can never be finished."""
        for path in [*self.folder.glob("shard-*.safetensors"), self._progress_file]:
            path.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def finish(self) -> Path:
        """Close the last shard and write the manifest; the folder, which holds a store now. Raises TemporalLensError when nothing was
        appended."""
        if self._pending:
            self._close_shard()
        if not self._shards:
            raise TemporalLensError(f"nothing was harvested into {self.folder}: the text gave no rows")
        table, moments = self._table_tensors(), self._sums.moments()
        if int(moments.count.sum()) == 0:
            raise TemporalLensError(
                f"every row in {self.folder} is excluded (first position, norm rule or special token): nothing to train on"
            )
        write_tensors(self.folder / "index.safetensors", table)
        write_tensors(self.folder / "moments.safetensors", moments._asdict())
        manifest = Manifest(
            format=FORMAT,
            description=self.description,
            shards=self._shards,
            rows=sum(shard.rows for shard in self._shards),
            sequences=len(table["sequence"]),
            documents=len(torch.unique(table["document"])),
            per_position=_summary(moments),
            index_sha256=sha256(self.folder / "index.safetensors"),
            moments_sha256=sha256(self.folder / "moments.safetensors"),
        )
        write_json(self.folder / MANIFEST, manifest.model_dump(mode="json"))
        self._progress_file.unlink(missing_ok=True)
        return self.folder


def pair_of_writers(folder: Path, description: StoreDescription, target: StoreDescription | None) -> list[StoreWriter]:
    """Of a store, behind that of its target, where it has one: this is begun anew unless both are unfinished, and is finished first."""
    if target is None:
        return [StoreWriter(folder, description)]
    if is_store(folder / TARGET):
        shutil.rmtree(folder / TARGET)
    return [StoreWriter(folder / TARGET, target), StoreWriter(folder, description)]


def _summary(moments: Moments) -> PositionCounts:
    lists: dict[str, Any] = {name: value.tolist() for name, value in moments._asdict().items() if value.ndim == 1}
    return PositionCounts(**lists, second_moment=moments.second_moment.sum(1).tolist())

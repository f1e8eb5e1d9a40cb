"""The manifest of an activation store: what a store says of itself, and the reading of it.

`docs/formats.md` is normative. Counts and sizes are bounded, so that a stranger's manifest cannot ask for memory that no store has.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from temporallens.errors import TemporalLensError
from temporallens.files import read_json, user_path
from temporallens.settings import first_problem

FORMAT = "temporallens.store/1"
MANIFEST = "manifest.json"


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Size = Annotated[int, Field(ge=1, lt=1 << 40)]


class StoreDescription(Frozen):
    """What was asked for: two stores of the same description hold the same bytes."""

    source: dict[str, JsonValue]
    policies: dict[str, JsonValue]
    width: Size
    dtype: Literal["float32", "bfloat16"]
    positions: Size


class Shard(Frozen):
    file: str
    rows: Size
    appends: Count
    bytes: Count
    sha256: str


class PositionCounts(Frozen):
    """Per-position summary of the moments file, for people and reports: lists of length `positions`."""

    count: list[int]
    norm: list[float]
    second_moment: list[float]
    all_count: list[int]
    all_norm: list[float]
    excluded_first: list[int]
    excluded_norm: list[int]
    excluded_special: list[int]


class Manifest(Frozen):
    format: Literal["temporallens.store/1"]
    description: StoreDescription
    shards: Annotated[list[Shard], Field(min_length=1)]
    rows: Size
    sequences: Size
    documents: Size
    per_position: PositionCounts
    index_sha256: str
    moments_sha256: str


def remedy(folder: Path) -> str:
    """What to do about a damaged store: a harvest repeated gives the same bytes."""
    return f"remove {folder} and run again"


def is_store(folder: Path) -> bool:
    """Whether a whole store is there, of this version or another: its manifest is written last."""
    return (folder / MANIFEST).is_file()


def names_store(source: str) -> bool:
    """Whether what a user names, where models may be named too, is the folder of a store."""
    try:
        return is_store(user_path(source))
    except TemporalLensError:  # no path: whoever reads models says what it is
        return False


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a store. Raises TemporalLensError when the folder is none, or when the manifest is damaged."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise TemporalLensError(f"{folder} does not exist: it should be the folder of an activation store")
    if not path.exists():
        raise TemporalLensError(f"{folder} is not an activation store (it has no {MANIFEST}); an interrupted harvest can be run again")
    content = read_json(path, "the manifest of an activation store", remedy(folder))
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise TemporalLensError(f"{path} has format '{version}', this version of TemporalLens reads '{FORMAT}'; {remedy(folder)}")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise TemporalLensError(f"{path} is damaged ({first_problem(error)}); {remedy(folder)}") from error
    if manifest.rows != sum(shard.rows for shard in manifest.shards):
        raise TemporalLensError(f"{path} is damaged (rows: it is not the sum of those of the shards); {remedy(folder)}")
    if any(len(column) != manifest.description.positions for _, column in manifest.per_position):
        raise TemporalLensError(f"{path} is damaged (per_position: it does not have one entry per position); {remedy(folder)}")
    return manifest

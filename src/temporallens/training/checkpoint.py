"""Checkpoints: everything that a training run is, in one safetensors file, so that going on equals never having stopped.

The last two are kept: each is written over the older one, and the newer one is gone on from. A damaged one is named, and the one
before it offered.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.base import ArmConfig
from temporallens.errors import TemporalLensError
from temporallens.files import canonical_json, fingerprint, read_tensors, write_tensors
from temporallens.training.policy import TrainingPolicy

FORMAT = "temporallens.checkpoint/2"
BEGINS, SETTINGS = "checkpoint-", 16
"""How the name of a checkpoint begins, and how many letters stand there for its settings; snapshots add their own behind them."""
FROM_THE_START = "remove it to start the training again"


def checkpoint_file(folder: Path, settings: Any) -> Path:
    """Where a run with these settings keeps its checkpoint; other settings have another file, and are never continued."""
    return folder / f"{BEGINS}{fingerprint(settings)[:SETTINGS]}.safetensors"


def training_settings(store: ActivationStore, runs: Sequence[tuple[str, ArmConfig, int]], policy: TrainingPolicy) -> Any:
    """Everything that shapes a training run of several arms (name, arm and seed of each), as plain JSON: an arm whose code has changed is
    another one."""
    return [
        store.manifest.model_dump(mode="json"),
        policy.model_dump(mode="json"),
        [[name, arm.model_dump(mode="json"), seed, *([arm.version] if arm.version > 1 else [])] for name, arm, seed in runs],
    ]


def remove_checkpoints(path: Path) -> None:
    """Those of a training that is over, with the snapshots that it took; `path` is `checkpoint_file`'s."""
    for file in path.parent.glob(f"{path.stem}*.safetensors"):
        file.unlink(missing_ok=True)


def remove_begun(folder: Path) -> None:
    """Checkpoints and snapshots of all trainings in `folder`, where none of them is to go on."""
    for file in folder.glob(f"{BEGINS}*.safetensors"):
        file.unlink(missing_ok=True)


def begun_trainings(folder: Path) -> dict[Path, list[str]]:
    """Trainings in `folder` that have not come to their end, by `checkpoint_file`, with the names of the runs that learn side by side: none
    where only snapshots are left of one. Raises TemporalLensError where no checkpoint of a training can be read."""
    files = sorted(folder.glob(f"{BEGINS}*.safetensors"))
    firsts = dict.fromkeys(path.with_stem(path.stem[: len(BEGINS) + SETTINGS]) for path in files)
    return {first: Checkpoints(first).runs() for first in firsts}


def save_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """`state` is small JSON (step, cursor, seconds); tensors are named `run/part/tensor`."""
    write_tensors(path, tensors, {"format": FORMAT, "state": canonical_json(state)})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Tensors and state of a checkpoint. Raises TemporalLensError when the file is damaged, or of another version."""
    tensors, metadata = read_tensors(path, "a checkpoint", FROM_THE_START)
    if metadata is None or metadata.get("format") != FORMAT:
        raise TemporalLensError(f"{path} is not a checkpoint of this version of TemporalLens ('{FORMAT}'); {FROM_THE_START}")
    return tensors, json.loads(metadata["state"])


class Checkpoints:
    """The last two checkpoints of a run whose first file is `path` (see `checkpoint_file`)."""

    def __init__(self, path: Path) -> None:
        self._files = (path, path.with_name(f"{path.stem}-b{path.suffix}"))
        self._last: Path | None = None  # the one that must not be written over

    def load(self) -> tuple[dict[str, Tensor], Any] | None:
        """The last one, or None where there is none. Raises TemporalLensError when it is damaged, saying what is left."""
        steps = {path: _said(path).step for path in self._files if path.exists()}
        if not steps:
            return None
        last = max(steps, key=lambda path: steps[path])
        try:
            found = load_checkpoint(last)
        except TemporalLensError as error:
            before = [path for path in steps if path != last]
            raise _offer(error, last, before[0]) if before else error from error
        self._last = last
        return found

    def runs(self) -> list[str]:
        """Names of the runs whose training this is; none where there is no checkpoint. Raises TemporalLensError when none can be read."""
        there = [path for path in self._files if path.exists()]
        for path in there:
            if names := _said(path).runs:
                return list(names)
        for path in there:
            load_checkpoint(path)
        return []

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write the next one over the one before the last; `state` holds `step`."""
        self._last = self._files[0] if self._last != self._files[0] else self._files[1]
        save_checkpoint(self._last, tensors, state)

    def last_good(self) -> str:
        """A word on the last good one, for a run that cannot go on."""
        return f"its checkpoint of before is kept in {self._last}" if self._last else "no checkpoint was saved before"

    def remove(self) -> None:
        """Remove both: the run is over."""
        for path in self._files:
            path.unlink(missing_ok=True)


class _Said(NamedTuple):
    """What the header of a checkpoint says of it."""

    step: float = math.inf  # where it does not say, so that its damage is found
    runs: tuple[str, ...] = ()


def _said(path: Path) -> _Said:
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(json.loads((file.metadata() or {})["temporallens"])["state"])
            return _Said(float(state["step"]), tuple(dict(state.get("seconds", {}))))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return _Said()


def _offer(error: TemporalLensError, damaged: Path, before: Path) -> TemporalLensError:
    """The error of a damaged checkpoint, and what the one before it is good for."""
    sentence = str(error).removesuffix(f"; {FROM_THE_START}")
    try:
        _, state = load_checkpoint(before)
    except TemporalLensError:
        return TemporalLensError(f"{sentence}; the one before it, {before.name}, is damaged too: remove both to start the training again")
    return TemporalLensError(f"{sentence}; remove {damaged.name} to go on from the one before it, of step {state['step']}")

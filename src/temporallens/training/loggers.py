"""Where trainings can be watched from outside: JSON lines, TensorBoard, Weights & Biases and Trackio, with one run for each dictionary.

`training: {loggers: [jsonl]}` names them. Their packages are extras (`pip install 'temporallens[wandb]'`), imported when asked for.
What they are given is `listening.py`'s; nothing that is trained depends on them, and no fingerprint knows of them.
"""

import contextlib
import importlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from temporallens.errors import TemporalLensError
from temporallens.files import explained, make_folder, write_text
from temporallens.training.policy import LoggerName

PROJECT = "temporallens"

Values = Mapping[str, float | np.ndarray]
"""Numbers of one logged step by name; arrays have an entry for every position, NaN where there was no token."""


class Watched(NamedTuple):
    """The run that a logger is opened for."""

    name: str
    group: str  # what the runs that are trained side by side have in common
    folder: Path  # of the dictionary
    settings: dict[str, Any]  # arm, seed and training, as JSON values
    start: int  # steps that were done before


@runtime_checkable
class Logger(Protocol):
    """Takes the lines of one run as they come."""

    def log(self, step: int, values: Values) -> None:
        """One line: what is known after so many steps."""

    def close(self) -> None:
        """There will be no more lines, of this process at least."""


class JsonLines:
    """`log.jsonl` beside the dictionary: an object for each line. A training that goes on writes over what came after its checkpoint."""

    def __init__(self, run: Watched) -> None:
        self._path = make_folder(run.folder) / "log.jsonl"
        before = self._path.read_text("utf-8").splitlines() if run.start and self._path.exists() else []
        write_text(self._path, "".join(f"{line}\n" for line in before if _step_of(line) <= run.start))
        self._file = self._path.open("a", encoding="utf-8")

    def log(self, step: int, values: Values) -> None:
        line = json.dumps({"step": step} | {name: _json(value) for name, value in values.items()}, allow_nan=False)
        with explained(self._path):
            self._file.write(f"{line}\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Event files in `tensorboard/` beside the dictionary: numbers as scalars, what is by position as histograms."""

    def __init__(self, run: Watched) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.start + 1)

    def log(self, step: int, values: Values) -> None:
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                self._writer.add_histogram(name, _known(value), step)
            else:
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Tracked:
    """A run of Weights & Biases, or of Trackio, which has the same functions. A training that goes on is another run of the same name."""

    def __init__(self, module: str, run: Watched, **options: Any) -> None:
        self._module = importlib.import_module(module)
        with contextlib.redirect_stdout(sys.stderr):
            self._run = self._module.init(project=PROJECT, name=run.name, group=run.group, config=run.settings, **options)

    def log(self, step: int, values: Values) -> None:
        histogram = self._module.Histogram
        self._run.log({name: histogram(_known(one)) if isinstance(one, np.ndarray) else one for name, one in values.items()}, step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


class Kind(NamedTuple):
    """A kind of logger."""

    package: str | None  # that it needs; also the extra of this package that installs it
    start: Callable[[Watched], Logger]


LOGGERS: dict[LoggerName, Kind] = {
    "jsonl": Kind(None, JsonLines),
    "tensorboard": Kind("tensorboard", TensorBoard),
    "wandb": Kind("wandb", lambda run: Tracked("wandb", run, dir=str(make_folder(run.folder)), reinit="create_new")),
    "trackio": Kind("trackio", lambda run: Tracked("trackio", run, embed=False)),
}


def check_loggers(names: Sequence[LoggerName]) -> None:
    """Raise TemporalLensError for a logger whose package is not there."""
    for name in names:
        package = LOGGERS[name].package
        if package is not None and find_spec(package) is None:
            raise TemporalLensError(f"training.loggers names '{name}', which is not installed; pip install 'temporallens[{package}]'")


def _known(by_position: np.ndarray) -> np.ndarray:
    return by_position[np.isfinite(by_position)]


def _json(value: float | np.ndarray) -> Any:
    if isinstance(value, np.ndarray):
        return [_json(one) for one in value.tolist()]
    return value if math.isfinite(value) else None


def _step_of(line: str) -> float:
    """Of a line of an earlier process, which may have been killed while it wrote the last one."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf

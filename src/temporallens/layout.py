"""Where everything lies in a study's output folder, and what one trained dictionary is called there (`docs/formats.md`)."""

import re
from pathlib import Path
from typing import NamedTuple


class RunId(NamedTuple):
    """One dictionary of a study."""

    activations: str  # entry of the study
    arm: str  # its name, level included
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.arm}-seed{self.seed}"

    @property
    def path(self) -> str:
        return f"{self.activations}/{self.name}"

    @property
    def title(self) -> str:
        return f"{self.activations}, {self.arm}, seed {self.seed}"


class RunFolder(NamedTuple):
    """Paths in an output folder; relative ones in the default folder."""

    root: Path = Path()

    @property
    def study(self) -> Path:
        return self.root / "study.yaml"

    @property
    def results(self) -> Path:
        return self.root / "results.json"

    @property
    def figures(self) -> Path:
        return self.root / "figures"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def passes(self) -> Path:
        """What measurements share: passes of the model and baselines; it can be removed, and is made again when it is needed."""
        return self.root / "passes"

    @property
    def tuning(self) -> Path:
        """The grid of learning rates, a study of its own."""
        return self.root / "tuning"

    def scan(self, model: str) -> Path:
        return self.root / "scans" / f"{as_file_name(model)}.json"

    def store(self, activations: str) -> Path:
        return self.root / "stores" / activations

    def arms(self, activations: str) -> Path:
        return self.root / "arms" / activations

    def arm(self, run: RunId) -> Path:
        """A trained dictionary with its `training.json`, `timing.json` and `history.safetensors`."""
        return self.arms(run.activations) / run.name

    def evaluation(self, run: RunId) -> Path:
        """Reconstruction on held-out documents."""
        return self.root / "evaluation" / f"{run.path}.json"

    def measurement(self, section: str, run: RunId) -> Path:
        return self.root / "measures" / section / f"{run.path}.json"

    def gains(self, activations: str) -> Path:
        return self.root / "measures" / "gains" / f"{activations}.json"

    def paired(self, activations: str) -> Path:
        """Families against baselines, by position."""
        return self.root / "measures" / "paired" / f"{activations}.json"


def as_file_name(text: str) -> str:
    """`text` with everything that a file name should not hold replaced by a dash: `google/gemma-2-2b` -> `google-gemma-2-2b`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"

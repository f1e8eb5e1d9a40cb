"""What is seen of a training run: a columnar table with one row per logged step, every position among them.

Written as `history.safetensors`. `docs/formats.md` lists the columns; those of shape `[T, P]` have NaN where a position had no
token since the last logged step.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from temporallens import processes
from temporallens.errors import TemporalLensError
from temporallens.files import read_tensors, write_tensors

FORMAT = "temporallens.history/1"

SPIKE, SPIKE_LINES, SPIKE_WINDOW = 100.0, 5, 20
"""A step whose loss is so many times the median of the last lines of the history (so many at least, so many at most) is no noise."""


class Trouble(NamedTuple):
    """A step that went wrong."""

    step: int  # counted from the first of the window
    loss: float  # NaN or infinite, or far above
    usual: float  # the median of the lines before; NaN where there are too few


class Window:
    """Sums over the steps since the last logged one, of this process's rows; they stay on the device, so that a step never waits for them.
    What is asked of them is of all processes."""

    def __init__(self, positions: int, device: torch.device) -> None:
        nothing = torch.zeros(positions, dtype=torch.float32, device=device)
        self.sums = {name: nothing.new_zeros(()) for name in ("loss", "mse_loss", "sparsity_loss")}
        self.by_position = {name: nothing.clone() for name in ("position_loss", "position_l0", "position_count")}
        self.losses: list[Tensor] = []  # of each step
        self.steps = 0

    def add(
        self,
        losses: dict[str, Tensor],
        per_row: Float[Tensor, " N"],
        active: Float[Tensor, " N"],
        position: Int[Tensor, " N"],
        count: Float[Tensor, " P"],
    ) -> None:
        """Take in one step: its parts of the loss, squared error and codes in use by row, and how many rows each position has."""
        for name, value in losses.items():
            self.sums[name] += value.detach()
        self.losses.append(losses["loss"].detach())
        self.by_position["position_loss"].index_add_(0, position, per_row)
        self.by_position["position_l0"].index_add_(0, position, active)
        self.by_position["position_count"] += count
        self.steps += 1

    def trouble(self, before: "History") -> Trouble | None:
        """The first step whose loss is not finite, or far above what it was in the lines before."""
        losses, usual = processes.summed(torch.stack(self.losses)).cpu().numpy(), before.usual("loss")
        wrong = ~np.isfinite(losses) | (losses > SPIKE * usual)  # no number is above NaN
        if not wrong.any():
            return None
        step = int(wrong.argmax())
        return Trouble(step, float(losses[step]), usual)

    def line(self) -> dict[str, Any]:
        """Averages over the window, as numpy values."""
        by_position = {name: processes.summed(sums) for name, sums in self.by_position.items()}
        count = by_position["position_count"]
        nothing = torch.full_like(count, torch.nan)
        loss = torch.where(count > 0, by_position["position_loss"] / count, nothing)
        l0 = torch.where(count > 0, by_position["position_l0"] / count, nothing)
        averages = {name: float(processes.summed(value)) / self.steps for name, value in self.sums.items()}
        return averages | {
            "l0": float(by_position["position_l0"].sum() / count.sum()),
            "position_loss": loss.cpu().numpy(),
            "position_loss_average": float(loss.nanmean()),
            "position_loss_maximum": float(loss[count > 0].max()),
            "position_loss_minimum": float(loss[count > 0].min()),
            "position_l0": l0.cpu().numpy(),
            "position_count": count.cpu().numpy(),
        }


class History:
    """Lines of a run; saved and restored with a checkpoint, and written once it is over."""

    def __init__(self, columns: dict[str, list[Any]] | None = None) -> None:
        self._columns: dict[str, list[Any]] = columns or {}

    def append(self, line: dict[str, Any]) -> None:
        for name, value in line.items():
            self._columns.setdefault(name, []).append(np.asarray(value, dtype=_kind(name)))  # as a checkpoint gives it back

    def latest(self) -> dict[str, Any]:
        """The last line: numbers, and arrays by position."""
        return {name: values[-1] if values[-1].ndim else values[-1].item() for name, values in self._columns.items() if name != "step"}

    def last(self, name: str) -> float:
        return float(self._columns[name][-1])

    def usual(self, name: str) -> float:
        """The median of a column's last lines; NaN while there are too few to tell."""
        lines = self._columns.get(name, [])
        return float(np.median(lines[-SPIKE_WINDOW:])) if len(lines) >= SPIKE_LINES else math.nan

    def tensors(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(np.asarray(values, dtype=_kind(name))) for name, values in self._columns.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "History":
        return cls({name: list(tensor.numpy()) for name, tensor in tensors.items()})

    def save(self, path: Path) -> None:
        write_tensors(path, self.tensors(), {"format": FORMAT})


def _kind(name: str) -> type:
    return np.int64 if name in {"step", "tokens", "dead_features"} else np.float32


def load_history(path: Path) -> dict[str, np.ndarray]:
    """Columns of a history file: `[T]` or `[T, P]` arrays by name. Raises TemporalLensError when it is missing or damaged."""
    remedy = f"remove {path.parent} to train the dictionary again"
    tensors, metadata = read_tensors(path, "the history of a training run", remedy)
    if metadata is None or metadata.get("format") != FORMAT:
        raise TemporalLensError(f"{path} is not the history of a training run ('{FORMAT}'); {remedy}")
    return {name: tensor.numpy() for name, tensor in tensors.items()}

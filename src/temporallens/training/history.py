"""What is seen of a training run: a columnar table with one row per logged step, every position among them.

Written as `history.safetensors`. `docs/formats.md` lists the columns; those of shape `[T, P]` have NaN where a position had no
token since the last logged step.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from temporallens.errors import TemporalLensError
from temporallens.files import read_tensors, write_tensors

FORMAT = "temporallens.history/1"


class Window:
    """Sums over the steps since the last logged one; they stay on the device, so that a step never waits for them."""

    def __init__(self, positions: int, device: torch.device) -> None:
        self.sums = {name: torch.zeros((), device=device) for name in ("loss", "mse_loss", "sparsity_loss")}
        self.by_position = {name: torch.zeros(positions, device=device) for name in ("position_loss", "position_l0", "position_count")}
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
        self.by_position["position_loss"].index_add_(0, position, per_row)
        self.by_position["position_l0"].index_add_(0, position, active)
        self.by_position["position_count"] += count
        self.steps += 1

    def line(self) -> dict[str, Any]:
        """Averages over the window, as numpy values."""
        count = self.by_position["position_count"]
        nothing = torch.full_like(count, torch.nan)
        loss = torch.where(count > 0, self.by_position["position_loss"] / count, nothing)
        l0 = torch.where(count > 0, self.by_position["position_l0"] / count, nothing)
        averages = {name: float(value) / self.steps for name, value in self.sums.items()}
        return averages | {
            "l0": float(self.by_position["position_l0"].sum() / count.sum()),
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

    def last(self, name: str) -> float:
        return float(self._columns[name][-1])

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

"""How things are timed: contestants take turns in rounds of one run, and ratios are taken round by round.

A machine that is busy for a moment slows every contestant of that round, so the ratio of two of them holds where their times do
not. Medians over rounds are compared; every second round runs in the opposite order. Nothing here needs TemporalLens: the peers'
workers use this module in an environment of their own.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

Turn = Callable[[int], float]
"""Runs a contestant this many times and returns the seconds that this took."""


@dataclass(frozen=True)
class Sizes:
    """What a training step is measured at."""

    width: int = 576
    features: int = 4608
    k: int = 32
    batch: int = 4096
    positions: int = 128

    @property
    def matrix_bytes(self) -> int:
        """Of one dense code matrix `[N, F]` in float32."""
        return self.batch * self.features * 4


@dataclass(frozen=True)
class Settings:
    """How a benchmark runs."""

    sizes: Sizes = Sizes()
    rounds: int = 5
    turn_seconds: float = 0.3  # a contestant's turn repeats its step until about this long has passed
    device: str = "cpu"
    model: str = "smollm2-135m"  # of the harvest
    layer: int = 12
    text: str = "sotu"
    context_length: int = 128
    tokens: int = 40_000  # that a round of the harvest reads

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)


@dataclass(frozen=True)
class Times:
    """Seconds per step of every contestant, one entry per round."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def speed_ratio(self, ours: str, theirs: str) -> float | None:
        """How many times as fast as `theirs` `ours` is; None where one of them did not run."""
        if ours not in self.seconds or theirs not in self.seconds:
            return None
        return statistics.median(b / a for a, b in zip(self.seconds[ours], self.seconds[theirs], strict=True))

    def time_ratio(self, ours: str, theirs: str) -> float | None:
        """How many times as long as `theirs` `ours` takes."""
        return self.speed_ratio(theirs, ours)


@dataclass(frozen=True)
class Section:
    """What one benchmark found."""

    name: str
    ratios: dict[str, float | None]  # by stable key; None where something needed is not there, which `notes` then explains
    times: dict[str, list[float]] = field(default_factory=dict)  # seconds by contestant and round
    tokens: dict[str, int] = field(default_factory=dict)  # that a contestant's step works on
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # (size, median seconds) by what varies
    notes: dict[str, str] = field(default_factory=dict)  # by contestant or key


def synchronise(device: torch.device) -> None:
    """Wait for what was handed to an accelerator; a processor has nothing outstanding."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def turn(step: Callable[[], object], device: torch.device) -> Turn:
    """A turn of a contestant that runs in this process."""

    def run(repeats: int) -> float:
        synchronise(device)
        start = time.perf_counter()
        for _ in range(repeats):
            step()
        synchronise(device)
        return time.perf_counter() - start

    return run


def interleaved(turns: dict[str, Turn], rounds: int, turn_seconds: float) -> Times:
    """Warm every contestant up, then time all of them in every round."""
    repeats = {}
    for name, run in turns.items():
        first = run(1)
        settled = first if first > 4 * turn_seconds else run(1)
        repeats[name] = max(1, round(turn_seconds / max(settled, 1e-6)))
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        for name in list(turns)[:: 1 if number % 2 == 0 else -1]:
            seconds[name].append(turns[name](repeats[name]) / repeats[name])
    return Times(seconds)


DATA_SEED = 1
"""Not that of the dictionaries' weights: drawn from one stream they would start as the very features of the data."""


def batches(sizes: Sizes, device: torch.device, count: int = 4) -> list[Tensor]:
    """Raw activations `[N, D]` of sparse features whose frequency falls with their rank, off centre as activations are.

    Noise alone would use all features alike; here firing is as uneven as on a model's activations.
    """
    generator = torch.Generator().manual_seed(DATA_SEED)
    features, active = 4 * sizes.width, min(24, sizes.width)
    directions = functional.normalize(torch.randn(features, sizes.width, generator=generator), dim=1)
    frequency = 1 / torch.arange(8, features + 8, dtype=torch.float32)
    centre = torch.randn(sizes.width, generator=generator)
    made = []
    for _ in range(count):
        chosen = torch.multinomial(frequency, sizes.batch * active, replacement=True, generator=generator).view(sizes.batch, active)
        strength = 1 + torch.empty(sizes.batch, active).exponential_(generator=generator)
        noise = 0.05 * torch.randn(sizes.batch, sizes.width, generator=generator)
        made.append((functional.embedding_bag(chosen, directions, per_sample_weights=strength, mode="sum") + noise + centre).to(device))
    return made


def processor(device: torch.device) -> str:
    """What computes, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    names = [line for line in information.read_text().splitlines() if line.startswith("model name")] if information.exists() else []
    name = names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def busy() -> str | None:
    """A warning when other programs keep the processor busy: threads that wait for each other then cost many times as much."""
    load, processors = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    return f"the machine is busy (load {load:.1f} on {processors} processors): these numbers mean little" if load > processors / 2 else None

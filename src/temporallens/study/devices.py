"""Several processes, and devices that are not here, on paper: what a plan reckons their times and exchanges with.

The figures of a device are its maker's, or assumed; nothing here was measured on one. What was measured on this project's processors says
so. How much is exchanged is the arithmetic of `processes.py` and of the training step.
"""

import math
from typing import NamedTuple

from temporallens.errors import TemporalLensError, did_you_mean
from temporallens.precision import ModelPrecision

GLOO_BYTES = 1.7e9
"""Per second, that gloo is assumed to bring from one process to one other: on one machine of two cores it was between .3, busy, and 1.95,
quiet (`python -m benchmarks --only scale` measures it). Streams go this way on every device."""
PRODUCTS_REACH, LINKS_REACH = 0.4, 0.8
"""Shares of their peaks that products of matrices, and exchanges, are assumed to reach."""
ADAM_BYTES = 28
"""Moved for a parameter in an update: its gradient is read; itself and Adam's two moments are read and written."""


class Device(NamedTuple):
    """A kind of accelerator, one to a process, by its maker's figures."""

    title: str
    operations: dict[ModelPrecision, float]  # a second, multiplications and additions counted apart, without sparsity
    memory: int  # bytes
    bandwidth: float  # of that memory, bytes/s
    on_a_host: int
    link: float  # bytes/s from one to the others on its host
    network: float  # bytes/s out of a host
    source: str


DEVICES = {
    "h100": Device(
        title="H100 SXM",
        operations={"bfloat16": 989e12, "float16": 989e12, "float32": 67e12},
        memory=80 * 10**9,
        bandwidth=3.35e12,
        on_a_host=8,
        link=450e9,
        network=8 * 50e9,
        source="NVIDIA's data sheets of H100 (989 TFLOP/s in dense bfloat16 and float16, 67 in float32, 80 GB at 3.35 TB/s, NVLink"
        " 900 GB/s, half of it each way) and of DGX H100 (8 GPUs, 8 adapters of 400 Gb/s)",
    )
}


def device_named(name: str) -> Device:
    """Raises TemporalLensError for a device that no figures are known of."""
    if name not in DEVICES:
        raise TemporalLensError(f"there are no figures of a device '{name}' to plan with{did_you_mean(name, DEVICES)}")
    return DEVICES[name]


class Traffic(NamedTuple):
    """Bytes that a process exchanges in a training step."""

    gradients: int  # of encoder and decoder, float32
    candidates: int  # from which the codes of the batch are chosen, float32
    stream: int  # of the batch, where it comes from a model: all processes get all of it


class Company(NamedTuple):
    """So many processes: each with a device of that kind, or, where there is none, as fast as this machine."""

    processes: int = 1
    device: Device | None = None

    @property
    def alone(self) -> "Company":
        """One of them by itself."""
        return self._replace(processes=1)

    def exchanging(self, traffic: Traffic) -> float:
        """Seconds of a step: gradients are summed where they are used, what was learnt is told, and candidates are gathered; everything
        goes both ways at once."""
        if self.device is None:
            rate = GLOO_BYTES
        else:
            rate = LINKS_REACH * min(self.device.link, math.inf if self.processes <= self.device.on_a_host else self.device.network)
        return (2 * traffic.gradients + traffic.candidates) * (self.processes - 1) / self.processes / rate

    def spreading(self, traffic: Traffic) -> float:
        """Seconds of a step's part of a stream: one process tells another, then both two others, and so on."""
        return traffic.stream * math.ceil(math.log2(self.processes)) / GLOO_BYTES

    def updating(self, parameters: int) -> float:
        """Seconds of a process's share of an optimizer step; where there is no device it is in the arithmetic of a step."""
        return 0.0 if self.device is None else ADAM_BYTES * parameters / self.processes / self.device.bandwidth

    def holding(self, parameters: int) -> int:
        """Bytes in each process of parameters that learn: they and their gradients, and its share of Adam's two moments, all float32."""
        return 8 * parameters + 8 * -(-parameters // self.processes)

    def notes(self) -> list[str]:
        """What the numbers rest on."""
        exchanged = f"gloo at {GLOO_BYTES / 1e9:g} GB/s, assumed (python -m benchmarks --only scale measures yours)"
        if self.device is None:
            each = f"Each of {self.processes} processes is taken to be as fast as this machine is now; they exchange by {exchanged}."
            return [each] if self.processes > 1 else []
        return [
            f"{self.processes} x {self.device.title}, not measured by us: figures are of {self.device.source}; assumed are"
            f" {PRODUCTS_REACH:.0%} of that in products and {LINKS_REACH:.0%} in exchanges, which wait for each other. Streams go by"
            f" {exchanged}.",
            "Measured on processors, and taken over: how many products a training step costs, and how fast text is cut into tokens. Not"
            " counted are waits for single exchanges, disks, and the shuffling of windows, which every process does whole.",
        ]

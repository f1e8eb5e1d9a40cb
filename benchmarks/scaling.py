"""How the cost of a training step grows with the dictionary, the codes per token, the width, the batch and openness.

Each is varied alone from the sizes of the other benchmarks; the exponent is the slope of a straight line through the logarithms
of size and time. 1 means that cost grows in proportion; below 1, slower.
"""

from dataclasses import replace
from math import log
from statistics import linear_regression, median

from benchmarks.openness import hardened
from benchmarks.timing import Section, Settings, Sizes, Times, batches, interleaved, turn
from benchmarks.training_step import OurStep
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.precision import precision

FACTORS = {"features": (0.25, 0.5, 1, 2), "k": (0.25, 0.5, 1, 2, 4), "width": (0.5, 1, 2), "batch": (0.25, 0.5, 1, 2)}
OPENNESS = (0.125, 0.25, 0.5, 1.0)


def exponent(times: Times) -> float:
    """Slope of log seconds over log size: fitted round by round, the median of rounds."""
    sizes = [log(float(size)) for size in times.seconds]
    rounds = zip(*times.seconds.values(), strict=True)
    return median(linear_regression(sizes, [log(seconds) for seconds in found]).slope for found in rounds)


def scaled(sizes: Sizes, name: str, factor: float) -> Sizes:
    return replace(sizes, **{name: max(1, round(getattr(sizes, name) * factor))})


def by_size(settings: Settings, name: str) -> Times:
    device, turns = settings.torch_device, {}
    for factor in FACTORS[name]:
        sizes = scaled(settings.sizes, name, factor)
        step = OurStep(BatchTopK(features=sizes.features, k=sizes.k), sizes, precision("auto", device), batches(sizes, device, 2), device)
        turns[str(getattr(sizes, name))] = turn(step.warmed(), device)
    return interleaved(turns, settings.rounds, settings.turn_seconds)


def by_openness(settings: Settings) -> Times:
    device, sizes = settings.torch_device, settings.sizes
    data = batches(sizes, device, 2)
    turns = {str(openness): turn(hardened(openness, sizes, data, device), device) for openness in OPENNESS}
    return interleaved(turns, settings.rounds, settings.turn_seconds)


def measure(settings: Settings) -> Section:
    times = {name: by_size(settings, name) for name in FACTORS} | {"openness": by_openness(settings)}
    ratios: dict[str, float | None] = {f"scaling.{name}": exponent(found) for name, found in times.items()}
    curves = {name: [(float(size), found.median(size)) for size in found.seconds] for name, found in times.items()}
    return Section("scaling", ratios, curves=curves)

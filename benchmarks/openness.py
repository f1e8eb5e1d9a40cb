"""What a closed mask saves: a training step and `encode` under a hard mask of which a quarter is open, against an open one.

Each feature is open in a random quarter of the groups of positions: one that is closed in all of them would count as open in all.
Training stands past hardening, where the mask is
exactly 0 or 1. `encode` gets whole sequences `[B, S, D]`, as evaluation and users do.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import Section, Settings, Sizes, batches, interleaved, turn
from benchmarks.training_step import STEPS, OurStep
from temporallens.dictionaries.arms.positional import Positional, PositionalDictionary
from temporallens.dictionaries.steps import Progress
from temporallens.precision import precision

QUARTER = 0.25


def hardened(openness: float, sizes: Sizes, data: list[Tensor], device: torch.device) -> OurStep:
    """Our positional step under a hard mask of this openness, warmed up."""
    step = OurStep(Positional(features=sizes.features, k=sizes.k), sizes, precision("auto", device), data, device)
    dictionary = step.trainee.dictionary
    assert isinstance(dictionary, PositionalDictionary)
    logits = dictionary.mask.logits
    rank = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)).argsort(0).argsort(0)
    with torch.no_grad():
        logits.copy_(torch.where(rank < round(openness * len(logits)), 1.0, -1.0))
        dictionary.missed.fill_(-torch.inf)  # closed entries are searched as always, and none is found worth reopening
    step.progress = Progress(int(0.9 * STEPS), STEPS)
    return step.warmed()


def encoding(step: OurStep, sizes: Sizes, x: Tensor) -> Callable[[], object]:
    sequences = x[: len(x) // sizes.positions * sizes.positions].view(-1, sizes.positions, sizes.width)

    def encode() -> None:
        with torch.inference_mode():
            step.trainee.dictionary.encode(sequences)

    return encode


def measure(settings: Settings) -> Section:
    device, sizes = settings.torch_device, settings.sizes
    data = batches(sizes, device)
    steps = {openness: hardened(openness, sizes, data, device) for openness in (1.0, QUARTER)}
    turns = {f"training step, openness {openness:g}": turn(step, device) for openness, step in steps.items()}
    turns |= {f"encode, openness {openness:g}": turn(encoding(step, sizes, data[0]), device) for openness, step in steps.items()}
    times = interleaved(turns, settings.rounds, settings.turn_seconds)
    ratios = {
        f"openness_{QUARTER:g}.{key}": times.speed_ratio(f"{name}, openness {QUARTER:g}", f"{name}, openness 1")
        for key, name in (("train_step", "training step"), ("encode", "encode"))
    }
    return Section("openness", ratios, times.seconds, dict.fromkeys(times.seconds, sizes.batch))

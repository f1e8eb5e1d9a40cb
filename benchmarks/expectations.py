"""What it costs to know something beforehand: a training step whose rows lose what token and token before say, each left out of the tables,
and `encode` with that, and with a past that is walked in closed loop, against the plain arm.

Tables are of 49,152 tokens and as many pairs, drawn at random: what they hold does not change what they cost. A step begins with the
loader's batch, since what is known is taken off where views are made.
"""

from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor

from benchmarks.timing import Section, Settings, Sizes, batches, interleaved, turn
from benchmarks.training_step import LEARNING, STEPS, WARM_UP, normalisation, positions_of, training_policy
from temporallens.activations.loader import Batch
from temporallens.dictionaries.arms.batchtopk import BatchTopK, BatchTopKDictionary
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.expectations.past import PAST_KINDS
from temporallens.dictionaries.expectations.policy import ExpectationPolicy
from temporallens.dictionaries.expectations.tables import Expectation
from temporallens.dictionaries.steps import Progress
from temporallens.precision import precision
from temporallens.training.trainee import ArmRun, Trainee
from temporallens.training.views import Views

VOCABULARY = 49_152
SEQUENCES = 64
"""That `encode` reads, of as many rows as there are positions."""
LONGER = 8
"""So many times as long are turns as of other sections: the first pass of a turn meets memory that the one before has given back."""
ARMS: dict[str, ExpectationPolicy | None] = {
    "plain": None,
    "tokens": ExpectationPolicy(token="pair"),
    "tokens and row before": ExpectationPolicy(token="pair", past=("previous",)),
    "tokens and past": ExpectationPolicy(token="pair", past=PAST_KINDS),
}


def tables(sizes: Sizes, device: torch.device) -> Expectation:
    generator = torch.Generator().manual_seed(0)
    values = 0.1 * torch.randn(VOCABULARY, sizes.width, generator=generator).bfloat16()
    key = torch.randint(VOCABULARY**2, (VOCABULARY,), generator=generator).unique()
    counts = torch.full((VOCABULARY,), 3, dtype=torch.int32)
    return Expectation(values, values, values[: len(key)], key, counts, counts[: len(key)], (1.0, 1.0), True).to(device)


class KnownStep:
    """The trainer's step on one batch of the loader after another."""

    def __init__(
        self, policy: ExpectationPolicy | None, known: Expectation, sizes: Sizes, data: list[Tensor], device: torch.device
    ) -> None:
        arm = BatchTopK(features=sizes.features, k=sizes.k, expectation=policy)
        settings = training_policy(sizes, precision("auto", device))
        own = None if policy is None else known
        self.trainee = Trainee(ArmRun("benchmark", arm, 0), sizes.width, sizes.positions, settings, device, expectation=own)
        generator = torch.Generator().manual_seed(1)
        token, before = (torch.randint(VOCABULARY, (sizes.batch,), generator=generator) for _ in range(2))
        position, inputs = positions_of(sizes, device).cpu(), normalisation(data)
        batch = [Batch(x.cpu(), position, torch.zeros_like(position), token, before) for x in data]
        self._views = cycle([(one, inputs) for one in batch])
        self._progress = Progress(round(LEARNING * STEPS), STEPS)

    def __call__(self) -> None:
        batch, inputs = next(self._views)
        view = Views(batch, inputs, 0, self._progress.step).of(self.trainee.run.arm, self.trainee.dictionary)
        self.trainee.step(view, self._progress)
        self._progress = self._progress._replace(step=self._progress.step + 1)

    def warmed(self) -> "KnownStep":
        for _ in range(WARM_UP):
            self()
        return self


def chosen(step: KnownStep, x: Tensor, token: Tensor, k: int) -> Dictionary:
    """The dictionary of a step, with the threshold at which k codes a row are in use: tables of noise would leave few of them."""
    dictionary, few = step.trainee.dictionary, slice(0, x.shape[0] // 16 + 1)
    assert isinstance(dictionary, BatchTopKDictionary)
    with torch.no_grad():
        dictionary.threshold.zero_()
        codes = dictionary.encode(x[few], tokens=token[few]).flatten()
        dictionary.threshold.fill_(codes.topk(k * token[few].numel()).values[-1])
    return dictionary


def encoding(dictionary: Dictionary, x: Tensor, token: Tensor) -> Callable[[], object]:
    def encode() -> None:
        with torch.inference_mode():
            dictionary.encode(x, tokens=token)

    return encode


def measure(settings: Settings) -> Section:
    device, sizes = settings.torch_device, settings.sizes
    data, known = batches(sizes, device), tables(sizes, device)
    steps = {name: KnownStep(policy, known, sizes, data, device).warmed() for name, policy in ARMS.items()}
    rows = SEQUENCES * sizes.positions
    x = torch.cat([normalisation(data).normalise(one) for one in data])
    x = x.repeat(-(-rows // len(x)), 1)[:rows].view(SEQUENCES, sizes.positions, sizes.width)
    token = torch.randint(VOCABULARY, x.shape[:2], generator=torch.Generator().manual_seed(2)).to(device)
    turns = {f"training step, {name}": turn(step, device) for name, step in steps.items() if name in ("plain", "tokens")}
    turns |= {f"encode, {name}": turn(encoding(chosen(step, x, token, sizes.k), x, token), device) for name, step in steps.items()}
    times = interleaved(turns, settings.rounds, LONGER * settings.turn_seconds)
    ratios = {"expectation.tokens.train_step_time": times.time_ratio("training step, tokens", "training step, plain")}
    for name, key in {"tokens": "tokens", "tokens and row before": "row_before", "tokens and past": "past"}.items():
        ratios[f"expectation.{key}.encode_time"] = times.time_ratio(f"encode, {name}", "encode, plain")
    worked = {name: sizes.batch if name.startswith("training") else rows for name in times.seconds}
    return Section("expectations", ratios, times.seconds, worked)

"""One training step: ours against the dense matrix products it does without, a dense reference, and other libraries.

Ours is the trainer's own step, from raw activations to updated weights: normalisation, forward, backward, Adam, unit decoder
rows and the bookkeeping of dead features. No feature counts as dead here, so that nobody's step contains a revival.
"""

from collections.abc import Callable, Iterator
from itertools import cycle

import torch
from torch import Tensor, nn

from benchmarks.peers import LIBRARIES, NOT_INSTALLED, Peers
from benchmarks.timing import Section, Settings, Sizes, Turn, batches, interleaved, turn
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.dictionaries.arms.positional import Positional
from temporallens.dictionaries.kinds import Arm
from temporallens.dictionaries.steps import Progress
from temporallens.precision import DTYPES, Precision, precision
from temporallens.training.objective import Inputs, inputs_for
from temporallens.training.policy import TrainingPolicy
from temporallens.training.trainee import ArmRun, Trainee
from temporallens.training.views import View

STEPS = 100_000
"""Length of the run that the timed steps pretend to be part of."""
LEARNING = 0.2
"""Share of that run at which they stand: masks are soft, their logits learn, and closed entries are searched for worth."""
WARM_UP = 12
"""Steps before any timing, after which a running threshold has settled."""
OURS = "ours, BatchTopK"
OURS_FLOAT32 = "ours, BatchTopK, float32 throughout"
POSITIONAL = "ours, positional"
MATMULS = "the five dense matmuls of a dense step, float32"
REFERENCE = "dense PyTorch reference, autograd and Adam"
PRODUCTS: dict[Precision, str] = {
    "bfloat16": "the encoder product alone, bfloat16",
    "float32": "the encoder product alone, float32",
}


def training_policy(sizes: Sizes, precision: Precision) -> TrainingPolicy:
    return TrainingPolicy(steps=STEPS, batch_size=sizes.batch, dead_after=10**12, encoder_dtype=precision)


def positions_of(sizes: Sizes, device: torch.device) -> Tensor:
    """Positions of a batch as the trainer orders them: ascending, as many tokens of each but the first, which training leaves out."""
    return torch.linspace(1, sizes.positions, sizes.batch, device=device).long().clamp(max=sizes.positions - 1)


def normalisation(data: list[Tensor]) -> Inputs:
    x = torch.cat(data)
    return inputs_for(x.mean(0), (x - x.mean(0)).square().sum(1).mean())


class OurStep:
    """The trainer's step on one batch after another."""

    def __init__(
        self, arm: Arm, sizes: Sizes, precision: Precision, data: list[Tensor], device: torch.device, share: slice = slice(None)
    ) -> None:
        """`data` are the batches, or of several processes this one's `share` of their rows."""
        policy = training_policy(sizes, precision)
        self.trainee = Trainee(ArmRun("benchmark", arm, 0), sizes.width, sizes.positions, policy, device)
        self.progress = Progress(round(LEARNING * STEPS), STEPS)
        self._inputs, self._data = normalisation(data), cycle(data)
        self._position = positions_of(sizes, device)[share]

    def learn(self, x: Tensor, position: Tensor) -> None:
        self.trainee.step(View(self._inputs.normalise(x), position, position, None), self.progress)
        self.progress = self.progress._replace(step=self.progress.step + 1)

    def __call__(self) -> None:
        self.learn(next(self._data), self._position)

    def warmed(self, steps: int = WARM_UP) -> "OurStep":
        for _ in range(steps):
            self()
        return self


def dense_reference(sizes: Sizes, data: list[Tensor], device: torch.device) -> Callable[[], None]:
    """BatchTopK as one would write it at first: dense codes, autograd, `torch.optim.Adam`, float32."""
    generator = torch.Generator().manual_seed(0)
    directions = nn.functional.normalize(torch.randn(sizes.features, sizes.width, generator=generator), dim=1).to(device)
    encoder, decoder = nn.Parameter(directions.clone()), nn.Parameter(directions.clone())
    encoder_bias = nn.Parameter(torch.zeros(sizes.features, device=device))
    decoder_bias = nn.Parameter(torch.zeros(sizes.width, device=device))
    optimizer = torch.optim.Adam([encoder, encoder_bias, decoder, decoder_bias], lr=3e-4)
    inputs, stream = normalisation(data), cycle(data)

    def step() -> None:
        x = inputs.normalise(next(stream))
        codes = torch.relu((x - decoder_bias) @ encoder.T + encoder_bias)
        largest = codes.flatten().topk(sizes.k * len(x), sorted=False)
        codes = torch.zeros_like(codes).flatten().scatter(0, largest.indices, largest.values).view_as(codes)
        loss = (codes @ decoder + decoder_bias - x).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            decoder.copy_(nn.functional.normalize(decoder, dim=1))

    return step


def five_matmuls(sizes: Sizes, x: Tensor) -> Callable[[], None]:
    """Encoding, decoding, the gradient of the codes and those of both weight matrices, into memory that is already there."""
    encoder = torch.randn(sizes.features, sizes.width, device=x.device)
    decoder = torch.randn_like(encoder)
    codes, reconstruction = torch.empty(len(x), sizes.features, device=x.device), torch.empty_like(x)
    gradient = torch.empty_like(encoder)

    def step() -> None:
        torch.mm(x, encoder.T, out=codes)
        torch.mm(codes, decoder, out=reconstruction)
        torch.mm(codes.T, x, out=gradient)
        torch.mm(reconstruction, decoder.T, out=codes)
        torch.mm(codes.T, x, out=gradient)

    return step


def encoder_product(sizes: Sizes, x: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    encoder, x = torch.randn(sizes.features, sizes.width, device=x.device).to(dtype), x.to(dtype)
    codes = torch.empty(len(x), sizes.features, dtype=dtype, device=x.device)
    return lambda: torch.mm(x, encoder.T, out=codes)


def precisions(device: torch.device) -> dict[str, Precision]:
    """Our steps, and what nominates their codes: what a user gets on this machine, and float32 throughout where that is another."""
    chosen = precision("auto", device)
    return {OURS: chosen} if chosen == "float32" else {OURS: chosen, OURS_FLOAT32: "float32"}


def contestants(settings: Settings, data: list[Tensor]) -> Iterator[tuple[str, Callable[[], object]]]:
    sizes, device = settings.sizes, settings.torch_device
    batchtopk, positional = BatchTopK(features=sizes.features, k=sizes.k), Positional(features=sizes.features, k=sizes.k)
    for name, used in precisions(device).items():
        yield name, OurStep(batchtopk, sizes, used, data, device).warmed()
        yield PRODUCTS[used], encoder_product(sizes, data[0], DTYPES[used])
    yield POSITIONAL, OurStep(positional, sizes, precision("auto", device), data, device).warmed()
    yield MATMULS, five_matmuls(sizes, data[0])
    yield REFERENCE, dense_reference(sizes, data, device)


def measure(settings: Settings) -> Section:
    device = settings.torch_device
    data = batches(settings.sizes, device)
    turns: dict[str, Turn] = {name: turn(step, device) for name, step in contestants(settings, data)}
    with Peers(settings) as peers:
        times = interleaved(turns | peers.turns, settings.rounds, settings.turn_seconds)
        notes = dict(peers.notes)
    base = "train_step.batchtopk"
    ratios: dict[str, float | None] = {}
    for ours, used in precisions(device).items():
        prefix = base if ours == OURS else f"{base}.float32"
        ratios[f"{prefix}.vs_dense_matmuls"] = times.speed_ratio(ours, MATMULS)
        ratios[f"{prefix}.vs_dense_reference"] = times.speed_ratio(ours, REFERENCE)
        for library, title in LIBRARIES.items():
            ratios[f"{prefix}.vs_{library}"] = times.speed_ratio(ours, title)
        ratios[f"{prefix}.vs_encoder_product"] = times.time_ratio(ours, PRODUCTS[used])
    ratios["train_step.positional.vs_batchtopk"] = times.time_ratio(POSITIONAL, OURS)
    notes |= {title: NOT_INSTALLED for title in LIBRARIES.values() if title not in times.seconds and title not in notes}
    return Section("training_step", ratios, times.seconds, dict.fromkeys(times.seconds, settings.sizes.batch), notes=notes)

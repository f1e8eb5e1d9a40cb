"""How fast this machine is at what studies spend their time on, timed on the spot in a second or two: products of matrices, and blocks
of a language model of the size and precision that a study names. Of a device that is not here, the same by its published figures."""

import statistics
import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from temporallens.defaults import fixed_threads
from temporallens.precision import DTYPES, ModelPrecision, default_device, precision
from temporallens.study.devices import PRODUCTS_REACH, Company
from temporallens.study.models import ModelSizes

ROUNDS = 5
PRODUCT_SIZE = 1024
HEAD = 64
ROWS, ROW_LENGTH = 8, 128
LARGEST_WIDTH, LARGEST_HIDDEN = 2048, 8192
"""Of a block that is timed; what is larger is reckoned from its products."""


class Speeds:
    """Of one of a company's processes: timings, each taken once, with the threads that the study will have; or those of its device."""

    def __init__(self, threads: int | None, company: Company) -> None:
        self.company, self._threads = company, threads
        self.products = cache(self._products)
        self.block = cache(self._block)

    def precision(self, requested: str) -> ModelPrecision:
        """What a requested precision means there."""
        return "bfloat16" if self.company.device and requested == "auto" else precision(requested)

    def _published(self, precision: ModelPrecision) -> float | None:
        """Multiply-adds per second of the company's device; None where its processes are like this one."""
        return self.company.device and PRODUCTS_REACH * self.company.device.operations[precision] / 2

    def _products(self) -> float:
        """Multiply-adds per second of a training step's products: here those in float32."""
        if published := self._published("bfloat16"):
            return published
        x = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE, dtype=torch.float32, device=default_device())
        with fixed_threads(self._threads):
            return PRODUCT_SIZE**3 / _typical(lambda: torch.mm(x, x))

    def _block(self, sizes: ModelSizes, precision: ModelPrecision) -> float:
        """Seconds that a block of a language model takes for a token."""
        if published := self._published(precision):
            return block_products(sizes.width, sizes.hidden) / published
        width, hidden = min(sizes.width, LARGEST_WIDTH), min(sizes.hidden, LARGEST_HIDDEN)
        block = _Block(width, hidden, DTYPES[precision])
        with fixed_threads(self._threads), torch.inference_mode():
            timed = _typical(block.run) / (ROWS * ROW_LENGTH)
        return timed * block_products(sizes.width, sizes.hidden) / block_products(width, hidden)


def block_products(width: int, hidden: int) -> int:
    """Multiply-adds per token of a transformer block: four attention matrices and three of the feed-forward part."""
    return 4 * width**2 + 3 * width * hidden


class _Block:
    """A transformer block with weights of no meaning: norms, rotation, attention, and a gated feed-forward part."""

    def __init__(self, width: int, hidden: int, dtype: torch.dtype) -> None:
        def made(*shape: int) -> Tensor:
            return torch.full(shape, 1e-3, dtype=dtype, device=default_device())

        self.heads = max(1, width // HEAD)
        self.x = made(ROWS, ROW_LENGTH, width)
        self.attention, self.out = made(3 * width, width), made(width, width)
        self.up, self.down = made(2 * hidden, width), made(width, hidden)

    def run(self) -> Tensor:
        query, key, value = (self._split(part) for part in functional.linear(_norm(self.x), self.attention).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(_rotated(query), _rotated(key), value, is_causal=True)
        x = self.x + functional.linear(mixed.transpose(1, 2).flatten(2), self.out)
        gate, up = functional.linear(_norm(x), self.up).chunk(2, -1)
        return x + functional.linear(functional.silu(gate) * up, self.down)

    def _split(self, values: Tensor) -> Tensor:
        width = values.shape[-1] // self.heads * self.heads
        return values[..., :width].unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _norm(x: Tensor) -> Tensor:
    exact = x.float()
    return (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def _rotated(x: Tensor) -> Tensor:
    return x * x + torch.cat(x.chunk(2, -1)[::-1], -1) * x


def _typical(run: Callable[[], Tensor]) -> float:
    """Seconds of the middle one of a few rounds."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run().flatten()[0].item()  # the item waits for a GPU
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)

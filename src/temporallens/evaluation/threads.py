"""Work of one kind on several threads: NumPy and SciPy let go of the interpreter while they compute, so that draws of a null, resamples and
blocks of features go on side by side. Each is computed as it would be alone, and results come in order: they do not depend on threads.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

TOGETHER = 8
"""Items for each thread that are taken at a time: what they are made of need not be held all at once."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def on_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`function` of every item, on as many threads as PyTorch has."""
    threads, left = torch.get_num_threads(), iter(items)
    with ThreadPoolExecutor(threads) as pool:
        while together := list(islice(left, TOGETHER * threads)):
            yield from pool.map(function, together)

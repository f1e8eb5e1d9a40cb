"""PyTorch's defaults while we work: float32 on the processor, whatever the caller has set for their own programs."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext


@contextmanager
def own_defaults() -> Iterator[None]:
    """Undo `torch.set_default_dtype` and `torch.set_default_device` for a while: the same numbers come out under any defaults.

    The default dtype is the whole process's, so it is touched only where it is another.
    """
    import torch

    before, elsewhere = torch.get_default_dtype(), torch.get_default_device() != torch.device("cpu")
    if before != torch.float32:
        torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu") if elsewhere else nullcontext():
            yield
    finally:
        if before != torch.float32:
            torch.set_default_dtype(before)

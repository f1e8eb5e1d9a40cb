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


@contextmanager
def fixed_threads(count: int | None) -> Iterator[None]:
    """PyTorch and the linear algebra of NumPy with so many threads for a while; None leaves both as they are.

    Their number decides how sums are split, and so their last bits. NumPy's would otherwise be as many as the machine has cores, and where
    other processes use these, they wait for each other much longer than they work.
    """
    if count is None:
        yield
        return
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)

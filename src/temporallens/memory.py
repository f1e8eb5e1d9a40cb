"""How the process uses memory: large tensors of a training step are freed and taken again at the same size, step after step, and
products go through the processor's cache part by part."""

import ctypes
import functools
import resource
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""What glibc's `mallopt` calls them (`malloc.h`)."""

LARGEST = 32 << 20
"""Bytes; the largest `M_MMAP_THRESHOLD` that glibc takes on 64 bits."""

KEPT = 1 << 30
"""Bytes of freed memory that stay with the process."""

CACHED_ROWS = 512
"""Rows of a weight matrix that are worked on at a time, where a product in between would else leave the processor's cache."""


def most_memory() -> int:
    """Bytes that this process has held at most: of the accelerator where it uses one, else resident ones."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)  # bytes there


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of handing it back: every page that is taken anew costs a fault.

    For the whole process and once; other C libraries, which have no such setting, are left alone.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(M_MMAP_THRESHOLD, LARGEST)
        library.mallopt(M_TRIM_THRESHOLD, KEPT)

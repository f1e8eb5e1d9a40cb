"""Other projects' formats: what is read of theirs (`loading`), what is written for them to read, and what of ours they can
use (`saebench`). Of the floors the study and the command line depend on it."""

from importlib import import_module
from typing import Any

__all__ = ["saebench"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # reading a dictionary needs none of what evaluates one
        return import_module(f"temporallens.interop.{name}")
    raise AttributeError(f"module 'temporallens.interop' has no attribute '{name}'")

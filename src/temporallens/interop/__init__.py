"""Other projects' formats: what is written for them to read, and what of ours they can use. Nothing but the command line depends on it."""

from temporallens.interop import saebench

__all__ = ["saebench"]

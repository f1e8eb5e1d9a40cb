"""Writing a figure to a file: atomically, wide enough to read, and the same bytes for the same data."""

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from temporallens.errors import TemporalLensError, did_you_mean
from temporallens.figures.style import ours
from temporallens.files import user_path, write_atomically

# What a format would otherwise stamp with the time of writing.
METADATA: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
LEAST_PIXELS = 1200


def check_format(format: str) -> None:
    """Raise TemporalLensError for a format in which no figure is written."""
    if format not in METADATA:
        raise TemporalLensError(f"figures are not written as '{format}'{did_you_mean(format, METADATA)}")


def save(figure: Figure, path: Path | str, format: str = "png") -> Path:
    """Write `figure` to `path`, whose ending becomes that of `format` (png, svg or pdf); return the path written."""
    check_format(format)
    target = with_ending(user_path(path), format)
    dpi = max(figure.dpi, math.ceil(LEAST_PIXELS / figure.get_figwidth()))

    def write(temporary: Path) -> None:
        with ours(), temporary.open("wb") as file:
            figure.savefig(file, format=format, dpi=dpi, metadata=METADATA[format])

    write_atomically(target, write)
    return target


def with_ending(path: Path, format: str) -> Path:
    """`path` with the ending of `format`; a dot that is part of a name, as in `gemma-2.2b`, stays."""
    if path.suffix.lower().lstrip(".") in METADATA:
        return path.with_suffix(f".{format}")
    return path.with_name(f"{path.name}.{format}")

"""Position-aware sparse autoencoders: dictionaries of features that know where in the sequence they live.

The names below are the public face. Each is imported when it is first asked for, so that `import temporallens` and
`temporallens --help` answer at once instead of waiting for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from temporallens.errors import TemporalLensError

if TYPE_CHECKING:
    from temporallens import interop
    from temporallens.activations.language.harvest import harvest
    from temporallens.activations.store import ActivationStore
    from temporallens.dictionaries.kinds import (
        TSAE,
        BatchTopK,
        Budgeted,
        JumpReLU,
        Matryoshka,
        Positional,
        PositionalReLU,
        PositionMean,
        PostHoc,
        RandomMask,
        Sliced,
        Standard,
        TopK,
    )
    from temporallens.dictionaries.saving import load_dictionary, save_dictionary
    from temporallens.evaluation.scan import scan
    from temporallens.training.trainer import train

__version__ = "0.1.0"

__all__ = [
    "TSAE",
    "ActivationStore",
    "BatchTopK",
    "Budgeted",
    "JumpReLU",
    "Matryoshka",
    "PositionMean",
    "Positional",
    "PositionalReLU",
    "PostHoc",
    "RandomMask",
    "Sliced",
    "Standard",
    "TemporalLensError",
    "TopK",
    "__version__",
    "harvest",
    "interop",
    "load_dictionary",
    "save_dictionary",
    "scan",
    "train",
]

_HOMES = {
    "ActivationStore": "activations.store",
    "BatchTopK": "dictionaries.kinds",
    "Budgeted": "dictionaries.kinds",
    "JumpReLU": "dictionaries.kinds",
    "Matryoshka": "dictionaries.kinds",
    "PositionMean": "dictionaries.kinds",
    "Positional": "dictionaries.kinds",
    "PositionalReLU": "dictionaries.kinds",
    "PostHoc": "dictionaries.kinds",
    "RandomMask": "dictionaries.kinds",
    "Sliced": "dictionaries.kinds",
    "Standard": "dictionaries.kinds",
    "TSAE": "dictionaries.kinds",
    "TopK": "dictionaries.kinds",
    "harvest": "activations.language.harvest",
    "load_dictionary": "dictionaries.saving",
    "save_dictionary": "dictionaries.saving",
    "scan": "evaluation.scan",
    "train": "training.trainer",
}


def __getattr__(name: str) -> Any:
    if name == "interop":
        return import_module("temporallens.interop")
    if name not in _HOMES:
        raise AttributeError(f"module 'temporallens' has no attribute '{name}'")
    value = getattr(import_module(f"temporallens.{_HOMES[name]}"), name)
    globals()[name] = value  # the next use finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

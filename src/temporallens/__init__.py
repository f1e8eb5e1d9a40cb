"""Position-aware sparse autoencoders: dictionaries of features that know where in the sequence they live.

The names below are the public face. Each is imported when it is first asked for, so that `import temporallens` and
`temporallens --help` answer at once instead of waiting for torch.
"""
# ruff: noqa: F403 (what type checkers take for public names)

from importlib import import_module
from typing import TYPE_CHECKING, Any

from temporallens.errors import TemporalLensError as TemporalLensError

if TYPE_CHECKING:
    from temporallens import interop as interop
    from temporallens.activations.language.harvest import harvest as harvest
    from temporallens.activations.store import ActivationStore as ActivationStore
    from temporallens.dictionaries.kinds import *
    from temporallens.dictionaries.saving import save_dictionary as save_dictionary
    from temporallens.evaluation.scan import scan as scan
    from temporallens.interop.loading import load_dictionary as load_dictionary
    from temporallens.training.trainer import train as train

__version__ = "0.2.0"

_HOMES = {
    "ActivationStore": "activations.store",
    "harvest": "activations.language.harvest",
    "load_dictionary": "interop.loading",
    "save_dictionary": "dictionaries.saving",
    "scan": "evaluation.scan",
    "train": "training.trainer",
}
"""Where public names live; those of the arms are taken from `dictionaries.kinds`."""


def _arms() -> list[str]:
    kinds = import_module("temporallens.dictionaries.kinds")
    return [arm.__name__ for arm in kinds.ARMS.values()]


def __getattr__(name: str) -> Any:
    if name == "interop":
        return import_module("temporallens.interop")
    if name == "__all__":
        return sorted(["TemporalLensError", "__version__", "interop", *_HOMES, *_arms()])
    is_class = name[:1].isupper()  # modules of the package are asked for here, too, before they are imported
    home = _HOMES.get(name) or ("dictionaries.kinds" if is_class and name in _arms() else None)
    if home is None:
        raise AttributeError(f"module 'temporallens' has no attribute '{name}'")
    value = getattr(import_module(f"temporallens.{home}"), name)
    globals()[name] = value  # the next use finds it without coming here
    return value


def __dir__() -> list[str]:
    return list(__getattr__("__all__"))

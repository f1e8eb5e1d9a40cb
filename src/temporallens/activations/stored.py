"""Activations that lie in a store already, such as those of your own arrays, as an entry of a study."""

from pathlib import Path
from typing import Literal

from temporallens.activations.manifest import MANIFEST
from temporallens.activations.store import ActivationStore
from temporallens.activations.writer import TARGET
from temporallens.errors import TemporalLensError
from temporallens.files import link_or_copy, locked, make_folder, user_path
from temporallens.settings import Settings


class StoredPolicy(Settings):
    """One entry under `activations:` of a study with `source: store`."""

    source: Literal["store"] = "store"
    """Says that these activations lie in a store."""
    path: str
    """Its folder: what `temporallens import`, `tl.harvest` or `ActivationStore.from_arrays` made."""

    @property
    def opened(self) -> ActivationStore:
        """Raises TemporalLensError where there is no whole store."""
        return ActivationStore(user_path(self.path))

    @property
    def positions(self) -> int:
        return self.opened.positions

    @property
    def width(self) -> int:
        return self.opened.width

    @property
    def tokens(self) -> int:
        return self.opened.rows


def take_store(policy: StoredPolicy, out: Path) -> ActivationStore:
    """The store, in a folder of the study's: its files take no space again where the file system has links."""
    store = policy.opened
    if out.exists() and out.samefile(store.folder):
        raise TemporalLensError(f"{out} is the study's own folder for these activations: move the store somewhere else")
    make_folder(out)
    with locked(out):
        if store.target is not None:  # of a pair the other place's store is whole before its own
            _take(store.target.folder, out / TARGET)
        _take(store.folder, out)
    return ActivationStore(out)


def _take(folder: Path, out: Path) -> None:
    """The files of a store, its manifest last."""
    make_folder(out)
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST and not path.name.startswith("."))
    for file in (*files, folder / MANIFEST):
        link_or_copy(file, out / file.name)

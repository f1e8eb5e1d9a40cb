"""Any dictionary that there is: ours, or a folder or file of another library, on this machine or on the hub.

Which format a folder holds is told by the names of its files. A new format is one file here and one line in `READERS`.
"""

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError

from temporallens.activations.language.model_files import hub_is_known
from temporallens.activations.language.shipped import quiet_transformers
from temporallens.defaults import own_defaults
from temporallens.dictionaries import saving
from temporallens.dictionaries.arms.pretrained import Origin, Pretrained, PretrainedDictionary
from temporallens.dictionaries.base import ArmConfig, Dictionary
from temporallens.errors import TemporalLensError
from temporallens.files import read_json, refuse_full, user_path
from temporallens.interop import dictionary_learning, gemma_scope, gemma_scope_2, llama_scope, plain, saelens, sparsify
from temporallens.interop.foreign import OPENERS

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[\w.=@ -]+)*")
"""`user/name`, and a folder or file in it."""


class Reader(NamedTuple):
    """One format."""

    title: str
    files: tuple[str, ...]  # that a folder of it holds
    beside: tuple[str, ...]  # that it may hold, or that may lie above it
    read: Callable[[Path, Pretrained], PretrainedDictionary]


READERS = tuple(
    Reader(title, module.FILES, module.BESIDE, module.read)
    for title, module in {
        "SAELens": saelens,
        "sparsify": sparsify,
        "dictionary_learning": dictionary_learning,
        "Gemma Scope": gemma_scope,
        "Gemma Scope 2": gemma_scope_2,
        "Llama Scope": llama_scope,
    }.items()
)


@own_defaults()
def load_dictionary(path: Path | str, arm: type[ArmConfig] | None = None, **options: Any) -> Dictionary:
    """Read a dictionary: one that was saved here, bit for bit (`arm` is the class of its arm where that is one of your own), or that of
    another library, with the codes that its publisher computes.

    `path` is a folder, a file, or `user/name/folder` on the hub, whose `revision` may be given. Options are fields of `Pretrained`; they
    say what a file does not: `input_scale`, `k`, of a file of named tensors `encoder="W_enc"`, `decoder="W_dec"`.
    Raises TemporalLensError for missing, unknown or damaged files.
    """
    place, request = _place(Pretrained(path=str(user_path(path)), **options))
    if not options.keys() - {"revision"} and _is_ours(place):
        return saving.load_dictionary(place, arm)
    return _read(place, request)


def _is_ours(folder: Path) -> bool:
    """Whether `folder` holds a dictionary that was saved here, or one that is so damaged that only its own reader can say how."""
    try:
        config = read_json(folder / "cfg.json", "the configuration of a saved dictionary", foreign=True)
    except TemporalLensError:
        return (folder / saelens.FILES[1]).is_file()
    metadata = config.get("metadata") if isinstance(config, dict) else None
    return isinstance(metadata, dict) and "temporallens" in metadata


@own_defaults()
def read_pretrained(request: Pretrained) -> PretrainedDictionary:
    """What an arm that is trained already stands for. Raises TemporalLensError where there is none, or none that is known, and for one of
    ours that needs positions."""
    place, request = _place(request)
    if not _is_ours(place):
        return _read(place, request)
    ours = saving.load_dictionary(place)
    if isinstance(ours, PretrainedDictionary):
        origin = {**ours.config.origin.model_dump(), **request.origin.model_dump(exclude_unset=True)}
        ours.config = ours.config.model_copy(update={"path": request.path, "origin": Origin(**origin)})
        return ours
    if ours.position_aware or ours.config.expectation is not None:
        raise TemporalLensError(
            f"{request.path} is a '{ours.kind}' dictionary that was trained here, and needs positions or tokens: it can be no arm of kind "
            "pretrained; name its own arm, and the study trains it"
        )
    return _read(place, _with_source(request, saving.read_config(place)["metadata"]["temporallens"]))  # laid out as SAELens' are


def _with_source(request: Pretrained, ours: dict[str, Any]) -> Pretrained:
    """With what a dictionary of ours says of the store that it was trained on, where nothing else is said."""
    source, policies = ours.get("source") or {}, ours.get("policies") or {}
    said = {"model": source.get("model"), "layer": source.get("layer"), "context_length": policies.get("context_length")}
    known = {name: value for name, value in said.items() if value is not None and name not in request.origin.model_fields_set}
    return request.model_copy(update={"origin": Origin(**{**request.origin.model_dump(exclude_unset=True), **known})})


def _read(place: Path, request: Pretrained) -> PretrainedDictionary:
    """By the first reader whose files are there."""
    folder = place if place.is_dir() else place.parent
    for reader in READERS:
        is_one = place.is_dir() or (place.name in reader.files and not request.named)
        if is_one and all((folder / file).is_file() for file in reader.files):
            return reader.read(folder, request)
    if place.is_file() and place.suffix in OPENERS:
        return plain.read(place, request)
    known = "; ".join(f"{' and '.join(reader.files)} ({reader.title})" for reader in READERS)
    raise TemporalLensError(f"{request.path} holds no dictionary of a format that is known here: {known}, or a file of named tensors")


def _place(request: Pretrained) -> tuple[Path, Pretrained]:
    """The folder or file, fetched from the hub where it is there, and the request, with the hub's commit."""
    path = user_path(request.path)
    if path.exists():
        return path, request
    name = request.path
    if path.is_absolute() or name.startswith((".", "~")) or ".." in name or not HUB_NAME.fullmatch(name):
        hint = (
            "; one on the hub is named user/name/folder, without address or revision"
            if name.startswith(("http", "hf:")) or "@" in name
            else ""
        )
        raise TemporalLensError(f"there is no dictionary at {name}: no such file or folder{hint}")
    place, commit = _fetched(name, request.revision)
    return place, request.model_copy(update={"revision": commit})


def _fetched(name: str, revision: str | None) -> tuple[Path, str]:
    """The files of all formats in a folder of the hub, or one file, in the hub's cache on this machine, and the commit they are of."""
    user, repository, *inner = name.split("/")
    inside = "/".join(inner)
    files = [file for reader in READERS for file in (*reader.files, *reader.beside)]  # ours are those of SAELens
    wanted = [inside] if Path(inside).suffix in OPENERS else [posixpath.normpath(posixpath.join(inside, file)) for file in files]
    try:
        with quiet_transformers():
            folder = snapshot_download(
                f"{user}/{repository}",
                revision=revision,
                allow_patterns=[file for file in wanted if not file.startswith("..")],
                local_files_only=not hub_is_known(),
            )
    except (OSError, ValueError, HTTPError) as error:
        pinned = f" at revision {revision}" if revision else ""
        raise TemporalLensError(
            f"dictionary {name}{pinned} was found neither here nor on the hub (unknown name, no access, or no network)"
        ) from error
    place = Path(folder) / inside
    if not place.exists():
        raise TemporalLensError(
            f"{user}/{repository} on the hub has no folder or file {inside} with a dictionary of a format that is known here"
        )
    return place, Path(folder).name


def described(dictionary: Dictionary) -> list[str]:
    """What a dictionary is, in a few lines."""
    config = dictionary.config
    if not isinstance(config, Pretrained):
        return [f"a '{config.kind}' dictionary that was saved here: {dictionary.features:,} features, width {dictionary.width:,}"]
    kept = (
        "codes above a threshold"
        if config.k is None
        else f"the largest of each of {config.k} groups"
        if config.grouped
        else f"the {config.k} largest codes"
    )
    about = config.origin.model_dump(exclude_none=True)
    form = about.pop("format", "a dictionary")
    lines = [f"{form}: {dictionary.features:,} features, width {dictionary.width:,}; {kept} of each token are kept"]
    normalised = {"layer_norm": "mean and deviation of its own taken off", "unit_norm": "its norm made sqrt(D)"}.get(config.input)
    if normalised:
        lines.append(f"each activation has {normalised} first")
    if config.transcodes:
        wide = f", of width {dictionary.output_width:,}" if dictionary.output_width != dictionary.width else ""
        lines.append(f"a transcoder: it gives activations of another point{wide}")
    return [*lines, *(f"{name.replace('_', ' ')}: {value}" for name, value in about.items())]


def save_as_ours(dictionary: Dictionary, folder: Path | str) -> None:
    """Save a dictionary of another library as one of ours, with what its file says of its model. Raises TemporalLensError for one that is
    ours already, and for a folder that is not empty, which may be the dictionary's own."""
    config, folder = dictionary.config, user_path(folder)
    refuse_full(folder)
    if not isinstance(config, Pretrained):
        raise TemporalLensError("this dictionary was saved here: copy its folder")
    origin = config.origin
    source = (
        {"kind": "model", "model": origin.model, "revision": None, "layer": origin.layer}
        if origin.model and origin.layer is not None
        else {}
    )
    about = {"source": source, "policies": {} if origin.bos is None else {"bos": origin.bos}}
    saving.save_dictionary(dictionary, folder, config, origin.context_length or 1, about)

"""Saving and loading dictionaries: `cfg.json` + `sae_weights.safetensors`, as SAELens lays them out, with our tensors beside.

`docs/formats.md` is normative. Arms whose codes an ordinary SAE has too (`standard`, `batchtopk`) carry that architecture's name
and load in SAELens; position-aware ones are named `temporallens_*`. `metadata.temporallens` holds the arm, the number of positions
and what was recorded about the training. Nothing is pickled. Both files carry their checksums, and what is loaded is checked against
what the arm needs before memory is taken for it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from torch import Tensor

from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import ArmConfig, Dictionary
from temporallens.dictionaries.expectations.tables import FILE as EXPECTATION_FILE, Expectation, load_expectation
from temporallens.dictionaries.inputs import known_policy
from temporallens.dictionaries.kinds import ARMS, Arm
from temporallens.errors import TemporalLensError
from temporallens.files import read_json, read_tensors, tensor_digest, user_path, write_json, write_tensors
from temporallens.settings import first_problem

FORMAT = "temporallens.dictionary/2"
SAELENS_VERSION = "6.54.12"
"""Version of the layout; SAELens migrates, and drops keys of, files that do not name one."""

WEIGHTS = {"encoder": "W_enc", "encoder_bias": "b_enc", "decoder": "W_dec", "decoder_bias": "b_dec"}
"""Our names of the weights that every dictionary has, and the layout's; every other tensor keeps its own."""
ARM: TypeAdapter[Any] = TypeAdapter(Arm)


def save_dictionary(
    dictionary: Dictionary, folder: Path | str, arm: ArmConfig, positions: int, metadata: dict[str, Any] | None = None
) -> None:
    """Write a dictionary in raw units (folded). `metadata` goes into `metadata.temporallens` beside the arm."""
    folder = user_path(folder)
    weights = write_tensors(folder / "sae_weights.safetensors", _tensors(dictionary))
    ours = {"format": FORMAT, "arm": arm.model_dump(mode="json"), "positions": positions}
    ours |= {"position_policy": known_policy(dictionary.position_policy), "state": dictionary.record(), "weights_sha256": weights}
    if dictionary.expectation is not None:
        dictionary.expectation.save(folder / EXPECTATION_FILE)
        ours["expectation_sha256"] = dictionary.expectation.digest
    config = {
        "architecture": _architecture(dictionary),
        "d_in": dictionary.width,
        "d_sae": dictionary.features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": SAELENS_VERSION, "temporallens": ours | (metadata or {})},
    }
    write_json(folder / "cfg.json", config | dictionary.layout())


def _architecture(dictionary: Dictionary) -> str:
    ordinary = None if dictionary.position_aware or dictionary.expectation is not None else dictionary.architecture
    return ordinary or f"temporallens_{dictionary.kind}"


def _tensors(dictionary: Dictionary) -> dict[str, Tensor]:
    """Tensors as the file holds them: weights with the layout's names and orientation, one threshold for every feature."""
    tensors = {WEIGHTS.get(name, name): tensor for name, tensor in dictionary.state_dict().items()}
    tensors["W_enc"] = tensors["W_enc"].T
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].expand(dictionary.features)
    return tensors


def read_config(folder: Path | str) -> dict[str, Any]:
    """`cfg.json` of a saved dictionary, checked to be one of ours."""
    folder = user_path(folder)
    path = folder / "cfg.json"
    config = read_json(path, "the configuration of a saved dictionary", foreign=True)
    metadata = config.get("metadata") if isinstance(config, dict) else None
    ours = metadata.get("temporallens") if isinstance(metadata, dict) else None
    if not isinstance(ours, dict) or ours.get("format") != FORMAT:
        found = ours.get("format") if isinstance(ours, dict) else None
        raise TemporalLensError(
            f"{path} is not a dictionary that TemporalLens saved: its format is '{found}', not '{FORMAT}'; of one of another library "
            "`temporallens dictionary FOLDER --out OURS` makes one"
        )
    return dict(config)


@own_defaults()
def load_dictionary(folder: Path | str, arm: type[ArmConfig] | None = None) -> Dictionary:
    """Read a saved dictionary back, bit for bit. `arm` is the class of its arm where that is one of your own.

    Raises TemporalLensError for missing, foreign or damaged files, and for arms that do not come with this version.
    """
    folder = user_path(folder)
    config = read_config(folder)
    ours = config["metadata"]["temporallens"]
    path = folder / "sae_weights.safetensors"
    tensors, _ = read_tensors(path, "the weights of a saved dictionary", foreign=True)
    if ours.get("weights_sha256") not in (None, tensor_digest(tensors)):
        raise TemporalLensError(f"{path} does not have the checksum that cfg.json states: the two were not saved together, or are damaged")
    made, sizes = _described(folder / "cfg.json", config, ours, arm)
    width, features, positions = sizes.d_in, sizes.d_sae, sizes.positions
    given = made.gives(width)
    shapes = {"W_enc": (width, features), "b_enc": (features,), "W_dec": (features, given), "b_dec": (given,)}
    for name, shape in shapes.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise TemporalLensError(f"{path}: '{name}' should have shape {shape}, the file has {found}")
    if made.features != features:
        raise TemporalLensError(f"{folder / 'cfg.json'} contradicts itself: d_sae is {features}, the arm has {made.features} features")
    _check_fit(made, sizes, tensors, path)
    dictionary = made.make(width, positions, torch.Generator())
    _fill(dictionary, tensors, path)
    dictionary.position_policy = sizes.position_policy
    try:
        dictionary.restore_record(ours["state"])
    except (KeyError, TypeError) as error:
        raise TemporalLensError(f"{folder / 'cfg.json'} is damaged: its state is not that of a '{made.kind}' dictionary") from error
    if made.expectation is not None and made.expectation.token is not None:
        dictionary.expectation = _expectation(folder, width, ours)
    return dictionary.eval()


def _expectation(folder: Path, width: int, ours: dict[str, Any]) -> Expectation:
    found = load_expectation(folder / EXPECTATION_FILE, width)
    if ours.get("expectation_sha256") != found.digest:
        raise TemporalLensError(
            f"{folder / EXPECTATION_FILE} does not have the checksum that cfg.json states: the two were not saved together"
        )
    return found


class Sizes(BaseModel):
    """What `cfg.json` says of sizes, within bounds that every real dictionary keeps."""

    d_in: int = Field(ge=1, lt=1 << 24)
    d_sae: int = Field(ge=1, lt=1 << 28)
    positions: int = Field(ge=1, le=1 << 20)
    position_policy: Annotated[int, Field(ge=0)] | Literal["mean"] | None = None


def _described(path: Path, config: dict[str, Any], ours: dict[str, Any], custom: type[ArmConfig] | None) -> tuple[ArmConfig, Sizes]:
    """The arm and the sizes that `cfg.json` describes; `custom` is a class that does not come with this version."""
    kind = ours["arm"].get("kind") if isinstance(ours.get("arm"), dict) else None
    if custom is None and isinstance(kind, str) and kind not in ARMS:
        remedy = "if it is one of your own, name its class: load_dictionary(folder, arm=...)"
        raise TemporalLensError(f"{path} does not describe an arm that this version knows, but one of kind '{kind}'; {remedy}")
    try:
        arm = ARM.validate_python(ours["arm"]) if custom is None else custom.model_validate(ours["arm"])
        sizes = Sizes.model_validate({**config, **ours})
        arm.check(sizes.positions)
    except ValidationError as error:
        raise TemporalLensError(f"{path} does not describe an arm that this version knows: {first_problem(error)}") from error
    except KeyError as error:
        raise TemporalLensError(f"{path} does not say which arm it is: {error} is missing") from error
    return arm, sizes


def _check_fit(arm: ArmConfig, sizes: Sizes, tensors: dict[str, Tensor], path: Path) -> None:
    """Raise TemporalLensError unless the file holds the tensors of such an arm; the arm is built without memory for it."""
    with torch.device("meta"):
        dictionary = arm.make(sizes.d_in, sizes.positions, torch.Generator())
    _matched(dictionary, tensors, path)


def _matched(dictionary: Dictionary, tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The file's tensors under our names and in our orientation, all there and of the right shapes."""
    ours = {theirs: name for name, theirs in WEIGHTS.items()}
    wanted = {ours.get(name, name): tensor for name, tensor in tensors.items()}
    wanted["encoder"] = wanted["encoder"].T
    needed = dict(dictionary.state_dict())
    if "threshold" in wanted and "threshold" in needed and needed["threshold"].ndim == 0 and wanted["threshold"].numel():
        wanted["threshold"] = wanted["threshold"].reshape(-1)[0]
    if wanted.keys() != needed.keys() or any(wanted[name].shape != needed[name].shape for name in needed):
        difference = sorted(wanted.keys() ^ needed.keys()) or sorted(name for name in needed if wanted[name].shape != needed[name].shape)
        raise TemporalLensError(
            f"{path} does not fit a '{dictionary.kind}' dictionary: {', '.join(difference)} is missing, unknown or misshapen"
        )
    return wanted


def _fill(dictionary: Dictionary, tensors: dict[str, Tensor], path: Path) -> None:
    wanted = _matched(dictionary, tensors, path)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in wanted.values()):
        raise TemporalLensError(f"{path} holds NaN or infinity; the dictionary is damaged or its training failed")
    dictionary.load_state_dict(wanted)

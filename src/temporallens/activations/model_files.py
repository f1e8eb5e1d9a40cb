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

from temporallens.activations import shipped
from temporallens.activations.clocks import Tokenizer
from temporallens.activations.shipped import first_line, quiet_transformers
from temporallens.errors import TemporalLensError, did_you_mean
from temporallens.files import sha256

Config = Any  # transformers' PreTrainedConfig and PreTrainedModel: importing transformers takes
Network = Any  # seconds, so it is imported where a model is loaded, and not by a study that is finished
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZER_FILES = ("tokenizer*", "vocab*", "spiece*", "sentencepiece*")
DIGEST_BYTES = 1 << 20
"""Of either end of a weight file that go into a directory's digest."""


class Source(NamedTuple):
    """Where a model is to be had."""

    title: str  # how messages call it
    place: str  # directory or hub name
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
    path = Path(model).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        content = sha256(path)
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
    path = Path(model).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return
    source = find_source(model)
    if source.local:
        _check_folder(Path(source.place))


def _shipped_names() -> str:
    return ", ".join(shipped.MODELS)


def read_config(source: Source) -> Config:
    """The model's configuration, with whatever keeps it from being read turned into a sentence."""
    from transformers import AutoConfig

    if source.local:
        _check_folder(Path(source.place))
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(source.place, **_access(source))
    except OSError as error:
        raise _not_reached(source, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TemporalLensError(f"transformers cannot read the configuration of {source.place}: {first_line(error)}") from error
    if config.is_encoder_decoder:
        raise TemporalLensError(f"{source.title} is an encoder-decoder; TemporalLens reads models that are one stack of blocks")
    if not getattr(config.get_text_config(decoder=True), "num_hidden_layers", 0):
        raise TemporalLensError(f"the configuration of {source.title} does not say how many layers it has (num_hidden_layers)")
    return config


def _access(source: Source) -> dict[str, Any]:
    """How to ask transformers for a model: never with code of its own, and without the hub where there is none to ask."""
    revision = None if source.local else source.revision
    return {"revision": revision, "trust_remote_code": False, "local_files_only": source.local or not _hub_is_known()}


@cache
def _hub_is_known() -> bool:
    """Whether the hub's name can be resolved. Without a network, the hub's client would try again for half a minute."""
    if getproxies():
        return True  # the proxy resolves names
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _not_reached(source: Source, error: OSError) -> TemporalLensError:
    if source.local:
        return TemporalLensError(f"{source.place} cannot be read as a model: {first_line(error)}")
    model = source.place + (f" at revision {source.revision}" if source.revision else "")
    hint = "" if "/" in source.place else did_you_mean(source.place, shipped.MODELS)
    return TemporalLensError(f"model {model} was found neither here nor on the hub (unknown name, no access, or no network){hint}")


def read_network(source: Source, config: Config, dtype: torch.dtype, head: bool) -> tuple[Network, Network]:
    """What `config` describes, with its weights, and in it the stack of blocks; they are one without `head`, or where the weights
    hold none. Weights of anything else in the files are left alone."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModel, AutoModelForCausalLM

    try:
        with quiet_transformers():
            whole, report = (AutoModelForCausalLM if head and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModel).from_pretrained(
                source.place,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                **_access(source),
            )
    except OSError as error:
        raise TemporalLensError(f"the weights of {source.place} cannot be read: {first_line(error)}") from error
    except SafetensorError as error:
        raise TemporalLensError(f"the weights of {source.place} are truncated or damaged: {first_line(error)}") from error
    except (ValueError, RuntimeError, KeyError) as error:
        raise TemporalLensError(f"the weights of {source.place} do not fit its configuration: {first_line(error)}") from error
    base = whole.base_model
    in_base = "" if whole is base else f"{whole.base_model_prefix}."
    missing = sorted(name for name in report["missing_keys"] if name.startswith(in_base) and "pooler" not in name)
    if missing:
        others = f", with {len(missing) - 1} others" if missing[1:] else ""
        raise TemporalLensError(f"the weights of {source.place} are incomplete: {missing[0].removeprefix(in_base)} is missing{others}")
    stack = base.get_decoder() if config.get_text_config() is not config else base
    headless = whole is base or any(not name.startswith(in_base) for name in report["missing_keys"])
    return (stack if headless else whole).eval().requires_grad_(False), stack


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

    if source.local and not any(path for pattern in TOKENIZER_FILES for path in Path(source.place).glob(pattern)):
        raise TemporalLensError(f"{source.place} is a model directory without a tokenizer: it has no tokenizer.json")
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(source.place, **_access(source), use_fast=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise TemporalLensError(f"{source.place} has no tokenizer that transformers can read: {first_line(error)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise TemporalLensError(f"{source.title} has no fast tokenizer (tokenizer.json); convert its tokenizer with transformers")
    return tokenizer


def content_pin(source: Source, config: Config) -> str | None:
    """What pins the content: the wheel or file of shipped and GGUF models, the hub's commit, or a digest of a directory's weights."""
    if not source.local:
        return getattr(config, "_commit_hash", None) or source.revision
    return source.revision or f"digest:{_digest(Path(source.place))}"


def _digest(folder: Path) -> str:
    """A digest of the configuration and of name, size and both ends of every weight file: quick, and changed by other weights."""
    digest = hashlib.sha256(json.dumps(json.loads((folder / "config.json").read_text("utf-8")), sort_keys=True).encode())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(DIGEST_BYTES))
            file.seek(max(0, size - DIGEST_BYTES), os.SEEK_SET)
            digest.update(file.read(DIGEST_BYTES))
    return digest.hexdigest()

"""Tiny random models of every family with their head on, stores of their activations, and dictionaries of which everything is known."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from temporallens.activations.language.harvest import harvest
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.sliced import Sliced
from temporallens.dictionaries.arms.standard import Standard
from temporallens.dictionaries.base import Dictionary
from tiny_models import FAMILIES, TEXTS, VOCABULARY, WIDTH, tiny_tokenizer

CONTEXT_LENGTH = 32
DOCUMENTS = [" ".join(TEXTS[number % 5 :] + TEXTS[: number % 5] * 3)[number:] for number in range(10)]
"""Texts of several rows each, which begin at different places."""


def headed_model(family: str, folder: Path, seed: int = 0) -> Path:
    """Save a random model of `family` with its language-model head, and its tokenizer."""
    tokenizer = tiny_tokenizer(family)
    ids = {"vocab_size": VOCABULARY, "pad_token_id": tokenizer.pad_token_id}
    if family != "bert":
        ids |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = FAMILIES[family](**ids, **({"is_decoder": False} if family == "bert" else {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.normal_(std=0.15)  # as initialised, blocks would hardly change the stream
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def with_text(folder: Path, texts: Sequence[str] = DOCUMENTS) -> Path:
    """A folder with a `model`, and with texts in `text.jsonl`, which can be read again."""
    headed_model("llama", folder / "model")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def store_of(model: Path, layer: int | str, out: Path, **policy: Any) -> ActivationStore:
    """Activations of a tiny model over DOCUMENTS."""
    settings = {
        "context_length": CONTEXT_LENGTH,
        "dtype": "float32",
        "norm_multiple": None,
        "batch_size": 8,
        "rows_per_document": 3,
    } | policy
    store = harvest(str(model), layer, DOCUMENTS, out=out, **settings)
    assert isinstance(store, ActivationStore)
    return store


def identity(width: int = WIDTH) -> Dictionary:
    """A dictionary whose reconstruction is its input to the bit: a feature for each direction and sign."""
    dictionary = Standard(features=2 * width).make(width, CONTEXT_LENGTH, torch.Generator())
    axes = torch.cat([torch.eye(width), -torch.eye(width)])
    dictionary.load_state_dict({**dictionary.state_dict(), "encoder": axes, "decoder": axes.clone()})
    return dictionary


def random_dictionary(width: int = WIDTH, features: int = 48) -> Dictionary:
    """An untrained dictionary, whose codes depend on activations alone."""
    return Standard(features=features).make(width, CONTEXT_LENGTH, torch.Generator().manual_seed(0))


def clockwork(groups: int, width: int = WIDTH) -> Dictionary:
    """A dictionary that looks at nothing but the position: feature g is 1 in group g of positions, and silent elsewhere."""
    dictionary = Sliced(features=groups, shared=0, groups=groups, k=1).make(width, CONTEXT_LENGTH, torch.Generator().manual_seed(0))
    state = dictionary.state_dict()
    dictionary.load_state_dict(state | {"encoder": torch.zeros(groups, width), "encoder_bias": torch.ones(groups)})
    return dictionary

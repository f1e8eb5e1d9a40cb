"""Which architectures of the installed transformers are read, and how exactly: a small random model of each against a plain pass of it.

    python -m tools.architectures             # writes the table in docs/models.md anew (some minutes); a slow test compares the two
    python -m tools.architectures llama xlnet # prints the rows of these

Every causal language model and every encoder that can be made small from its configuration is harvested, scanned and spliced into. What
is stored must be what the model gives for each row alone, whatever rows stand beside it; what is not read is refused in a sentence. The
same holds for what its blocks add to the stream, where that is told apart.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

from temporallens.activations.language import models
from temporallens.activations.language.block_stack import block_list, text_stack
from temporallens.activations.language.harvest import harvest
from temporallens.activations.language.hooks import BEHIND_NORM, Hook, Layer, Site, block_of
from temporallens.activations.language.models import LanguageModel
from temporallens.activations.store import ActivationStore
from temporallens.errors import TemporalLensError
from temporallens.evaluation.scan import scan

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- architectures: python -m tools.architectures -->", "<!-- end of architectures -->"
TOLERANCE = 1e-4
"""Of a token's stream, relative to its norm, in float32: a batch adds up in another order than a row alone."""
LAYERS = 4
VOCABULARY = 100
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # mixtures of experts, latent attention, state spaces
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "num_shared_experts": 1,
    "num_expert_group": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "sliding_window": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
}
CORE = list(SIZES)[:5]
"""Sizes that every configuration takes, whatever it calls them."""
SHARED_KEYS = {
    "num_kv_shared_layers": 1,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
}
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [2]},
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": {"layer_types": None},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4},
    "kimi_linear": {"linear_head_dim": 8, "linear_num_heads": 2},
    "zaya": {"num_experts_per_tok": 1},
    "esmc": {"num_key_value_heads": None, "head_dim": None},
    "falcon": {"head_dim": None},
    "falcon_h1": {"mamba_d_ssm": 64},
    "funnel": {"num_hidden_layers": None, "block_sizes": [2, 2]},
    "gemma3n_text": SHARED_KEYS,
    "gemma4_text": SHARED_KEYS | {"head_dim": None, "num_key_value_heads": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "gptj": {"rotary_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_conv": 4, "mamba_dt_rank": 4},
    "lfm2": {"full_attn_idxs": [2]},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 8},
    "squeezebert": {"embedding_size": 32, "head_dim": None},
    "xlnet": {"max_position_embeddings": None, "d_head": 8},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
}
"""Of one architecture, where the sizes above do not suit it; None: its own default."""


NOT_SMALL = {"blt", "phi4_multimodal", "trocr"}
"""Kinds that take minutes to make whatever sizes are requested, or that are no model by themselves."""


class Row(NamedTuple):
    """What became of one architecture."""

    kind: str
    read: str  # `causal`, `encoder`, or why it is refused
    padded: str = ""  # sides on which rows are padded; others are run by rows of one length
    positions: str = ""  # id of a row's first position, where ids are given
    continued: str = ""  # how it goes on from a stream
    attention: str = ""  # modules that give what a block's attention adds to the stream
    mlp: str = ""  # and what its MLP adds
    read_by_mlp: str = ""  # modules that are given what its MLP reads
    difference: float = 0.0  # largest, of anything, from a plain pass

    @property
    def line(self) -> str:
        """Of the table that it belongs to."""
        return f"| {' | '.join(self[:-1] if self.padded else self[:2])} |"


KINDS = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_MASKED_LM_MAPPING_NAMES} - NOT_SMALL)
"""Causal language models and encoders."""


def is_small(kind: str) -> bool:
    """Whether a kind reads tokens and nothing else, as one stack, and can be made small."""
    try:
        config = small_config(kind)
        if config.is_encoder_decoder or config.get_text_config() is not config:
            return False
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in AutoModel.from_config(config).parameters()) < MOST_PARAMETERS
    except Exception:  # noqa: BLE001 (configurations raise whatever they like; what cannot be made cannot be compared)
        return False


MOST_PARAMETERS = 30_000_000


def small_config(kind: str) -> PreTrainedConfig:
    """A configuration of four layers, as narrow as the kind allows."""
    default = AutoConfig.for_model(kind).to_dict()
    overrides = ({"num_key_value_heads": 4} if "kv_lora_rank" in default else {}) | OVERRIDES.get(kind, {})
    known = {name: value for name, value in SIZES.items() if (name in default or name in CORE) and name not in overrides}
    return AutoConfig.for_model(kind, **known, **{name: value for name, value in overrides.items() if value is not None})


def save_model(kind: str, folder: Path) -> Any:
    """A random model of the kind in `folder`, with its head where it can have one, and with a tokenizer of whole words."""
    config = small_config(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        maker = AutoModelForCausalLM if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else AutoModel
        model = maker.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.normal_(std=0.15)  # as initialised, blocks would hardly change the stream
    model.save_pretrained(folder)
    word_tokenizer(VOCABULARY).save_pretrained(folder)


def word_tokenizer(words: int) -> PreTrainedTokenizerFast:
    """A token for each of `w4`, `w5`, ..., whose number is its id, behind the four special ones."""
    vocabulary = {token: number for number, token in enumerate(SPECIAL)} | {f"w{number}": number for number in range(len(SPECIAL), words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=SPECIAL[3]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad, bos, eos, unknown = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unknown)


SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def measured(kind: str, folder: Path) -> Row:
    """Harvest, scan and splice into a small model of the kind, and compare with a plain pass of each row."""
    save_model(kind, folder / "model")
    with patch.object(models, "tokenizer_of", lambda source: PreTrainedTokenizerFast.from_pretrained(source.location)):  # of words, for all
        return _compared(kind, folder)


def _compared(kind: str, folder: Path) -> Row:
    name = str(folder / "model")
    try:
        model = LanguageModel.load(name, head=True)
        LanguageModel.load(name, up_to="embed")
    except TemporalLensError as error:
        return Row(kind, str(error).replace(name, "the folder").replace("model ", "", 1).strip())
    plain = AutoModel.from_pretrained(name).eval()
    differences = [*_harvested(plain, folder), _scanned(plain, name), *_continued(model), *_added(plain, model)]
    traits = model._traits
    return Row(
        kind,
        "encoder" if traits.encoder else "causal",
        " and ".join(sorted(traits.padded, reverse=True)) or "no side",
        "" if traits.first_position is None else str(traits.first_position),
        "above the layer" if all(model._skips[layer] for layer in COMPARED) else "whole pass",
        _adding(model, "attn_out"),
        _adding(model, "mlp_out"),
        _entering(model),
        max(differences),
    )


def _texts() -> list[str]:
    """Documents of several lengths, so that rows stand beside longer ones."""
    return [" ".join(f"w{4 + (7 * word + 11 * text) % (VOCABULARY - 4)}" for word in range(length)) for text, length in enumerate(LENGTHS)]


LENGTHS = [21, 4, 13, 9]
CONTEXT = 24
COMPARED: tuple[Layer, ...] = ("embed", 0, LAYERS // 2)


def _streams(plain: Any, tokens: Tensor) -> dict[Any, Tensor]:
    """The streams of a row alone, by transformers' own account of its hidden states: as a rule behind what enters the first block, in
    some recurrent models from the first block on."""
    with torch.no_grad():
        states = plain(input_ids=tokens[None], output_hidden_states=True, use_cache=False).hidden_states
    layers = range(LAYERS - 1) if plain.config.model_type in FROM_FIRST_BLOCK else ("embed", *range(LAYERS - 1))
    return dict(zip(layers, states, strict=False))


FROM_FIRST_BLOCK = {"falcon_mamba", "mamba", "mamba2", "rwkv"}


def difference(found: Tensor, expected: Tensor) -> float:
    norms = expected.norm(dim=-1).clamp(min=1e-9)
    return float(((found - expected).norm(dim=-1) / norms).max())


def _harvested(plain: Any, folder: Path) -> Iterator[float]:
    """Of what is stored of each row, padded on either side of others."""
    for side in ("right", "left"):
        for layer in COMPARED:
            settings: dict[str, Any] = {
                "dtype": "float32",
                "norm_multiple": None,
                "padding": side,
                "context_length": CONTEXT,
                "batch_size": 3,
            }
            out = folder / f"{side}-{layer}"
            harvest(str(folder / "model"), layer, _texts(), out=out, **settings)
            store = ActivationStore(out)
            for entry in range(store.sequences):
                rows = store.read(np.array([entry]))
                expected = _streams(plain, rows.token)
                if layer in expected:
                    yield difference(rows.x, expected[layer][0])


def _scanned(plain: Any, name: str) -> float:
    """Of the mean norms by index that a scan gives for a layer in the middle."""
    found = scan(name, text=_texts(), context_length=CONTEXT, sequences=len(LENGTHS), compute_dtype="float32")
    model = LanguageModel.load(name, up_to="embed")
    layer = found.layers.index(str(LAYERS // 2))
    rows = [torch.tensor([model.bos, *model.encode(text)]) for text in _texts()]
    norms = [_streams(plain, row)[LAYERS // 2][0].norm(dim=-1) for row in rows]
    expected = [torch.stack([row[index] for row in norms if index < len(row)]).mean() for index in range(max(map(len, norms)))]
    shares = [abs(norm - float(value)) / float(value) for norm, value in zip(found.norm[layer], expected, strict=False) if norm]
    return max(shares)


def _continued(model: LanguageModel) -> Iterator[float]:
    """Of what a model makes of its own stream."""
    tokens = torch.arange(10, 21)[None]
    mask = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        whole = (model._whole if model.has_head else model._stack.network)(input_ids=tokens)
    expected = whole.logits if model.has_head else whole.last_hidden_state
    for layer in (*COMPARED, LAYERS - 1, *_hooks(model)):
        found = model.continued(model.residuals(tokens, mask, [layer])[layer], layer, tokens, mask)
        yield float((found - expected).abs().max())


def _hooks(model: LanguageModel) -> list[Layer]:
    """What the blocks add, as far as it is told apart."""
    return [str(Hook(number, one.site)) for number in range(LAYERS) for one in model.additions(number) if one.site]


def _adding(model: LanguageModel, site: Site) -> str:
    """The modules that give it, and in how many blocks where not in all."""
    found = [one.modules[0] for number in range(LAYERS) for one in model.additions(number) if one.site == site]
    names = ", ".join(dict.fromkeys(found))
    return f"{names} ({len(found)} of {LAYERS} blocks)" if 0 < len(found) < LAYERS else names


def _entries(model: LanguageModel) -> list[Layer]:
    """What MLPs read, as far as it is told apart."""
    return [str(Hook(number, site)) for number in range(LAYERS) for site in model._summed(number).entries]


def _entering(model: LanguageModel) -> str:
    """The modules that are given the stream, and what is behind the norm."""
    found = [model._summed(number).entries for number in range(LAYERS)]
    return ", ".join(dict.fromkeys(f"{own['mlp_in'].module} → {own[BEHIND_NORM].module}" for own in found if BEHIND_NORM in own))


def _added(plain: Any, model: LanguageModel) -> Iterator[float]:
    """Of what the blocks add, and their MLPs read, in rows padded beside others, from what a plain hook sees of each row alone."""
    tokens = torch.arange(4, 4 + 3 * CONTEXT).view(3, CONTEXT)
    mask = torch.arange(CONTEXT) < torch.tensor([[CONTEXT], [13], [5]])
    blocks, seen = block_list(text_stack(plain), "it"), dict[Layer, Tensor]()

    def see(hook: Layer, _module: Any, _arguments: Any, out: Any) -> None:
        own = out[0] if isinstance(out, tuple | list) else out
        seen[hook] = own.reshape(-1, own.shape[-1]).clone()

    def enters(hook: Layer, argument: int | str, _module: Any, arguments: Any, named: Any) -> None:
        see(hook, None, None, arguments[argument] if isinstance(argument, int) else named[argument])

    hooks = [*_hooks(model), *_entries(model)]
    streams = model.residuals(tokens, mask, hooks) if hooks else {}
    for hook, (path, argument) in model._stack.entering.items():
        blocks[block_of(hook)].get_submodule(path).register_forward_pre_hook(partial(enters, hook, argument), with_kwargs=True)
    for hook in streams.keys() - model._stack.entering.keys():
        module = blocks[block_of(hook)].get_submodule(model._stack.adding[hook])
        module.register_forward_hook(partial(see, hook))
    for number, own in enumerate(mask):
        with torch.no_grad():
            plain(input_ids=tokens[number, own][None], use_cache=False)
        yield from (difference(stream[number, own], seen[hook]) for hook, stream in streams.items())


def table(rows: list[Row]) -> str:
    """The table of `docs/models.md`."""
    read, refused = [row for row in rows if row.padded], [row for row in rows if not row.padded]
    lines = [f"{len(read)} architectures are read, {len(refused)} are refused.", ""]
    lines += ["| architecture | | padded on | first position | continued by | attn_out | mlp_out | mlp_in → mlp.hook_in |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    lines += [row.line for row in read]
    lines += ["", "| refused | because |", "|---|---|", *(row.line for row in refused)]
    return "\n".join(lines)


def page(rows: list[Row]) -> str:
    """`docs/models.md` with the table made anew."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Compare the architectures named, or all of them, and write the table where all are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="architectures to look at; by default all")
    requested = parser.parse_args().kinds
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = []
    for kind in requested or filter(is_small, KINDS):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(kind, Path(folder)))
        print(*rows[-1], sep=" | ", flush=True)
    off = [row.kind for row in rows if row.difference > TOLERANCE]
    if off:
        sys.exit(f"not exact: {', '.join(off)}")
    if not requested:
        PAGE.write_text(page(rows), "utf-8")


if __name__ == "__main__":
    main()

"""Every architecture of the installed transformers that reads tokens, small enough to be made in a second."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

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
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [2]},
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": {"layer_types": None},
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


def architectures() -> list[str]:
    """Names of the types of model that predict tokens, causal ones and encoders."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_MASKED_LM_MAPPING_NAMES})


def small_config(kind: str) -> PreTrainedConfig:
    """A configuration of four layers, as narrow as the kind allows."""
    default = AutoConfig.for_model(kind).to_dict()
    own = ({"head_dim": None} if "qk_rope_head_dim" in default else {}) | OWN.get(kind, {})
    known = {name: value for name, value in SIZES.items() if (name in default or name in CORE) and name not in own}
    return AutoConfig.for_model(kind, **known, **{name: value for name, value in own.items() if value is not None})


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
    """`<pad>`, `<s>`, `</s>` and `w3`, `w4`, ...: a token for each word."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="w3")

"""Tiny random models of every family, with a small tokenizer of the family's kind, saved as directories that transformers reads."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    BertConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

LAYERS = 4
WIDTH = 32
CONTEXT = 64
VOCABULARY = 320
TEXTS = [
    "The first man walked on the Moon in July. He took one small step! Was it cold? Nobody said so.\n\nThe second man waited.\nHe waited.",
    "It costs 3.5 dollars. Prices rise, and people talk about prices. They talk, they pay, and they go home.",
    "To the Senate and House of Representatives: the state of the Union is good. We thank you.\n\nA new line begins here and goes on.",
    "Short one.",
    "Rain fell on the hills all night. The river rose. In the morning the bridge was gone, and the road, too.\nThat was the end of it.",
]
COMMON = {
    "num_hidden_layers": LAYERS,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
GROUPED = COMMON | {"num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, Callable[..., PreTrainedConfig]] = {
    "llama": lambda **ids: LlamaConfig(**GROUPED, **ids),
    "gemma2": lambda **ids: Gemma2Config(**GROUPED, sliding_window=8, query_pre_attn_scalar=8, **ids),
    "gemma3": lambda **ids: Gemma3TextConfig(**GROUPED, sliding_window=8, query_pre_attn_scalar=8, **ids),
    "gpt2": lambda **ids: GPT2Config(n_layer=LAYERS, n_embd=WIDTH, n_head=4, n_inner=48, n_positions=CONTEXT, **ids),
    "gpt_neox": lambda **ids: GPTNeoXConfig(**COMMON, **ids),
    "bert": lambda **ids: BertConfig(**COMMON, **ids),
}


def tiny_model(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Save a random model of `family` (a key of FAMILIES) and its tokenizer into `folder`."""
    tokenizer = tiny_tokenizer(family)
    ids = {"vocab_size": VOCABULARY, "pad_token_id": tokenizer.pad_token_id}
    if family != "bert":
        ids |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(FAMILIES[family](**ids))
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.normal_(std=0.15)  # as initialised, blocks would hardly change the stream
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """WordPiece with CLS and SEP for `bert`, byte-level BPE with BOS and EOS for all others."""
    if family == "bert":
        return PreTrainedTokenizerFast(
            tokenizer_object=_word_piece(), unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
        )
    return PreTrainedTokenizerFast(tokenizer_object=_byte_pairs(), bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@cache
def _byte_pairs() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


@cache
def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer

"""Small tokenizers of many kinds, trained on the spot, for what must not depend on the kind."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from temporallens.activations.language.models import LanguageModel

TRAINED_ON = [
    "It costs 3.5 dollars. They said “yes.” She left… But e.g. the U.S. Senate (it rained.) went on!\n\nWhat now? Dr. No came.",
    "A line\r\n  another line, naïve café.\n\n## Head\nfoo.bar(x) at www.example.com/z?a=b.c on Jan. 5.",
    "今日は雨です。明日は「晴れ」です。それで？ Ça va ? यह है। वह था।",
]
SEPARATE = pre_tokenizers.Metaspace(prepend_scheme="always")  # for training alone: no token reaches over a blank


def _pairs(pre_tokenizer: Any, normalizer: Any = None, post_processor: Any = None, training: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, training or pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet() if isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel) else []
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TRAINED_ON, trainer)
    tokenizer.pre_tokenizer = pre_tokenizer
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return tokenizer


def _unigram(normalizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TRAINED_ON, trainer)
    return tokenizer


def _word_pieces(normalizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(TRAINED_ON, trainer)
    return tokenizer


def _bytes(**settings: bool) -> Any:
    return pre_tokenizers.ByteLevel(**settings)


def _llama() -> Any:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def _blanks(*others: Any) -> Any:
    """As SentencePiece does: white space of any kind is one blank, and none is left at the ends."""
    return normalizers.Sequence([*others, normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])


MADE: dict[str, Callable[[], Tokenizer]] = {
    "byte level": lambda: _pairs(_bytes(add_prefix_space=False)),
    "byte level, trimmed offsets": lambda: _pairs(_bytes(add_prefix_space=False), post_processor=processors.ByteLevel(trim_offsets=True)),
    "byte level, prefix space": lambda: _pairs(_bytes(add_prefix_space=True)),
    "byte level, stripped": lambda: _pairs(
        _bytes(add_prefix_space=False), normalizers.Sequence([normalizers.Strip(), normalizers.NFKC(), normalizers.Lowercase()])
    ),
    "prepended": lambda: _pairs(pre_tokenizers.Sequence([]), _llama(), training=SEPARATE),
    "metaspace first": lambda: _pairs(pre_tokenizers.Metaspace(prepend_scheme="first", split=False), training=SEPARATE),
    "metaspace always": lambda: _pairs(pre_tokenizers.Metaspace(prepend_scheme="always")),
    "metaspace never": lambda: _pairs(pre_tokenizers.Metaspace(prepend_scheme="never")),
    "unigram": lambda: _unigram(_blanks(normalizers.NFKC())),
    "word pieces": lambda: _word_pieces(normalizers.BertNormalizer(lowercase=True)),
    "word pieces, cased": lambda: _word_pieces(normalizers.BertNormalizer(lowercase=False)),
    "fives": lambda: _pairs(pre_tokenizers.FixedLength(5)),
}


@cache
def made(kind: str) -> Tokenizer:
    return MADE[kind]()


class Encoding(LanguageModel):
    """As much of a model as tokenises."""

    def __init__(self, tokenizer: Tokenizer | PreTrainedTokenizerFast) -> None:
        whole = isinstance(tokenizer, PreTrainedTokenizerFast)
        self.tokenizer = (
            tokenizer
            if whole
            else PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=getattr(tokenizer.model, "unk_token", "<unk>"))
        )


def encoding(kind: str) -> Encoding:
    return Encoding(made(kind))


def first_characters(text: str, starts: Sequence[int]) -> set[int]:
    """The first character from each of these places on that is not white space."""
    return {len(text) - len(text[start:].lstrip()) for start in starts}

"""Where sentences and lines begin in a text, told from the text alone, so that it is told alike under every vocabulary; and on which
tokens those places fall, by the tokenizer's offsets.

The rule is that of Unicode (UAX #29, sentence boundaries) with what numbers, abbreviations, addresses and code need besides: `.`, `!`,
`?` and `…`, with closing quotes and brackets behind them, end a sentence before white space, unless lower case follows or an
abbreviation goes before; marks that mean nothing else (`。`, `।`, `؟`) and line breaks always do. It is written out here because the
splitters at hand (ICU, sentencex) want to be told the language, which a corpus does not say, and end sentences inside of addresses and
code (`x.y/z?a`, `Foo.Bar()`), or not behind `…` and closing brackets.

A token belongs where its first character that is not white space does, and a token of white space to what it ends.
"""

import re
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

LINE_BREAK = re.compile("\r\n|[\n\r\v\f\x85\u2028\u2029]")
BLANK = r"[^\S\n\r\v\f\x85\u2028\u2029]"  # white space inside a line
SPACE = re.compile(r"\s*")
CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")  # kana and Chinese characters
CAUTIOUS = ".!?…‥"
MARKS = (  # Unicode's Sentence_Terminal without `.`, `!` and `?`, of scripts in use
    "。｡．！？︒︕︖﹒﹖﹗‼⁇⁈⁉‽⸮"  # CJK; doubled and turned
    "\u0589\u061d\u061e\u061f\u06d4\u0700\u0701\u0702\u07f9"  # Armenian, Arabic, Syriac, NKo
    "\u0964\u0965\u104a\u104b\u1362\u1367\u1368\u17d4\u17d5\u1803\u1809"  # India, Burmese, Ethiopic, Khmer, Mongolian
    "\u1944\u1945\u1aa8\u1aa9\u1b5a\u1b5b\u1b5e\u1b5f\u1c3b\u1c3c\u1c7e\u1c7f"  # Limbu, Tai Tham, Balinese, Lepcha, Ol Chiki
    "\ua4ff\ua60e\ua60f\ua6f3\ua6f7\ua92f\ua9c8\ua9c9\uaa5d\uaa5e\uaa5f\uabeb"  # Lisu, Vai, Bamum, Kayah Li, Javanese, Cham, Meitei
)
CERTAIN = frozenset(MARKS)
CLOSING = rf"[\"'”’“‘»«›‹`*_)\]}}）］｝」』】〉》〕〗｠｣]*+(?:\[\d+\])*+(?:{BLANK}[»›”’)\]](?!\S))*+"  # signs of Markdown and footnotes too
MARK = re.compile(rf"(?P<mark>[{CAUTIOUS}{MARKS}]++(?:{BLANK}[.…]++(?!\S))*+)(?P<closing>{CLOSING})(?P<blank>{BLANK}*+)")
"""What may end a sentence, with what closes it and the blanks behind; `. . .` is one mark."""

FOLLOWING = re.compile(r"[\W_]{0,16}+([^\W_]+)")
"""The first word or number behind a place, not far off."""

WORD = re.compile(r"[^\W_][\w.'’]*\Z")
REACH = 16
"""Characters before a full stop in which an abbreviation is looked for."""

DOTTED = re.compile(r"(?:[^\W\d_]{1,2}\.)+[^\W\d_]{1,2}|[^\W\d_]")
"""`U.S`, `p.m`, `Ph.D`, and initials."""

ENUMERATOR = re.compile(r"(?m:^)[\s>#*([-]*(?:\d{1,3}|[^\W\d_]|[ivxIVX]{1,5})\Z")
"""`1`, `a` or `iv` at the beginning of a line, behind signs of Markdown at most."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


INTRODUCING = _words(
    "mr mrs ms messrs mx dr drs prof assoc asst rev hon gen lt col capt cpt maj sgt cpl pvt adm cmdr insp gov pres sen rep supt treas atty "
    "mt sta e.g i.e vs viz cf approx incl resp mme mlle mgr sra srta sig dott hr fr nr z.b d.h u.a bzw ca evtl ggf vgl т.е ул пр тов"
)
"""Abbreviations that stand before what they belong to, and so end no sentence."""

OTHERS = _words("jr sr esq etc al est dept univ assn bros inc ltd co corp sec st ft ave blvd ed eds ibid др")
NUMBERED = _words(
    "no nos nr num pp fig figs vol vols ch chap sec secs sect art arts par para pt eq eqs app tab ref refs "
    "apt rte hwy ext bd kap abs abb jan feb febr mar apr jun jul aug sep sept oct nov dec рис табл стр гл"
)
"""Words that are abbreviations before a number (`No. 5`, `Art. IV`, `Fig. A`)."""

ORDINAL = re.compile(r"(?<![\w.,])\d{1,2}\Z")
MONTHS = _words("Januar Jänner Februar Feber März April Mai Juni Juli August September Oktober November Dezember")
BEFORE_ORDINALS = re.compile(r"\b(?:[Dd](?:er|ie|as|em|en|es)|[Ii]m|[Vv]om|[Zz]u[mr]|[Bb]eim|(?<!I )[Aa]m) \d{1,2}\Z")
"""German writes ordinal numbers with a full stop: `am 3. Oktober`, `im 19. Jahrhundert`."""

NUMBER = re.compile(r"\d.*|[IVXLC]+|[A-Z]")
OPENERS = _words(
    "A An The This That These Those It He She We They You I There Here His Her Its Our Your My Their In On At By For From To With "
    "After Before As If When While Since Because Although Though But And Or So Yet Not Now Then What Who Why How Where Which Is Are "
    "Was Were Do Does Did Can Could Will Would Should Let All Some Many Most Both Each Every One"
)
"""Words that open sentences and no names: only before them a sentence has ended with one of the other abbreviations."""


class Gaps(NamedTuple):
    """The white space between what ends and what begins behind it; all are places in a text, in order."""

    end: Int[np.ndarray, " n"]  # behind the last character that is not white space
    begin: Int[np.ndarray, " n"]  # at the next one


class LineBreaks(NamedTuple):
    """Line breaks, each with the white space that it stands in."""

    gaps: Gaps
    line: Int[np.ndarray, " n"]  # where the next line begins: behind the line break


class Spans(NamedTuple):
    """The characters of a text that its tokens were made of; neither column ever goes back."""

    start: Int[np.ndarray, " T"]
    end: Int[np.ndarray, " T"]


class Starts(NamedTuple):
    """Whether a token is the first of a sentence, or of a line, that follows another."""

    sentence: Bool[np.ndarray, " T"]
    line: Bool[np.ndarray, " T"]


def spans_of(offsets: Sequence[tuple[int, int]]) -> Spans:
    """The spans of a tokenizer's offsets. Some tokenizers leave white space out of them, and a token of nothing else has none then."""
    start, end = np.fromiter(chain.from_iterable(offsets), dtype=np.int64, count=2 * len(offsets)).reshape(-1, 2).T
    end = np.maximum.accumulate(end)
    before = np.concatenate([np.zeros(1, dtype=np.int64), end])[: len(end)]
    return Spans(np.maximum.accumulate(np.where(start < end, start, before)), end)


def starts_in(text: str, spans: Spans) -> Starts:
    """Which tokens of `text` begin a sentence or a line."""
    breaks = find_line_breaks(text)
    sentences = _first_tokens(spans, find_sentence_gaps(text, breaks))
    lines = np.minimum(np.searchsorted(spans.start, breaks.line), _first_tokens(spans, breaks.gaps))  # blanks may begin a line
    return Starts(*(np.isin(np.arange(len(spans.start)), tokens) for tokens in (sentences, lines)))


def _first_tokens(spans: Spans, gaps: Gaps) -> Int[np.ndarray, " n"]:
    """The first token behind each gap that is not white space: it reaches beyond the gap, and does not begin before it."""
    return np.maximum(np.searchsorted(spans.end, gaps.begin, side="right"), np.searchsorted(spans.start, gaps.end))


def find_line_breaks(text: str) -> LineBreaks:
    found = []
    end = begin = 0
    for line_break in LINE_BREAK.finditer(text):
        if line_break.end() > begin:  # else it is in the white space of the one before
            end = begin + len(text[begin : line_break.start()].rstrip())
            begin = _behind_space(text, line_break.end())
        found.append((end, begin, line_break.end()))
    ends, begins, lines = np.array(found, dtype=np.int64).reshape(-1, 3).T
    return LineBreaks(Gaps(ends, begins), lines)


def _behind_space(text: str, index: int) -> int:
    space = SPACE.match(text, index)
    return index if space is None else space.end()


def find_sentence_gaps(text: str, breaks: LineBreaks) -> Gaps:
    """The gaps between sentences.

    Lower case begins none, except in a text most of whose sentences would begin so: one that is written without capitals.
    """
    gaps = list(zip(breaks.gaps.end.tolist(), breaks.gaps.begin.tolist(), strict=True))
    doubtful, capitals = [], int(_first_letter(FOLLOWING.match(text)).isupper())
    for mark in MARK.finditer(text):
        certain = _is_certain(text, mark)
        if not (certain or _stands_apart(text, mark)) or LINE_BREAK.match(text, mark.end()):
            continue
        following = FOLLOWING.match(text, mark.end())
        letter = _first_letter(following)
        if certain or not (letter.islower() or _abbreviates(text, mark, following)):
            gaps.append(mark.span("blank"))
            capitals += letter.isupper()
        elif not (_is_ellipsis(mark) or _abbreviates(text, mark, following)):
            doubtful.append(mark.span("blank"))
    if len(doubtful) > capitals:
        gaps += doubtful
    return Gaps(*np.array(sorted(set(gaps)), dtype=np.int64).reshape(-1, 2).T)


def _first_letter(word: re.Match[str] | None) -> str:
    return "" if word is None else word[1][0]


def _is_certain(text: str, mark: re.Match[str]) -> bool:
    """Whether a mark ends a sentence whatever follows; a full-width stop may stand within a number."""
    return not CERTAIN.isdisjoint(mark["mark"]) and not (mark["mark"] == "．" and text[mark.end() :][:1].isdigit())


def _stands_apart(text: str, mark: re.Match[str]) -> bool:
    """Whether a blank follows a mark, or it stands in a script that has none, where an ellipsis is a pause."""
    if mark["blank"] or _is_ellipsis(mark):
        return mark["blank"] != ""
    return CJK.match(text, mark.start() - 1) is not None and CJK.match(text, mark.end()) is not None


def _is_ellipsis(mark: re.Match[str]) -> bool:
    return mark["mark"].strip("!?") not in ("", ".")


def _abbreviates(text: str, mark: re.Match[str], following: re.Match[str] | None) -> bool:
    """Whether a mark is the full stop of an abbreviation, or of a number in a list, with which no sentence ends."""
    reach = max(0, mark.start() - REACH), mark.start()
    if mark["mark"] != "." or mark["closing"].strip(")] ") or following is None:
        return False
    before = WORD.search(text, *reach)
    word = "" if before is None else before[0].casefold()
    if word in INTRODUCING or (word in NUMBERED and NUMBER.fullmatch(following[1])) or ENUMERATOR.search(text, *reach):
        return True
    if (ORDINAL.search(text, *reach) and following[1] in MONTHS) or BEFORE_ORDINALS.search(text, *reach):
        return True
    opens = following[1] in OPENERS and text[following.end() : following.end() + 1] != "."
    return not opens and (word in OTHERS or DOTTED.fullmatch(word) is not None)

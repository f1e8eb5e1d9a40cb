"""Every sentence with which the program refuses something, gathered from its source, with what to do.

    python -m tools.errors      # writes docs/errors.md anew; a test compares the two

A sentence is what a `TemporalLensError` (or, inside a configuration, a `ValueError`) is made of; what is in braces is filled in. What to
do is the sentence's own last part, behind a semicolon, where that tells somebody to do something, and the advice of its area elsewhere.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SOURCE, PAGE = ROOT / "src" / "temporallens", ROOT / "docs" / "errors.md"
OPENING = """# Every sentence, and what to do

The command line prints `error: ` and one of these, and exits with 2.
Anything else, with a traceback, is a bug.
What is in braces is filled in.
This page is written by `python -m tools.errors`."""
ERRORS = {"TemporalLensError", "CannotWriteError", "DivergedError", "WorthlessError", "ValueError"}
TELLING = re.compile(
    r"^(?:or )?(?:add|allow|annealing|ask|change|check|choose|close|convert|draw|free|give|install|leave|lower|make"
    r"|measure|mend|mount|move|name"
    r"|pass|pip install|put|raise|read|remove|run|save|see|set|take|train|try|use|wait|write)\b"
)
AREAS: dict[str, tuple[str, str]] = {
    "files.py": ("Reading and writing", "mend or remove the file that the sentence names, then give the same command again"),
    "activations/importing": ("Your own arrays", "mend the file or the option that the sentence names"),
    "activations/language/model": ("Models", "name another model or layer, or fetch the model's folder again"),
    "activations/language/shipped": ("Models", "check the network and the package index, then run again"),
    "activations/": ("Text, stores and harvests", "mend the setting or the file that the sentence names; a damaged store can be removed"),
    "dictionaries/saving": ("Saved dictionaries", "train the dictionary again, or fetch its folder again"),
    "dictionaries/": ("Arms", "change the setting of the arm that the sentence names"),
    "training/": ("Training", "change the setting of the training that the sentence names"),
    "evaluation/": ("Evaluation", "change what the sentence names: the setting, the texts or the dictionary"),
    "interop/": ("Other projects' formats", "mend the file that the sentence names, or fetch it again"),
    "figures/": ("Figures and report", "give the figure the data that it needs; in a study: run it again"),
    "report/": ("Figures and report", "run the study again"),
    "study/": ("Study files", "mend the line of the study file that the sentence names"),
    "": ("Command line", "mend the option that the sentence names"),
}


class Sentence(NamedTuple):
    """One refusal."""

    area: str
    text: str
    remedy: str


def _template(node: ast.expr) -> str | None:
    """A string or f-string with its expressions as words in braces; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [_template(side) for side in (node.left, node.right)]
        return "".join(part or "{…}" for part in parts)
    if isinstance(node, ast.IfExp):
        return _template(node.body)
    if not isinstance(node, ast.JoinedStr):
        return None
    return "".join(str(part.value) if isinstance(part, ast.Constant) else _word(part) for part in node.values)


def _word(part: ast.expr) -> str:
    """A short name for what is filled in: the last name of a simple expression."""
    expression = part.value if isinstance(part, ast.FormattedValue) else part
    while isinstance(expression, ast.Attribute | ast.Call | ast.Subscript):
        if isinstance(expression, ast.Attribute):
            return f"{{{expression.attr.strip('_')}}}"
        if isinstance(expression, ast.Call) and isinstance(expression.func, ast.Name) and expression.func.id == "did_you_mean":
            return "{; did you mean …?}"
        expression = expression.func if isinstance(expression, ast.Call) else expression.value
    return f"{{{expression.id.strip('_')}}}" if isinstance(expression, ast.Name) else "{…}"


def _sentences_of(node: ast.expr, functions: dict[str, ast.FunctionDef], depth: int = 3) -> Iterator[str]:
    """The templates that an error's argument may be: itself, or what the functions of its module return that it calls."""
    template = _template(node)
    if template is not None:
        yield template
        return
    called = [part.func for part in ast.walk(node) if isinstance(part, ast.Call)]
    names = [part.attr if isinstance(part, ast.Attribute) else part.id for part in called if isinstance(part, ast.Attribute | ast.Name)]
    for name in names:
        if name in functions and depth:
            for part in ast.walk(functions[name]):
                if isinstance(part, ast.Return) and part.value is not None:
                    yield from _sentences_of(part.value, functions, depth - 1)


def _remedy(text: str) -> str:
    """The remedy that a sentence itself gives."""
    if text.endswith(("{remedy}", "{then}")):
        return "what the end of the sentence says"
    tails = (text.rpartition(mark)[2] for mark in ("; ", ": ") if mark in text)
    return next((tail for tail in tails if TELLING.match(tail)), "")


def sentences() -> list[Sentence]:
    """All of them, by area and in alphabetical order."""
    found: set[Sentence] = set()
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        area, advice = next(AREAS[key] for key in AREAS if name.startswith(key))
        tree = ast.parse(path.read_text("utf-8"))
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS and node.args:
                for text in _sentences_of(node.args[0], functions):
                    found.add(Sentence(area, text, _remedy(text) or advice))
    return sorted(sentence for sentence in found if re.search(r"[a-z]{2,} [a-z{]", sentence.text))


def as_page() -> str:
    """The page as the source now has it."""
    lines = [OPENING]
    area = ""
    for sentence in sentences():
        if sentence.area != area:
            area = sentence.area
            lines += ["", f"## {area}", "", "| sentence | what to do |", "|---|---|"]
        lines.append(f"| {_cell(sentence.text)} | {_cell(sentence.remedy)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


if __name__ == "__main__":
    PAGE.write_text(as_page(), "utf-8")
    print(f"{len(sentences())} sentences in {PAGE}")

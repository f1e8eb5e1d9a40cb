"""`report.html`: the question, the answer for each set of activations, tables, pictures, methods and caveats, in one file.

The sentences come from `answers.py`, the tables of arms from `tables.py`, the others from here; `templates/page.html.j2` lists the
sections, one template each. Everything that comes from data is escaped, and the page's own policy forbids it to load anything.
"""

import base64
import hashlib
import re
import statistics
from collections.abc import Mapping, Sequence
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jinja2

from temporallens.activations.store import ACROSS_DOCUMENTS
from temporallens.dictionaries.kinds import UNTRAINED
from temporallens.errors import TemporalLensError
from temporallens.evaluation.beforehand import in_words
from temporallens.evaluation.results import ActivationsResult, TimedResults
from temporallens.evaluation.scan import Scan, structure_of
from temporallens.files import write_text
from temporallens.report.answers import answers, late_clock, left_out, question
from temporallens.report.browser import Browsed, packed
from temporallens.report.measured import measured_sections
from temporallens.report.next_steps import next_steps
from temporallens.report.tables import section, tuning_table
from temporallens.wording import UNKNOWN, Row, Table, listed, number, percent, setting

THUMBNAIL = 720
"""Pixels: twice the width at which a thumbnail is shown, for screens that have them."""


class Picture(NamedTuple):
    """A figure, ready to be put into the page."""

    caption: str
    data: str  # base64 of the PNG
    width: int
    height: int


class Thumbnail(NamedTuple):
    """A picture made small, which opens the figure that it is of."""

    number: int  # of the figure on the page
    caption: str
    data: str  # base64 of the PNG


class Browser(NamedTuple):
    """The features of one dictionary, ready to be put into the page."""

    title: str
    data: str  # JSON without any `<`


def write_report(
    results: TimedResults,
    figures: Mapping[str, Path],
    study_text: str,
    out: Path,
    browsed: Sequence[Browsed] = (),
    beside: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the page to `out`, in the folder of the run: `figures` maps captions to PNG files in the order shown, `study_text` is the study
    file as it is, `browsed` are the dictionaries whose features can be looked at one by one, the first to open coming first, and `beside`
    says which caption's picture stands beside the answer on an activations entry."""
    pictures = [read_picture(caption, path) for caption, path in figures.items()]
    browsers = [Browser(shown.title, packed(shown)) for shown in browsed]
    numbers = {caption: number for number, caption in enumerate(figures)}
    small = {entry: Thumbnail(numbers[caption], caption, thumbnail(figures[caption])) for entry, caption in beside.items()}
    write_text(out, render(results, pictures, study_text, browsers, small, out.parent))


def read_picture(caption: str, path: Path) -> Picture:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TemporalLensError(f"{path} cannot be read ({error.strerror}): the report shows it; draw the figures again") from error
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 24:
        raise TemporalLensError(f"{path} is not a PNG picture: the report holds PNG only; draw the figures again as png")
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    return Picture(caption, base64.b64encode(content).decode("ascii"), width, height)


def thumbnail(path: Path) -> str:
    """A PNG of at most `THUMBNAIL` pixels in width, in base64."""
    from PIL import Image

    small = BytesIO()
    with Image.open(path) as picture:
        picture.thumbnail((THUMBNAIL, picture.height))
        picture.save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode("ascii")


def render(
    results: TimedResults,
    pictures: Sequence[Picture],
    study_text: str,
    browsers: Sequence[Browser] = (),
    beside: Mapping[str, Thumbnail] = MappingProxyType({}),
    folder: Path = Path(),
) -> str:
    """The page as text; the same arguments give the same text. `folder` is that of the run, as commands call it."""
    code, code_hash = script()
    study, entries, comparison = results.study, results.activations, results.comparison
    trained = any(run.kind not in UNTRAINED for run in results.runs)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            name=results.name,
            question=question(results),
            answers=answers(results),
            beside=beside,
            steps=next_steps(results, folder),
            arms=[
                section(name, entry, results.runs_of(name), comparison[name], study.notes, results.paired.get(name, ()))
                for name, entry in entries.items()
            ],
            pictures=list(pictures),
            measured=measured_sections(results),
            browsers=list(browsers),
            script=code,
            script_hash=code_hash,
            scans=[scan_table(scan) for scan in results.scans.values()],
            defaults=default_table(study.whole, study_text) if trained and any(entry.model for entry in entries.values()) else None,
            policies=policy_table(entries),
            unmasked=unmasked(entries),
            tuning=tuning_table(results.tuning),
            environment=Table("", ["environment", "value"], [Row(key, [setting(value)]) for key, value in results.environment.items()]),
            fingerprint=results.study_fingerprint,
            format=results.format,
            trained=trained,
            left_out=left_out(entries),
            first_left_out=any(entry.excluded["first"] for entry in entries.values()),
            one_seed=len(study.seeds) == 1,
            study_text=study_text,
        )
    )


def environment() -> jinja2.Environment:
    """The templates; what they are given is escaped."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("temporallens.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def script() -> tuple[str, str]:
    """The pages' own script, and its digest: the only code that their policy lets run."""
    code = (files("temporallens.report") / "templates" / "browser.js").read_text("utf-8")
    return code, f"sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode('ascii')}"


# Tables


def scan_table(scan: Scan) -> Table:
    """One row per layer: eta^2 of each clock above its floor, norms and sinks."""
    clocks = scan.clocks.values()
    rows = []
    for depth, layer in enumerate(scan.layers):
        norm, *norms = scan.norm[depth]
        beyond = [value for value in norms if value is not None]
        sinks = [value for value in scan.sinks[depth][1:] if value is not None]
        cells = [
            *(_above_floor(clock.eta2[depth], clock.floor[depth]) for clock in clocks),
            *(_above_floor(clock.late_eta2[depth], clock.late_floor[depth]) for clock in clocks),
            *(_above_floor(*both) for clock in clocks if (both := structure_of(clock, depth)) is not None),
            UNKNOWN if norm is None else number(norm),
            number(statistics.median(beyond)) if beyond else UNKNOWN,
            percent(statistics.fmean(sinks)) if sinks else UNKNOWN,
        ]
        rows.append(Row(layer, cells))
    measured = [*(f"{clock} clock" for clock in scan.clocks), *(f"{clock}, late" for clock in scan.clocks)]
    measured += [f"{name}, structure" for name, clock in scan.clocks.items() if clock.structure]
    columns = ["layer", *measured, "norm at index 0", "median norm beyond", "sinks beyond index 0"]
    known = "" if scan.beforehand is None else f" Known beforehand: {in_words(scan.model, scan.layers, scan.beforehand)}"
    title = f"{scan.model}: η² of each clock above its noise floor (in brackets) by layer, norms and sinks"
    return Table(title, columns, rows, late_clock(scan) + known)


def _above_floor(eta2: float | None, floor: float | None) -> str:
    """A share less its noise floor, which stands beside it."""
    if eta2 is None or floor is None:
        return UNKNOWN
    return f"{percent(max(0.0, eta2 - floor))} ({percent(floor)})"


EXCLUDED = {"first": "left out: index 0", "norm": "left out: sinks by the norm rule", "special": "left out: special tokens"}


def policy_table(entries: Mapping[str, ActivationsResult]) -> Table:
    """The policies of every activations entry side by side, and how many rows each rule left out."""
    keys = list(dict.fromkeys(key for entry in entries.values() for key in entry.policies))
    rows = [Row(key.replace("_", " "), [setting(entry.policies.get(key)) for entry in entries.values()]) for key in keys]
    for key, what in EXCLUDED.items():
        counts = [(entry.excluded[key], entry.rows) for entry in entries.values()]
        rows.append(Row(what, [f"{count:,} ({percent(count / rows_of)})" for count, rows_of in counts]))
    return Table("", ["policy", *entries], rows)


def unmasked(entries: Mapping[str, ActivationsResult]) -> str:
    """The activations entries whose tokens see other documents; empty where there are none."""
    names = [name for name, entry in entries.items() if entry.policies.get(ACROSS_DOCUMENTS)]
    return listed(names) if names else ""


# Defaults of the lab notes


class Default(NamedTuple):
    """A setting of the lab notes and where a study has its own."""

    setting: str
    value: Any
    section: str
    key: str
    why: str  # shown where a study differs


DEFAULTS = (
    Default("model", "google/gemma-2-2b", "activations", "model", "chosen by this study; studies/gemma-2-2b.yaml keeps the notes' model"),
    Default("layer", 19, "activations", "layer", "layers are counted in the model studied, output of block n from 0"),
    Default("context length", 128, "activations", "context_length", "chosen by this study"),
    Default("dictionary size", 2304, "arms", "features", "2304 is the width of the notes' model; this study's models have other widths"),
    Default("learning rate", 0.0003, "training", "learning_rate", "the notes' runs took no step, so theirs is a starting value only"),
    Default("sparsity penalty", 0.04, "arms", "sparsity", "chosen for the L0 it gives"),
    Default("temperature at first", 5.0, "arms", "temperature_start", "chosen by this study"),
    Default("temperature at last", 0.1, "arms", "temperature_end", "chosen by this study"),
    Default("training steps", 0, "training", "steps", "a dictionary that was not trained has no result"),
)


def default_table(study: Mapping[str, Any], study_text: str) -> Table:
    """The lab notes' settings beside the study's; a comment beside the setting in the study file is given as its reason."""
    rows = []
    for default in DEFAULTS:
        values = _values(study[default.section], default.key)
        same = all(value == default.value for value in values)
        comment = None if same else _comment(study_text, default.section, default.key)
        why = (
            "not used in this study"
            if not values
            else "as in the notes"
            if same
            else f"{default.why}{f' (study file: {comment})' if comment else ''}"
        )
        here = listed([setting(value) for value in values]) if values else UNKNOWN
        rows.append(Row(default.setting, [setting(default.value), here, why]))
    return Table("", ["setting", "lab notes", "this study", "why"], rows)


def _values(section: Any, key: str) -> list[Any]:
    """The distinct values of `key` in a section, or in its entries."""
    parts = [section, *section.values()] if isinstance(section, Mapping) else []
    values = [part[key] for part in parts if isinstance(part, Mapping) and key in part]
    found: list[Any] = []
    for value in values:
        if value is not None and not isinstance(value, Mapping) and value not in found:
            found.append(value)
    return found


def _comment(study_text: str, section: str, key: str) -> str | None:
    """The comment that stands behind `key` in a section of the study file."""
    inside = ""
    for line in study_text.splitlines():
        if opened := re.match(r"(\w+):", line):
            inside = opened.group(1)
        found = re.search(rf"^[^#]*\b{re.escape(key)}:[^#]*#\s*(\S.*?)\s*$", line)
        if found and inside == section:
            return found.group(1)
    return None

"""`report.html`: what was asked, the answer for each set of activations, tables, pictures, methods and caveats, in one file.

The sentences come from `answers.py`, the tables of arms from `tables.py`, the others from here; `templates/page.html.j2` lists the
sections, one template each. Everything that comes from data is escaped, and the page's own policy forbids it to load anything.
"""

import base64
import hashlib
import re
import statistics
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from temporallens.activations.store import ACROSS_DOCUMENTS
from temporallens.errors import TemporalLensError
from temporallens.figures.style import number, percent
from temporallens.files import write_text
from temporallens.report.answers import UNKNOWN, answer, asked, known, late_clock, listed, text
from temporallens.report.browser import Browsed, packed
from temporallens.report.measured import measured_sections
from temporallens.report.tables import Row, Table, section


class Picture(NamedTuple):
    """A figure, ready to be put into the page."""

    caption: str
    data: str  # base64 of the PNG
    width: int
    height: int


class Browser(NamedTuple):
    """The features of one dictionary, ready to be put into the page."""

    title: str
    data: str  # JSON without any `<`


def write_report(
    results: Mapping[str, Any], figures: Mapping[str, Path], study_text: str, out: Path, browsed: Sequence[Browsed] = ()
) -> None:
    """Write the page to `out`: `figures` maps captions to PNG files in the order shown, `study_text` is the study file as it is,
    `browsed` are the dictionaries whose features can be looked at one by one."""
    pictures = [read_picture(caption, path) for caption, path in figures.items()]
    write_text(out, render(results, pictures, study_text, [Browser(own.title, packed(own)) for own in browsed]))


def read_picture(caption: str, path: Path) -> Picture:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TemporalLensError(f"{path} cannot be read ({error.strerror}): the report shows it; draw the figures again") from error
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 24:
        raise TemporalLensError(f"{path} is not a PNG picture: the report holds PNG only; draw the figures again as png")
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    return Picture(caption, base64.b64encode(content).decode("ascii"), width, height)


def render(results: Mapping[str, Any], pictures: Sequence[Picture], study_text: str, browsers: Sequence[Browser] = ()) -> str:
    """The page as text; the same arguments give the same text."""
    code, code_hash = script()
    study = results.get("study") or {}
    entries, notes = results.get("activations") or {}, study.get("notes") or {}
    sections = [section(name, entry, own_runs(results, name), comparison_of(results, name), notes) for name, entry in entries.items()]
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            name=results.get("name") or "study",
            asked=asked(results),
            answers=[answer(name, entry, own_runs(results, name), comparison_of(results, name)) for name, entry in entries.items()],
            arms=sections,
            pictures=list(pictures),
            measured=measured_sections(entries, results.get("runs") or [], results.get("gains") or {}),
            browsers=list(browsers),
            script=code,
            script_hash=code_hash,
            scans=[scan_table(model, scan) for model, scan in (results.get("scans") or {}).items()],
            defaults=default_table(study, study_text),
            policies=policy_table(entries),
            unmasked=unmasked(entries),
            environment=Table(
                "", ["environment", "value"], [Row(key, [text(value)]) for key, value in (results.get("environment") or {}).items()]
            ),
            fingerprint=results.get("study_fingerprint") or UNKNOWN,
            format=results.get("format") or UNKNOWN,
            one_seed=len(study.get("seeds") or [0]) == 1,
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


def own_runs(results: Mapping[str, Any], activations: str) -> list[Mapping[str, Any]]:
    """The runs of one activations entry."""
    return [run for run in results.get("runs") or [] if run.get("activations") == activations]


def comparison_of(results: Mapping[str, Any], activations: str) -> Mapping[str, Any]:
    """The comparison of one activations entry; empty where there is none."""
    return (results.get("comparison") or {}).get(activations) or {}


# Tables


def scan_table(model: str, scan: Mapping[str, Any]) -> Table:
    """One row per layer: eta^2 of each clock with its floor, norms and sinks."""
    clocks, layers = scan.get("clocks") or {}, scan.get("layers") or []
    late = any(clock.get("late_eta2") for clock in clocks.values())
    rows = []
    for depth, layer in enumerate(layers):
        cells = []
        for keys in (("eta2", "floor"), ("late_eta2", "late_floor"))[: 2 if late else 1]:
            for clock in clocks.values():
                eta2, floor = (_at(clock.get(key), depth) for key in keys)
                cells.append((percent(eta2) if known(eta2) else UNKNOWN) + (f" ({percent(floor)})" if known(floor) else ""))
        norms = _at(scan.get("norm"), depth) or []
        sinks = _at(scan.get("sinks"), depth) or []
        beyond, sinks_beyond = [value for value in norms[1:] if known(value)], [value for value in sinks[1:] if known(value)]
        cells.append(number(norms[0]) if norms and known(norms[0]) else UNKNOWN)
        cells.append(number(statistics.median(beyond)) if beyond else UNKNOWN)
        cells.append(percent(statistics.fmean(sinks_beyond)) if sinks_beyond else UNKNOWN)
        rows.append(Row(str(layer), cells))
    title = f"{model}: η² of each clock (noise floor) by layer, norms and sinks"
    measured = [*(f"{clock} clock" for clock in clocks), *(f"{clock}, late" for clock in clocks if late)]
    return Table(title, ["layer", *measured, "norm at index 0", "median norm beyond", "sinks beyond index 0"], rows, late_clock(scan))


def _at(values: Any, index: int) -> Any:
    return values[index] if isinstance(values, Sequence) and index < len(values) else None


def policy_table(entries: Mapping[str, Mapping[str, Any]]) -> Table:
    """The policies of every activations entry side by side, and how many rows each rule left out."""
    keys = list(dict.fromkeys(key for entry in entries.values() for key in entry.get("policies") or {}))
    rows = [Row(key.replace("_", " "), [text((entry.get("policies") or {}).get(key)) for entry in entries.values()]) for key in keys]
    for key, what in (
        ("first", "left out: index 0"),
        ("norm", "left out: sinks by the norm rule"),
        ("special", "left out: special tokens"),
    ):
        rows.append(Row(what, [_share_of_rows(entry, key) for entry in entries.values()]))
    return Table("", ["policy", *entries], rows)


def unmasked(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The activations entries whose tokens see other documents; empty where there are none."""
    names = [name for name, entry in entries.items() if (entry.get("policies") or {}).get(ACROSS_DOCUMENTS)]
    return listed(names) if names else ""


def _share_of_rows(entry: Mapping[str, Any], key: str) -> str:
    count, rows = (entry.get("excluded") or {}).get(key), entry.get("rows")
    if not known(count):
        return UNKNOWN
    return f"{count:,} ({percent(count / rows)})" if known(rows) and rows else f"{count:,}"


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
        values = _values(study.get(default.section) or {}, default.key)
        same = all(value == default.value for value in values)
        comment = None if same else _comment(study_text, default.section, default.key)
        why = (
            "not used in this study"
            if not values
            else "as in the notes"
            if same
            else f"{default.why}{f' (study file: {comment})' if comment else ''}"
        )
        rows.append(Row(default.setting, [text(default.value), listed([text(value) for value in values]) if values else UNKNOWN, why]))
    return Table("", ["setting", "lab notes", "this study", "why"], rows)


def _values(section: Mapping[str, Any], key: str) -> list[Any]:
    """The distinct values of `key` in a section, or in its entries."""
    places = [section, *(entry for entry in section.values() if isinstance(entry, Mapping))]
    found: list[Any] = []
    for own in places:
        if own.get(key) is not None and not isinstance(own[key], Mapping) and own[key] not in found:
            found.append(own[key])
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

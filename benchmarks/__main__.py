"""Every benchmark in one command.

    python -m benchmarks [--json FILE] [--rounds N] [--only NAME ...] [--write-docs]

Prints a table of what was measured and of every ratio; `--json` writes the ratios under stable keys, `--write-docs` the page
docs/performance.md and its picture. Other libraries take part where `make peers` has installed them.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import expectations, harvest, memory, openness, scale, scaling, training_step
from benchmarks.report import as_text, write_docs
from benchmarks.timing import Section, Settings, Sizes, busy, processor

SECTIONS: dict[str, Callable[[Settings], Section]] = {
    "training_step": training_step.measure,
    "openness": openness.measure,
    "expectations": expectations.measure,
    "scaling": scaling.measure,
    "memory": memory.measure,
    "harvest": harvest.measure,
    "scale": scale.measure,
}


def as_json(sections: Sequence[Section], settings: Settings) -> dict[str, Any]:
    """Ratios by key, null where something needed is missing; and under `details` what they were computed from."""
    ratios: dict[str, Any] = {key: value for section in sections for key, value in section.ratios.items()}
    details = {
        "torch": version("torch"),
        "processor": processor(settings.torch_device),
        "settings": asdict(settings),
        "seconds": {section.name: section.times for section in sections if section.times},
        "curves": {section.name: section.curves for section in sections if section.curves},
        "notes": {name: note for section in sections for name, note in section.notes.items()},
    }
    return ratios | {"details": details}


def main(arguments: Sequence[str] | None = None, settings: Settings | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every ratio under its key")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which medians are taken (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="NAME", help=f"some of {', '.join(SECTIONS)}")
    parser.add_argument("--write-docs", action="store_true", help="write docs/performance.md and its picture")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="%(default)s unless said otherwise")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that everything runs; the numbers mean little")
    parser.add_argument("--docs", type=Path, default=Path(__file__).parents[1] / "docs", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.write_docs and chosen.only:
        parser.error("--write-docs writes the whole page and needs every benchmark: leave out --only")
    if chosen.write_docs and chosen.small:
        parser.error("--write-docs writes numbers that are to mean something: leave out --small")
    settings = settings or Settings(sizes=Sizes(width=144, features=1152, k=8, batch=1024) if chosen.small else Sizes())
    settings = replace(settings, rounds=chosen.rounds, device=chosen.device)
    if warning := busy():
        print(f"warning: {warning}", file=sys.stderr)
    sections = []
    for name in chosen.only or SECTIONS:
        sections.append(SECTIONS[name](settings))
        print(as_text(sections[-1]), flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(as_json(sections, settings), indent=2) + "\n")
    if chosen.write_docs:
        write_docs(sections, settings, chosen.docs)


if __name__ == "__main__":
    main()

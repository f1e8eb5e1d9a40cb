"""Changed at random, a file is refused or gives what the whole one gave; `python -m tools.fuzz` does the same ten thousand times."""

import ast
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tools.fuzz import FORMATS, STUDY, Format, fuzz, in_time

from temporallens.activations.importing import LARGEST_UNPACKED, read_array
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.posthoc import PostHoc
from temporallens.dictionaries.saving import load_dictionary, save_dictionary
from temporallens.errors import TemporalLensError
from temporallens.files import inside, read_json, sha256, write_json
from temporallens.study.reading import read_study

SOURCES = sorted((Path(__file__).parents[2] / "src").rglob("*.py"))


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_changed_at_random_is_refused_or_gives_what_the_whole_one_gave(name: str, tmp_path: Path) -> None:
    cases = 60
    tally = fuzz(name, range(cases), 1, tmp_path)
    assert tally.findings == []
    assert tally.refused + tally.same + tally.other == cases
    assert tally.refused > 0


def test_a_reader_that_notices_nothing_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measuring itself: a reader without checksums, one that crashes, and one that hangs."""

    def made(folder: Path) -> Path:
        (folder / "x").write_bytes(b"0123456789" * 10)
        return folder / "x"

    def crash(folder: Path) -> bytes:
        content = (folder / "x").read_bytes()
        if len(content) != 100:
            raise KeyError(len(content))
        return content

    def hang(folder: Path) -> bytes:
        content = (folder / "x").read_bytes()
        while content != b"0123456789" * 10:
            pass
        return content

    monkeypatch.setattr("tools.fuzz.SECONDS", 1)
    for number, (read, word) in enumerate([(lambda f: (f / "x").read_bytes(), "nobody noticed"), (crash, "KeyError"), (hang, "no answer")]):
        monkeypatch.setitem(FORMATS, "bare", Format(made, read))
        found = fuzz("bare", range(8 if read is not hang else 1), 0, tmp_path / str(number)).findings
        assert any(word in finding.what for finding in found), word


# Hostile on purpose


def test_nothing_is_unpickled_and_no_code_of_a_file_is_run() -> None:
    forbidden = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve"}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not forbidden & {name.split(".")[0] for name in names}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "compile", "yaml.load", "yaml.unsafe_load", "os.system"}, (path, called)
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert called != "torch.load" or given["weights_only"] == "True", path
                assert given.get("allow_pickle", "False") == "False", path
                assert given.get("trust_remote_code", "False") == "False", path
                assert given.get("shell", "False") == "False", path


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "link/x", "x\0y"])
def test_names_that_lead_out_of_a_folder_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path)
    with pytest.raises(TemporalLensError, match="which lies outside of it; refusing to open it"):
        inside(tmp_path / "folder", name)


def stranger(store: ActivationStore, **changes: object) -> None:
    """Somebody else's manifest, checksum and all."""
    manifest = read_json(store.folder / "manifest.json", "a manifest")
    write_json(store.folder / "manifest.json", manifest | changes)


@pytest.fixture
def small(tmp_path: Path) -> ActivationStore:
    return ActivationStore.from_arrays(np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32), tmp_path / "store")


def test_a_shard_that_is_a_link_out_of_the_store_is_refused(small: ActivationStore, tmp_path: Path) -> None:
    shard = small.folder / "shard-00000.safetensors"
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TemporalLensError, match="refusing to open it"):
        ActivationStore(small.folder)


@pytest.mark.parametrize("field", ["width", "positions", "rows", "shard rows"])
def test_a_store_that_promises_more_than_it_holds_is_refused_before_memory_is_taken(small: ActivationStore, field: str) -> None:
    manifest = small.manifest.model_dump(mode="json")
    if field in {"width", "positions"}:
        stranger(small, description=manifest["description"] | {field: 1 << 39})
    elif field == "rows":
        stranger(small, rows=1 << 39)
    else:
        stranger(small, rows=1 << 39, shards=[manifest["shards"][0] | {"rows": 1 << 39}])
    with pytest.raises(TemporalLensError, match=r"contradicts itself|is damaged"):
        ActivationStore(small.folder).read(np.arange(6))


def test_a_sequence_table_that_points_beyond_its_shards_is_refused(small: ActivationStore) -> None:
    from temporallens.files import read_tensors, write_tensors

    path = small.folder / "index.safetensors"
    tensors, _ = read_tensors(path, "the table")
    for name, value in (("start", 10**12), ("start", -5), ("shard", 7), ("length", 0)):
        changed = tensors[name].clone()
        changed[2] = value
        write_tensors(path, tensors | {name: changed})
        stranger(small, index_sha256=sha256(path))
        with pytest.raises(TemporalLensError, match="its sequence table names rows that its shards do not have"):
            ActivationStore(small.folder).read(np.arange(6))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"positions": 1 << 20}, "does not fit a 'posthoc' dictionary: position_groups"),
        ({"positions": 1 << 60}, "does not describe an arm that this version knows: positions"),
        ({"positions": "9"}, "does not fit|does not describe"),
        ({"position_policy": {"a": 1}}, "does not describe"),
        ({"state": None, "weights_sha256": []}, "checksum"),
        ({"arm": {"kind": "posthoc", "features": 16, "k": 2, "groups": 1 << 40}}, "groups"),
        ({"arm": {"kind": "posthoc", "features": 1 << 24, "k": 2, "groups": 3}}, "contradicts itself"),
        ({"arm": {"kind": "nothing"}}, "does not describe an arm"),
        ({"arm": {"kind": "positional", "features": 16, "k": 2, "groups": "smooth", "length": 1 << 20}}, "does not fit a 'positional'"),
    ],
)
def test_a_dictionary_that_promises_more_than_it_holds_is_refused_before_memory_is_taken(
    tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    arm = PostHoc(features=16, k=2, groups=3)
    save_dictionary(arm.make(4, 8, torch.Generator()), tmp_path, arm, 8)
    config = read_json(tmp_path / "cfg.json", "a configuration")
    config["metadata"]["temporallens"] |= changes
    write_json(tmp_path / "cfg.json", config)
    with pytest.raises(TemporalLensError, match=sentence):
        load_dictionary(tmp_path)


def npy_header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize("shape", [(1 << 40, 3, 2), (1 << 62, 1 << 62, 4), (-3, 4, 2), (10, 10, 10)])
def test_an_array_that_promises_more_than_its_file_holds_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "x.npy").write_bytes(npy_header(shape) + bytes(100))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy_header(shape) + bytes(100))
    for name in ("x.npy", "x.npz"):
        with pytest.raises(TemporalLensError, match=f"{name} is not readable"):
            read_array(tmp_path / name)


@pytest.mark.parametrize(("size", "sentence"), [(LARGEST_UNPACKED - 1, "packed ones cannot hold"), (LARGEST_UNPACKED + 1, "cannot hold")])
def test_a_bomb_in_an_archive_is_refused(tmp_path: Path, size: int, sentence: str) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=np.zeros((4, 3, 2), np.float32))
    content = path.read_bytes()
    central = content.rindex(b"PK\x01\x02")
    path.write_bytes(content[: central + 24] + struct.pack("<I", min(size, 2**32 - 2)) + content[central + 28 :])
    with pytest.raises(TemporalLensError, match=sentence):
        read_array(path)


def test_an_archive_that_unpacks_to_more_than_memory_should_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("temporallens.activations.importing.LARGEST_UNPACKED", 1000)
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((40, 3, 2), np.float32))
    with pytest.raises(TemporalLensError, match=r"unpacks to 0.0 GB in memory; save the array as .npy"):
        read_array(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "bomb",
    [
        "notes: &a {x: &b [*c]}",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n" + "".join(f"d{n}: &d{n} [*c, *c, *c, *c]\n" for n in range(50)),
        "seeds: [" + "*s, " * 5 + "]",
        "seeds: &s [1, 2]\nlevels: {k: [" + "*s, " * 10_000 + "]}",
        "notes: {" + "{" * 20_000,
        "notes: !!timestamp x",
        "threads: !!int ''",
        "notes: !!bool maybe",
        "threads: 1e999",
        "? " * 3000,
    ],
)
def test_a_study_that_is_a_bomb_is_refused_in_time(tmp_path: Path, bomb: str) -> None:
    text = "\n".join(line for line in STUDY.splitlines() if line.partition(":")[0] not in {"notes", "seeds", "levels", "threads"})
    (tmp_path / "study.yaml").write_text(f"{text}\n{bomb}\n")
    with in_time(), pytest.raises(TemporalLensError, match=r"study\.yaml"):
        read_study(tmp_path / "study.yaml")

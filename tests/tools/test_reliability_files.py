"""Files: any damage is found before content is used, what was whole before is offered, and nobody writes beside another process."""

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tools.errors import PAGE, as_page, sentences

from temporallens.activations import importing, writer
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.dictionaries.saving import load_dictionary, save_dictionary
from temporallens.errors import CannotWriteError, TemporalLensError
from temporallens.files import abandon, locked, read_json, read_tensors, tensor_digest, write_json, write_tensors
from temporallens.study.reading import read_copy, write_copy
from temporallens.training.checkpoint import FORMAT, Checkpoints, begun_trainings, checkpoint_file, load_checkpoint, save_checkpoint
from temporallens.training.snapshots import snapshot_file

SHARED = torch.arange(6.0)
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3.0), "flags": torch.tensor([True, False])}
VALUE = {"stage": "train/a", "finished": True, "fve": [0.8312, None, 1e-05], "nested": {"checksum": 1}}


def every_bit(content: bytes) -> list[bytes]:
    """The content with each of its bits flipped."""
    places = ((place, bit) for place in range(len(content)) for bit in range(8))
    return [content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :] for place, bit in places]


def every_cut(content: bytes) -> list[bytes]:
    return [content[:length] for length in range(len(content))]


@pytest.mark.parametrize("value", [VALUE, {}, {"only": []}])
def test_any_flipped_bit_or_truncation_of_a_json_file_is_found(tmp_path: Path, value: dict[str, object]) -> None:
    path = tmp_path / "x.json"
    write_json(path, value)
    assert read_json(path, "a record") == value
    content = path.read_bytes()
    for damaged in every_bit(content) + every_cut(content):
        path.write_bytes(damaged)
        with pytest.raises(TemporalLensError, match=r"x\.json"):
            read_json(path, "a record")


def test_any_flipped_bit_or_truncation_of_the_study_that_a_run_keeps_is_found(tmp_path: Path) -> None:
    path, text = tmp_path / "study.yaml", "name: tiny\nactivations: {world: {source: world}}\narms: {a: {kind: batchtopk}}\ntraining: {}\n"
    write_copy(path, text)
    content = path.read_bytes()
    assert read_copy(path).text == text
    for damaged in every_bit(content) + every_cut(content):
        path.write_bytes(damaged)
        with pytest.raises(TemporalLensError, match=re.escape(str(path))):
            read_copy(path)


def test_flipped_bits_and_truncations_of_a_checkpoint_are_found(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-0.safetensors"
    save_checkpoint(path, TENSORS, {"step": 30, "cursor": [0, 1, 64]})
    tensors, state = load_checkpoint(path)
    assert tensor_digest(tensors) == tensor_digest(TENSORS)
    assert state == {"step": 30, "cursor": [0, 1, 64]}
    content = path.read_bytes()
    for damaged in (every_bit(content) + every_cut(content))[::3]:  # 3 and 8 have no common factor: every bit of a byte has its turn
        path.write_bytes(damaged)
        with pytest.raises(TemporalLensError, match=r"checkpoint-0\.safetensors.*; remove it to start the training again"):
            load_checkpoint(path)


def test_flipped_bits_of_a_dictionary_are_found(tmp_path: Path) -> None:
    arm = BatchTopK(features=3, k=1)
    save_dictionary(arm.make(2, 4, torch.Generator().manual_seed(0)), tmp_path, arm, 4)
    load_dictionary(tmp_path)
    for name, step in (("cfg.json", 23), ("sae_weights.safetensors", 9)):
        path = tmp_path / name
        content = path.read_bytes()
        for damaged in every_bit(content)[::step]:
            path.write_bytes(damaged)
            with pytest.raises(TemporalLensError, match=r"cfg\.json|sae_weights\.safetensors"):
                load_dictionary(tmp_path)
        path.write_bytes(content)


def test_weights_and_configuration_that_were_not_saved_together_are_refused(tmp_path: Path) -> None:
    arm = BatchTopK(features=3, k=1)
    for seed in (0, 1):
        save_dictionary(arm.make(2, 4, torch.Generator().manual_seed(seed)), tmp_path / str(seed), arm, 4)
    (tmp_path / "0" / "cfg.json").write_bytes((tmp_path / "1" / "cfg.json").read_bytes())
    with pytest.raises(TemporalLensError, match="the two were not saved together"):
        load_dictionary(tmp_path / "0")


def test_files_without_a_checksum_are_read_only_where_other_programs_write_them_too(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    json_path, tensors_path = tmp_path / "x.json", tmp_path / "x.safetensors"
    json_path.write_text(json.dumps(VALUE))
    save_file(TENSORS, tensors_path, {"format": "pt"})
    with pytest.raises(TemporalLensError, match=r"x\.json, a record, does not have the checksum that it should"):
        read_json(json_path, "a record")
    with pytest.raises(TemporalLensError, match=r"x\.safetensors, tensors, does not have the checksum that it should"):
        read_tensors(tensors_path, "tensors")
    assert read_json(json_path, "a record", foreign=True) == VALUE
    tensors, metadata = read_tensors(tensors_path, "tensors", foreign=True)
    assert metadata is None
    assert tensor_digest(tensors) == tensor_digest(TENSORS)


def test_metadata_goes_with_tensors_and_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tensors(tmp_path / name, TENSORS, {"format": "x/1", "checksums": 3})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert read_tensors(tmp_path / "one", "tensors")[1] == {"format": "x/1", "checksums": 3}


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("link")
    for name in ("pipe", "folder"):
        with pytest.raises(TemporalLensError, match="is no file: it should be a record"):
            read_json(tmp_path / name, "a record")
        with pytest.raises(TemporalLensError, match="is no file: it should be a record"):
            read_tensors(tmp_path / name, "a record")
    with pytest.raises(TemporalLensError, match="cannot be read"):
        read_json(tmp_path / "link", "a record")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, '{"a": NaN}', '{"a": -Infinity}', "", "\ufeff{}"])
def test_json_that_would_overflow_something_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(TemporalLensError, match="is not readable as a record"):
        read_json(tmp_path / "x.json", "a record")


def test_a_huge_json_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(1 << 40)  # sparse: it takes no disk
    with pytest.raises(TemporalLensError, match="is larger than"):
        read_json(tmp_path / "x.json", "a record")


# Checkpoints


def saved(folder: Path, *steps: int) -> Path:
    path = checkpoint_file(folder, {"settings": 1})
    checkpoints = Checkpoints(path)
    for step in steps:
        checkpoints.save({"x": torch.full((2,), float(step))}, {"step": step})
    return path


def test_the_last_two_checkpoints_are_kept_and_the_newer_one_is_gone_on_from(tmp_path: Path) -> None:
    path = saved(tmp_path, 10, 20, 30)
    assert len(list(tmp_path.iterdir())) == 2
    fresh = Checkpoints(path)
    assert fresh.load()[1] == {"step": 30}
    fresh.save({"x": torch.zeros(2)}, {"step": 40})  # over that of step 20
    assert sorted(load_checkpoint(file)[1]["step"] for file in tmp_path.iterdir()) == [30, 40]
    fresh.remove()
    assert not list(tmp_path.iterdir())
    assert Checkpoints(path).load() is None


def test_what_was_begun_is_told_with_its_runs(tmp_path: Path) -> None:
    first, second, third = (checkpoint_file(tmp_path, {"settings": number}) for number in range(3))
    for step in (10, 20):
        Checkpoints(first).save({"x": torch.zeros(2)}, {"step": step, "seconds": {"a": 0.5, "b": 1.0}})
    save_checkpoint(snapshot_file(first, "a", 5), {"x": torch.zeros(2)}, {})
    save_checkpoint(snapshot_file(second, "c", 5), {"x": torch.zeros(2)}, {})
    assert begun_trainings(tmp_path) == {first: ["a", "b"], second: []}
    for said in ({"step": None}, {"step": 1, "seconds": 5}, []):  # no state of ours: no run is named, and nothing ends in a traceback
        write_tensors(third, {"x": torch.zeros(2)}, {"format": FORMAT, "state": json.dumps(said)})
        assert begun_trainings(tmp_path)[third] == []
    third.write_bytes(b"damaged")
    with pytest.raises(TemporalLensError, match=f"{third.name} .*remove it to start the training again"):
        begun_trainings(tmp_path)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_offered(tmp_path: Path) -> None:
    path = saved(tmp_path, 10, 20)
    newest = next(file for file in tmp_path.iterdir() if load_checkpoint(file)[1]["step"] == 20)
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    with pytest.raises(TemporalLensError, match=rf"damaged; remove {newest.name} to go on from the one before it, of step 10"):
        Checkpoints(path).load()
    other = next(file for file in tmp_path.iterdir() if file != newest)
    whole = other.read_bytes()
    other.write_bytes(whole[:-1])
    with pytest.raises(TemporalLensError, match=r"is damaged too: remove both to start the training again"):
        Checkpoints(path).load()
    other.write_bytes(whole)
    newest.unlink()  # as the sentence says
    assert Checkpoints(path).load()[1] == {"step": 10}


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    path = checkpoint_file(tmp_path, {})
    write_tensors(path, TENSORS, {"format": "temporallens.checkpoint/1", "state": "{}"})
    with pytest.raises(TemporalLensError, match="is not a checkpoint of this version of TemporalLens"):
        Checkpoints(path).load()


# Several processes, and what killed ones leave

HOLD = """
import sys, time
from pathlib import Path
from temporallens.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_ends_however_it_ends(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(TemporalLensError, match="store is in use by another temporallens process"):
            ActivationStore.from_arrays(x, tmp_path / "store")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert ActivationStore.from_arrays(x, tmp_path / "store").sequences == 4


def test_what_killed_processes_left_is_swept_away_and_nothing_else(tmp_path: Path) -> None:
    inner = tmp_path / "arms" / "x"
    inner.mkdir(parents=True)
    ours = [tmp_path / ".study.yaml.abcd1234.partial", inner / ".cfg.json.x_7q0zzz.partial"]
    theirs = [tmp_path / ".partial", tmp_path / ".letter.partial", inner / "cfg.json.abcd1234.partial"]
    for path in ours + theirs:
        path.write_text("half")
    with locked(tmp_path):
        assert not [path for path in ours if path.exists()]
    assert all(path.exists() for path in theirs)


def test_a_foreign_folder_is_refused_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(TemporalLensError, match=r"is not empty \(it holds 'letter.txt'\)"):
        ActivationStore.from_arrays(np.ones((4, 3, 2), np.float32), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_folder_is_abandoned_only_when_it_is_empty(tmp_path: Path) -> None:
    with locked(tmp_path / "empty"):
        abandon(tmp_path / "empty")
    assert not (tmp_path / "empty").exists()
    with locked(tmp_path / "full"):
        (tmp_path / "full" / "x").write_text("")
        abandon(tmp_path / "full")
    assert (tmp_path / "full" / "x").exists()


def test_an_import_for_which_the_disk_is_too_small_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "CHUNK_BYTES", 1)
    monkeypatch.setattr(writer, "StoreWriter", partial(writer.StoreWriter, shard_bytes=1))
    x = np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32)
    write, written = writer.write_tensors, []

    def full(path: Path, *rest: object) -> str:
        if path.name == "shard-00003.safetensors":
            raise CannotWriteError(f"cannot write {path}: no space is left on the disk")
        written.append(path.name)
        return write(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_tensors", full)
        with pytest.raises(CannotWriteError, match="shard-00003"):
            ActivationStore.from_arrays(x, tmp_path / "store")
    assert len(list((tmp_path / "store").glob("shard-*"))) == 3
    again = ActivationStore.from_arrays(x, tmp_path / "store")
    assert torch.equal(again.read(np.arange(6)).x, torch.from_numpy(x).flatten(0, 1))
    assert isinstance(again, ActivationStore)


def test_every_sentence_is_listed_in_the_documentation_with_what_to_do() -> None:
    assert len(sentences()) > 250
    assert all(sentence.remedy for sentence in sentences())
    assert PAGE.read_text("utf-8") == as_page(), "run `python -m tools.errors`"


@pytest.mark.parametrize(
    "tensors",
    [
        {"one": torch.tensor(3.0).expand(1), "row": torch.arange(3.0)[None].T, "many": torch.tensor(3.0).expand(2, 1, 3)},
        {"whole": SHARED, "part": SHARED[2:5], "turned": SHARED.view(2, 3).T, "stepped": SHARED[::2]},
        {
            "scalar": torch.tensor(2.0),
            "empty": torch.zeros(0, 3),
            "parameter": torch.nn.Parameter(torch.ones(1)),
        },
        {"bits": torch.tensor([[1.0], [2.0]], dtype=torch.bfloat16).T, "truth": torch.tensor(True).expand(1, 1)},
    ],
)
def test_tensors_of_any_stride_are_written_as_they_read(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    digest = write_tensors(tmp_path / "x.safetensors", tensors)
    back, _ = read_tensors(tmp_path / "x.safetensors", "a test")
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert digest == tensor_digest(back) == tensor_digest(tensors)

"""Export with a card of what the run measured, and to a hub that is a small server on this machine."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import temporallens as tl
from temporallens.cli import app
from temporallens.errors import TemporalLensError
from temporallens.evaluation.results import load_results
from temporallens.interop import pushing
from temporallens.interop.card import PICTURE, by_octave
from temporallens.layout import RunFolder
from temporallens.study.reading import read_study
from temporallens.study.run import run_study
from temporallens.study.sharing import measured_in, share
from tiny_studies import draw_headline_alone

STUDY = """\
name: shared
threads: 1
activations:
  world:
    {source: world, width: 16, features: 24, positions: 16, sequences: 64, start: 3, periods: [4], active: 2, highest_rate: 0.2}
arms: {topk: {kind: topk, features: 32, k: 3}}
training: {steps: 12, batch_size: 64, learning_rate: 0.005, log_every: 6, held_out: 0.25}
"""


class Hub(BaseHTTPRequestHandler):
    """Repositories to which files are committed, as the hub's client does it: made, asked about, large files put, and a commit."""

    protocol_version = "HTTP/1.1"
    commit = "a" * 40
    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[tuple[str, str, Any]]] = []
    refuses: ClassVar[dict[str, int]] = {}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        lines = [json.loads(line) for line in body.decode().splitlines() if line.strip().startswith("{")]
        self.asked.append((path, self.headers.get("Authorization", ""), lines))
        refused = next((status for part, status in self.refuses.items() if part in path), None)
        if refused is not None:
            self._answer({"error": "You don't have the rights"}, refused)
        elif path == "/api/repos/create":
            self._answer({"url": f"http://{self.headers['Host']}/user/name", "id": "1", "name": "user/name"})
        elif path == "/api/validate-yaml":
            content = json.loads(body)["content"]
            yaml.safe_load(content.split("---")[1])
            self._answer({"errors": [], "warnings": []})
        elif "/branch/" in path:
            self._answer({})
        elif "/preupload/" in path:
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular"}
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": [mode | {"shouldIgnore": False, "oid": None} for mode in modes]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**own, "actions": {"upload": {"href": f"http://{self.headers['Host']}/lfs/{own['oid']}"}}} for own in lines[0]["objects"]
            ]
            self._answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            for line in lines:
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    self.files[line["value"]["path"]] = self.files.pop(line["value"]["oid"])
            self._answer({"commitOid": self.commit, "commitUrl": f"http://{self.headers['Host']}/user/name/commit/{self.commit}"})
        else:
            self._answer({"error": "no such page"}, 404)

    def do_PUT(self) -> None:
        self.files[self.path.rpartition("/")[2]] = b"".join(self._pieces())
        self._answer({})

    def _pieces(self) -> Iterator[bytes]:
        """A body of known length, or in chunks, each behind its size."""
        if "Content-Length" in self.headers:
            yield self.rfile.read(int(self.headers["Content-Length"]))
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def do_GET(self) -> None:
        there = not any(part in "/api/repos/create" for part in self.refuses)
        self._answer({"id": "user/name", "sha": self.commit, "siblings": []}, 200 if there else 404)

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """In silence."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    from huggingface_hub import close_session, constants
    from huggingface_hub.hf_api import HfApi

    close_session()  # whatever connections it holds are to a server that is gone

    for kept in (Hub.files, Hub.asked, Hub.refuses):
        kept.clear()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: HfApi(endpoint=endpoint))
        yield Hub
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shared")
    (root / "study.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        draw_headline_alone(patch)
        run_study(read_study(root / "study.yaml"), root / "out", up_to="evaluate")
    return root / "out"


def arm(run: Path) -> Path:
    return RunFolder(run).arm(load_results(run).runs[0].id)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("alone")
    x = 1 + np.random.default_rng(0).normal(size=(40, 12, 8)).astype(np.float32)
    return tl.train(tl.ActivationStore.from_arrays(x, root / "store"), tl.TopK(features=24, k=3), 20, root / "arm", batch_size=64).folder


def test_the_card_has_what_the_run_measured_and_a_picture(run: Path, tmp_path: Path) -> None:
    assert share(arm(run), "saelens", tmp_path / "out", licence="mit") == str(tmp_path / "out")
    text, (measured,) = (tmp_path / "out" / "README.md").read_text(), load_results(run).runs
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "tags": ["sparse-autoencoder", "interpretability", "temporallens", "saelens"],
        "library_name": "saelens",
        "license": "mit",
    }
    assert f"FVE {measured.fve:.4f}" in body and f"L0 {measured.l0:.1f}" in body and f"![FVE and L0 by position]({PICTURE})" in body
    assert (tmp_path / "out" / PICTURE).read_bytes().startswith(b"\x89PNG")
    rows = [line for line in body.splitlines() if line.startswith("| ") and "positions" not in line]
    assert [row.split(" | ")[0] for row in rows] == ["| 1", "| 2 to 3", "| 4 to 7", "| 8 to 15"]
    for library in ("SAELens", "sparsify", "dictionary_learning", "TemporalLens"):
        assert f"With {library}:" in body
    assert "Licence: mit." in body
    assert tl.load_dictionary(tmp_path / "out").features == 32


def test_octaves_are_pooled_over_tokens(run: Path) -> None:
    (measured,) = load_results(run).runs
    found = by_octave(measured)
    assert sum(octave.tokens for octave in found) == measured.held_out_tokens
    assert sum(octave.l0 * octave.tokens for octave in found) / measured.held_out_tokens == pytest.approx(measured.l0)
    assert found[0].fve == pytest.approx(measured.position_fve[1])
    errors = [loss * n for loss, n in zip(measured.position_loss, measured.position_count, strict=True) if loss is not None]
    spread = [error / (1 - fve) for error, fve in zip(errors, measured.position_fve[1:], strict=True) if fve is not None]
    assert 1 - sum(errors) / sum(spread) == pytest.approx(measured.fve_within_position)
    assert 1 - sum(errors[7:]) / sum(spread[7:]) == pytest.approx(found[-1].fve)


def test_what_no_run_measured_is_said(alone: Path, tmp_path: Path) -> None:
    assert measured_in(alone) == (None, 1)
    share(alone, "sparsify", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "were not measured" in text and "No licence is given." in text and not (tmp_path / "out" / PICTURE).exists()


@pytest.mark.filterwarnings("ignore:Use 'content=")  # of the hub's own client, to its own library of HTTP
def test_a_folder_goes_to_the_hub_with_its_card(run: Path, hub: type[Hub], tmp_path: Path) -> None:
    command = ["export", str(arm(run)), "--out", str(tmp_path / "out"), "--push", "user/name", "--private", "--revision", "first"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert result.output.strip().endswith(f"/user/name/commit/{Hub.commit}")
    written = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert Hub.files == written and {"README.md", PICTURE, "sae_weights.safetensors", "cfg.json"} == written.keys()
    made = {path: lines for path, token, lines in Hub.asked if token == "Bearer hf_secret"}
    assert made["/api/repos/create"] == [{"name": "name", "organization": "user", "visibility": "private"}]
    assert "/api/models/user/name/branch/first" in made and "/api/models/user/name/commit/first" in made
    assert 'snapshot_download("user/name")' in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("refuses", "sentence"),
    [
        ({"/api/repos/create": 403}, "nothing was uploaded"),
        ({"/commit/": 500}, "the upload did not finish, and may have left files there"),
        ({"/preupload/": 401}, "the upload did not finish"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence_and_leaves_nothing(
    alone: Path, hub: type[Hub], refuses: dict[str, int], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.refuses.update(refuses)
    result = CliRunner().invoke(app, ["export", str(alone), "--out", str(tmp_path / "out"), "--push", "user/name"])
    assert result.exit_code == 2 and "the hub did not take user/name" in result.output and sentence in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


def test_a_hub_that_is_gone_is_one_sentence(alone: Path, tmp_path: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.hf_api import HfApi

    monkeypatch.setattr("huggingface_hub.HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    with pytest.raises(TemporalLensError, match="the hub did not take user/name"):
        share(alone, "saelens", tmp_path / "out", repository="user/name")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"repository": "name"}, "'name' is no name on the hub: it should be user/name"),
        ({"repository": "user/na..me"}, "is no name on the hub"),
        ({"private": True}, "--private goes with --push"),
        ({"revision": "main"}, "--revision goes with --push"),
        ({"licence": "My Own"}, "it should be an identifier of the hub"),
        ({"form": "onnx"}, "should be one of saelens, sparsify, dictionary_learning"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(
    alone: Path, hub: type[Hub], options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(TemporalLensError, match=sentence):
        share(**{"dictionary": alone, "form": "saelens", "out": tmp_path / "out", "repository": None} | options)
    assert not Hub.asked and not list(tmp_path.iterdir())


def test_nothing_is_pushed_without_token_or_network(alone: Path, hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "hub_is_known", lambda: False)
    with pytest.raises(TemporalLensError, match="the hub cannot be reached"):
        share(alone, "saelens", tmp_path / "out", repository="user/name")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(TemporalLensError, match="there is no token of the hub"):
        share(alone, "saelens", tmp_path / "out", repository="user/name")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("x")
    with pytest.raises(TemporalLensError, match="is not empty"):
        share(alone, "saelens", tmp_path / "out")
    assert not Hub.asked

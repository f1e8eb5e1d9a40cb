"""Other libraries' training steps, each in a worker process of the environment that `make peers` builds.

A worker holds one library's own trainer at the sizes of the benchmark and waits. This process asks them in turn, between its own
turns, over their standard input and output, one line of JSON each way; so all are timed alternately in one run, and a worker that
is not asked sleeps.
"""

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from benchmarks.timing import Settings, Turn

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".venv-peers"
LIBRARIES = {
    "sparsify": "sparsify 1.3.3, TopK",
    "sparsify_fit": "sparsify 1.3.3, TopK, its whole loop",
    "saelens": "SAELens 6.54.12, BatchTopK",
    "dictionary_learning": "dictionary_learning 0.1.0, BatchTopK",
}
NOT_INSTALLED = "not installed (make peers)"


class PeerError(Exception):
    """What a worker reported instead of an answer."""


class Worker:
    """One library in a process of its own."""

    def __init__(self, python: Path, library: str, settings: Settings) -> None:
        environment = os.environ | {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.peers_worker", library],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            self._ask({"sizes": asdict(settings.sizes), "threads": torch.get_num_threads(), "device": settings.device})
            self.seconds(1)  # a library that cannot train says so now
        except PeerError:
            self.close()
            raise

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerError("its process ended") from None
        line = self._process.stdout.readline()
        if not line:
            raise PeerError("its process ended")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return dict(answer)

    def seconds(self, steps: int) -> float:
        return float(self._ask({"steps": steps})["seconds"])

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class Peers:
    """The workers of all libraries that are installed; `notes` says why one is missing."""

    def __init__(self, settings: Settings) -> None:
        self.turns: dict[str, Turn] = {}
        self.notes: dict[str, str] = {}
        self._workers: list[Worker] = []
        python = next((path for path in (ENVIRONMENT / "bin" / "python", ENVIRONMENT / "Scripts" / "python.exe") if path.exists()), None)
        for library, title in LIBRARIES.items():
            if python is None:
                self.notes[title] = NOT_INSTALLED
                continue
            try:
                worker = Worker(python, library, settings)
            except PeerError as error:
                self.notes[title] = f"does not run: {error}"
                continue
            self._workers.append(worker)
            self.turns[title] = worker.seconds

    def __enter__(self) -> "Peers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._workers:
            worker.close()

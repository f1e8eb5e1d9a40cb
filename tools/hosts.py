"""Two hosts that train together, one of which is cut off in the middle.

    python -m tools.hosts [--folder FOLDER]         # as root, on Linux, with `ip` of iproute2

The hosts are network namespaces of this machine, joined by nothing but a pair of virtual adapters, and share its disk. A small study runs
over both of them by `torchrun --nnodes=2`, once undisturbed and once until the first checkpoint, when the second host's adapter goes down.
Both have to end within 60 seconds with a sentence; then the adapter comes up again, and the same command has to end with the bits of the
undisturbed run. Last line:

    cut off: both ended with a sentence after N and N seconds; the same command went on to the same bits
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.companies import ROOT, children, environment

from tools.chaos import STUDY, contents

PATIENCE = 60.0
"""Seconds in which both hosts should have ended once they are apart."""
ADAPTER, ADDRESSES, PORT = "eth0", ("10.77.0.1", "10.77.0.2"), 29_500
STEPS = 40


class NoHostsError(Exception):
    """Why there can be no namespaces here."""


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoHostsError(f"'ip {' '.join(arguments)}' was refused: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def hosts() -> Iterator[tuple[str, str]]:
    """Names of two namespaces that reach each other. Raises NoHostsError where they cannot be made."""
    if shutil.which("ip") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise NoHostsError("network namespaces want Linux, root, and ip of iproute2")
    names = (f"temporallens-{os.getpid()}-0", f"temporallens-{os.getpid()}-1")
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip("-n", names[0], "link", "add", ADAPTER, "type", "veth", "peer", "name", ADAPTER, "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", ADAPTER)
            switch(name, "up", "lo")
            switch(name, "up")
        yield names
    finally:
        for name in made:
            for pid in ip("netns", "pids", name).split():
                os.kill(int(pid), signal.SIGKILL)
            ip("netns", "delete", name)


def switch(host: str, to: str, adapter: str = ADAPTER) -> None:
    """Let a host's adapter be `up` or `down`."""
    ip("-n", host, "link", "set", adapter, to)


def start(names: tuple[str, str], study: Path, out: Path) -> list["subprocess.Popen[str]"]:
    """The same command on both hosts, one process each."""
    rendezvous = ["--nnodes=2", "--nproc-per-node=1", f"--master-addr={ADDRESSES[0]}", f"--master-port={PORT}"]
    command = ["-m", "temporallens", "evaluate", str(study), "--out", str(out)]
    return [
        subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", *rendezvous, f"--node-rank={number}", *command],
            env=environment() | {"GLOO_SOCKET_IFNAME": ADAPTER},
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        for number, name in enumerate(names)
    ]


def ended(processes: list["subprocess.Popen[str]"], patience: float | None = None) -> tuple[list[float], list[str]]:
    """Seconds after which each of both was over, and what it said; one that is not over in time is killed."""
    started = time.monotonic()
    seconds, said = [], []
    for process in processes:
        try:
            said.append(process.communicate(timeout=None if patience is None else max(0.0, started + patience - time.monotonic()))[0])
        except subprocess.TimeoutExpired:
            for pid in (*children(process.pid), process.pid):
                os.kill(pid, signal.SIGKILL)
            said.append(process.communicate()[0])
        seconds.append(time.monotonic() - started)
    return seconds, said


def cut_off(names: tuple[str, str], study: Path, folder: Path) -> str:
    """What came of it; raises SystemExit with what went wrong."""
    whole, cut = folder / "whole", folder / "cut"
    _finish(start(names, study, whole), "undisturbed")
    both = start(names, study, cut)
    while not list(cut.glob("arms/world/checkpoint-*")):
        if any(process.poll() is not None for process in both):
            raise SystemExit(f"it ended before it was cut off: {ended(both, 0)[1]}")
        time.sleep(0.05)
    switch(names[1], "down")
    seconds, said = ended(both, 2 * PATIENCE)
    for number, (process, late, words) in enumerate(zip(both, seconds, said, strict=True)):
        if process.returncode == 0 or late > PATIENCE or "error: " not in words:
            raise SystemExit(f"host {number} ended after {late:.0f} seconds with exit {process.returncode}: {words}")
        print(f"host {number}: {next(line for line in words.splitlines() if line.startswith('error: '))}", flush=True)
    switch(names[1], "up")
    _finish(start(names, study, cut), "the same command")
    first, second = contents(whole), contents(cut)
    different = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    if different:
        raise SystemExit(f"these files differ from those of the undisturbed run: {', '.join(different)}")
    after = " and ".join(f"{late:.0f}" for late in seconds)
    return f"cut off: both ended with a sentence after {after} seconds; the same command went on to the same bits"


def _finish(both: list["subprocess.Popen[str]"], name: str) -> None:
    _, said = ended(both)
    if any(process.returncode for process in both):
        raise SystemExit(f"{name} did not come to its end: {said}")


def main() -> None:
    """Cut one of two hosts off, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the runs are written; they are removed at the end")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        study = Path(name) / "study.yaml"
        study.write_text(STUDY.format(sequences=96, steps=STEPS, scans="", harvests="", arms="", evaluation=""))
        try:
            with hosts() as names:
                print(cut_off(names, study, Path(name)))
        except NoHostsError as error:
            raise SystemExit(f"two hosts cannot be made here: {error}") from error


if __name__ == "__main__":
    main()

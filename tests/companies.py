"""Several processes on this machine that work as one, for tests."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    """One thread each, and no word of a company that the test itself may be part of."""
    own = {name: value for name, value in os.environ.items() if name not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
    paths = os.pathsep.join(str(ROOT / part) for part in ("src", "tests", "."))
    return own | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": paths}


@contextmanager
def torchrun(count: int, *arguments: str | Path) -> Iterator["subprocess.Popen[str]"]:
    """`torchrun` of so many processes of a Python program, at any free port; what is left of it at the end is killed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *map(str, arguments)]
    process = subprocess.Popen(
        command, env=environment(), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        yield process
    finally:
        for pid in (*children(process.pid), process.pid) if process.poll() is None else ():
            os.kill(pid, signal.SIGKILL)
        process.wait()


def run_together(count: int, *arguments: str | Path) -> str:
    """What so many processes say to their end, which should be a good one."""
    with torchrun(count, *arguments) as process:
        said: str = process.communicate()[0]
    assert process.returncode == 0, said
    return said


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def process_of(rank: int, launcher: int) -> int:
    """The process of this rank among those that a `torchrun` started."""
    (found,) = [pid for pid in children(launcher) if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0")]
    return found

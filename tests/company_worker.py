"""What the processes of `test_processes.py` do: every exchange once, or a training; process 0 writes what all found into a folder."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from temporallens import processes
from temporallens.activations.language.harvest import HarvestPolicy, harvest_policy
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.dictionaries.arms.budgeted import Budgeted
from temporallens.dictionaries.arms.jumprelu import JumpReLU
from temporallens.dictionaries.arms.matryoshka import Matryoshka
from temporallens.dictionaries.arms.position_bias import PositionBias
from temporallens.dictionaries.arms.positional import Positional
from temporallens.dictionaries.arms.positional_relu import PositionalReLU
from temporallens.dictionaries.arms.posthoc import PostHoc
from temporallens.dictionaries.arms.standard import Standard
from temporallens.dictionaries.arms.tfa import TFA
from temporallens.dictionaries.arms.topk import TopK
from temporallens.errors import TemporalLensError
from temporallens.training import trainer
from temporallens.training.policy import TrainingPolicy
from temporallens.training.trainee import ArmRun

ARMS = {
    "batchtopk": BatchTopK(features=64, k=4),
    "budgeted": Budgeted(features=64, k=4, position_weights=True),
    "jumprelu": JumpReLU(features=64, l0=4),
    "matryoshka": Matryoshka(features=64, k=4),
    "position_bias": PositionBias(features=64, k=4),
    "positional": Positional(features=64, k=4, groups=4),
    "log": Positional(features=64, k=4, groups=4, gate="log", centre="position_scaled"),
    "permuted": Positional(features=64, k=4, groups=4, permuted=True),
    "posthoc": PostHoc(features=64, k=4, groups=4),
    "positional_relu": PositionalReLU(features=64, sparsity=1.0, groups=4),
    "standard": Standard(features=64, sparsity=1.0, position_weights=True, position_sparsity="shared"),
    "topk": TopK(features=64, k=4),
}
POLICY = TrainingPolicy(steps=60, batch_size=129, learning_rate=3e-3, log_every=10, checkpoint_every=20, dead_after=1000, snapshots=1)
ROW_ARMS = {"tfa": TFA(features=64, k=4, bottleneck=2), "batchtopk": BatchTopK(features=64, k=4)}
ROWS = POLICY.model_copy(update={"batches": "rows", "batch_size": 144})


def exchanges(folder: Path) -> None:
    """Process r has r + 1 rows."""
    own = processes.rank()
    values = torch.arange(own + 1.0) + 10 * own
    weight = torch.tensor([2.0], requires_grad=True)
    (processes.summed(weight * (own + 1)) ** 2).sum().backward()
    assert weight.grad is not None
    matrix, single = torch.arange(6.0).view(3, 2) * (own + 1), torch.tensor(own + 1.0)
    processes.sum_shares([matrix, single])
    ours, whole = processes.our_rows(matrix).tolist(), processes.whole(processes.our_rows(matrix), 3).tolist()
    processes.exchange_shares([matrix, single])
    weights = torch.full((2,), float(own))
    processes.same([weights])
    everything = processes.gathered(values)
    found: dict[str, Any] = {
        "total": processes.total(own + 1),
        "anywhere": [processes.anywhere(own == 1), processes.anywhere(False)],
        "gathered": everything.values.tolist(),
        "ours": everything.ours(torch.tensor([0, 1, 2])).tolist(),
        "nothing": processes.gathered(values[:0]).values.tolist(),
        "smallest": [float(processes.smallest(values + 1)), float(processes.smallest(values[:own])), float(processes.smallest(values[:0]))],
        "gradient": weight.grad.tolist(),
        "shares": [ours, whole, matrix.tolist(), single.tolist()],
        "same": weights.tolist(),
        "told": processes.told(lambda: {"by": own}),
    }
    processes.once(lambda: (folder / "once").write_text(str(own)))
    assert (folder / "once").read_text() == "0"
    (folder / f"found-{own}.json").write_text(json.dumps(found))


def train_all(folder: Path, out: str) -> None:
    """Train every arm on the store in a folder."""
    for arms, policy, place in ((ARMS, POLICY, out), (ROW_ARMS, ROWS, f"{out}-rows")):
        trainer.train_arms(ActivationStore(folder / "store"), [ArmRun(name, arm, 0) for name, arm in arms.items()], policy, folder / place)


def harvest_all(folder: Path, out: str) -> None:
    """Two layers of the tiny model over the text in a folder."""
    shared = {"model": str(folder / "llama"), "text": str(folder / "text.jsonl"), "context_length": 16, "batch_size": 4}
    policies = [HarvestPolicy(layer=layer, **shared) for layer in (0, 1)]
    harvest_policy(policies, [folder / out / "low", folder / out / "high"])


def small_windows(*_: Any) -> int:
    """Rows of a stream's windows: few, so that there are several."""
    return 640


def learn_from_stream(folder: Path, out: str) -> None:
    """One dictionary from a stream."""
    policy = HarvestPolicy(
        model=str(folder / "llama"), text=str(folder / "text.jsonl"), layer=1, context_length=16, stream=True, stored_every=4
    )
    (store,) = harvest_policy([policy], [folder / out / "store"])
    run = ArmRun("batchtopk", BatchTopK(features=64, k=4), 0)
    trainer.train_arms(store, [run], TrainingPolicy(steps=60, batch_size=64, log_every=10, held_out=0.5), folder / out, stream=policy)


def failing(folder: Path) -> None:
    """Process 1 cannot go on; the others wait for it."""
    if processes.rank() == 1:
        raise TemporalLensError("this process has no room")
    processes.wait()


if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer.window_rows = small_windows
    works = (exchanges, failing, train_all, harvest_all, learn_from_stream)
    with processes.joined():
        {work.__name__: work for work in works}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])

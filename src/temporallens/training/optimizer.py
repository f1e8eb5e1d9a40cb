"""Adam, whose moments are divided among processes: each keeps those of its share of every parameter's rows, and learns for all.

What Adam does to an element depends on that element alone. PyTorch's `ZeroRedundancyOptimizer` deals
out whole parameters, of which a dictionary has two that are large: beyond two processes it would divide no further. Its exchanges are
these: gradients are summed where they are used, and each process tells the others what it has learnt; together as many bytes as a sum of
the gradients for all. A checkpoint holds the moments whole, whatever the number of processes.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from temporallens import processes


class Optimizer:
    """Of the parameters of one dictionary. `rates` are groups of them with the multiple of the learning rate at which they learn."""

    def __init__(self, rates: Sequence[tuple[Sequence[nn.Parameter], float]], learning_rate: float) -> None:
        self._parameters = list(chain.from_iterable(parameters for parameters, _ in rates))
        self._ours = [processes.our_rows(parameter.detach()) for parameter in self._parameters]
        ours = iter(self._ours)
        groups = [{"params": [next(ours) for _ in parameters], "multiple": multiple} for parameters, multiple in rates]
        self._adam = torch.optim.Adam(groups, lr=learning_rate, fused=True)

    def forget_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def sum_gradients(self) -> None:
        """Let each process have the gradient of the sum of all processes' losses in its share of the rows; other rows are worth nothing."""
        processes.sum_shares(self._learnt())

    def step(self, learning_rate: float) -> None:
        """Learn from the summed gradients."""
        for group in self._adam.param_groups:
            group["lr"] = learning_rate * group["multiple"]
        for parameter, ours in zip(self._parameters, self._ours, strict=True):
            ours.grad = None if parameter.grad is None else processes.our_rows(parameter.grad)
        self._adam.step()
        processes.exchange_shares([parameter.detach() for parameter in self._parameters if parameter.grad is not None])

    def _learnt(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]

    @property
    def kept(self) -> int:
        """Bytes of moments in this process."""
        return sum(tensor.nbytes for state in self._adam.state.values() for name, tensor in state.items() if name != "step")

    def tensors(self) -> dict[str, Tensor]:
        """Its state by name, for `restore`: whole in process 0, which writes it."""
        named: dict[str, Tensor] = {}
        for number, state in self._adam.state_dict()["state"].items():
            rows = len(torch.atleast_1d(self._parameters[number]))
            named |= {f"{number}/{name}": tensor if name == "step" else processes.whole(tensor, rows) for name, tensor in state.items()}
        return named

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            number, _, field = name.partition("/")
            state.setdefault(int(number), {})[field] = tensor if field == "step" else processes.our_rows(tensor)
        self._adam.load_state_dict({"state": state, "param_groups": self._adam.state_dict()["param_groups"]})

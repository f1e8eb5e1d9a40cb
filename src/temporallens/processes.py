"""Several processes that do one study together, and what a sum, a smallest value or a list is over all of them.

Code on the floors above is written for the share of the work that its process has, and asks here where it needs to know of all: alone,
every function below gives back what it was given. `torchrun` starts the processes, PyTorch's own engine carries the numbers between them
(gloo between processors, NCCL between GPUs), and `joined` makes them one company. Process 0 alone writes and speaks. `heartbeats` looks
after the others: nothing here has a timeout of its own, for a process may wait for hours while another measures.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, distributed as dist

from temporallens.errors import TemporalLensError, first_line
from temporallens.heartbeats import Heartbeats

T = TypeVar("T")
FOR_EVER = timedelta(days=365)


@dataclass
class _Company:
    """The processes of `torchrun`, and which of them this is."""

    rank: int
    count: int
    heartbeats: Heartbeats
    beside: Any = None  # connections for a thread
    apart: bool = False  # whether each works by itself just now


_companies: list[_Company] = []
"""That which this process is part of; none while it is alone."""


def _together() -> bool:
    """Whether there are others who do the same."""
    return bool(_companies) and not _companies[-1].apart


def rank() -> int:
    """Number of this process, from 0."""
    return _companies[-1].rank if _together() else 0


def count() -> int:
    """How many processes there are."""
    return _companies[-1].count if _together() else 1


def speaks() -> bool:
    """Whether this process is the one that users hear: the first that lives."""
    return not _companies or _companies[-1].heartbeats.speaks


@contextmanager
def joined() -> Iterator[None]:
    """Work together with the other processes that `torchrun` started; alone where it started none.

    Raises TemporalLensError that names the process where one of the others ends early, or is not heard of any more.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _companies:
        yield
        return
    own, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    store, *_ = next(dist.rendezvous("env://", own, size))
    company = _Company(own, size, Heartbeats(own, size))
    _companies.append(company)  # to the end, where it ends badly: who speaks is asked even then
    try:
        with _exchange():
            dist.init_process_group(backend, store=store, rank=own, world_size=size, timeout=FOR_EVER)
            company.beside = dist.new_group(backend="gloo", timeout=FOR_EVER)
        yield
        wait()
    except BaseException as error:
        company.heartbeats.end(error)  # raises where another process is the cause
        raise
    company.heartbeats.stop()
    dist.destroy_process_group()
    _companies.remove(company)


@contextmanager
def apart() -> Iterator[None]:
    """Each process does something of its own: until its end, what is asked here is asked of this process alone."""
    if not _companies:
        yield
        return
    company = _companies[-1]
    before, company.apart = company.apart, True
    try:
        yield
    finally:
        company.apart = before


@contextmanager
def _exchange() -> Iterator[None]:
    """PyTorch's errors of a connection that broke, as a sentence on who broke it."""
    try:
        yield
    except RuntimeError as error:
        raise TemporalLensError(
            _companies[-1].heartbeats.cause() or f"the processes lost touch with each other: {first_line(error)}"
        ) from error


def wait() -> None:
    """Go on when all are here."""
    total(0)


def total(number: int) -> int:
    """Sum of a number over all processes."""
    if not _together():
        return number
    return int(_reduced(torch.tensor(number, device="cpu"), dist.ReduceOp.SUM))


def anywhere(happened: bool) -> bool:
    """Whether something happened in any process."""
    return total(int(happened)) > 0


def _reduced(values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    """`values`, overwritten."""
    with _exchange():
        dist.all_reduce(values, operation)
    return values


class _Summed(torch.autograd.Function):
    """What depends on a sum does so in every process: gradients add up like the values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _reduced(values.detach().clone(), dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _reduced(gradients[0].clone(), dist.ReduceOp.SUM)


def summed(values: Tensor) -> Tensor:
    """Sum of a tensor over all processes; differentiable."""
    return _Summed.apply(values) if _together() else values


def shares(values: Tensor) -> list[Tensor]:
    """The rows of a tensor, divided among the processes in their order, nearly as many for each; a single value is a row. They share its
    memory."""
    rows = torch.atleast_1d(values)
    ends = [len(rows) * done // count() for done in range(count() + 1)]
    return [rows[first:last] for first, last in itertools.pairwise(ends)]


def our_rows(values: Tensor) -> Tensor:
    """This process's share of a tensor's rows."""
    return shares(values)[rank()]


def sum_shares(tensors: Iterable[Tensor]) -> None:
    """Let each process have the sums over all processes in its share of each tensor's rows, in place; other rows are worth nothing then.

    Every process tells each other one its part of that one's share, both ways at once, and adds up itself.
    """
    if _together():
        for tensor in tensors:
            parts = shares(tensor)
            ours = parts[rank()]
            told = [torch.empty_like(ours) for _ in _others()]
            _swap([parts[peer] for peer in _others()], told)
            for part in told:
                ours += part


def exchange_shares(tensors: Iterable[Tensor]) -> None:
    """Let each process have all the others' shares of each tensor's rows, in place."""
    if _together():
        for tensor in tensors:
            parts = shares(tensor)
            _swap([parts[rank()]] * len(_others()), [parts[peer] for peer in _others()])


def _others() -> list[int]:
    """The processes beside this one."""
    return [peer for peer in range(count()) if peer != rank()]


def _swap(sent: list[Tensor], received: list[Tensor]) -> None:
    """One tensor to each of the others, and one from each of them, in their order and all at once; nobody sends what has no row."""
    exchanges = [
        dist.P2POp(operation, tensor, peer)
        for operation, tensors in ((dist.isend, sent), (dist.irecv, received))
        for tensor, peer in zip(tensors, _others(), strict=True)
        if len(tensor)
    ]
    with _exchange():
        for exchange in dist.batch_isend_irecv(exchanges) if exchanges else ():
            exchange.wait()


def whole(ours: Tensor, rows: int) -> Tensor:
    """In process 0 a tensor of so many rows, on the processor, of which each process has its share; elsewhere the share. Alone it is what
    it is."""
    if not _together():
        return ours
    if rank():
        if len(ours):
            with _exchange():
                dist.send(ours.contiguous(), 0)
        return ours
    found = torch.empty(rows, *ours.shape[1:], dtype=ours.dtype, device="cpu")
    for owner, share in enumerate(shares(found)):
        part = ours if owner == 0 else ours.new_empty(share.shape)
        if owner and len(share):
            with _exchange():
                dist.recv(part, owner)
        share.copy_(part)
    return found


def lowest(values: Tensor) -> Tensor:
    """The smallest of each of a tensor's elements over all processes."""
    return _reduced(values.detach().clone(), dist.ReduceOp.MIN) if _together() else values


def smallest(values: Float[Tensor, " M"]) -> Float[Tensor, ""]:
    """The smallest of all processes' values; infinity where none has any."""
    return lowest(values.detach().amin() if len(values) else values.new_full((), torch.inf))


class Gathered(NamedTuple):
    """The values of all processes, in order of process."""

    values: Tensor
    first: int  # where those of this process begin
    last: int  # and end

    def ours(self, places: Int[Tensor, " m"]) -> Int[Tensor, " n"]:
        """Those of these ascending places that are of this process, counted from its first value."""
        if len(self.values) == self.last - self.first:
            return places
        return places[(places >= self.first) & (places < self.last)] - self.first


def gathered(values: Tensor) -> Gathered:
    """The values `[M]` of all processes; M may differ."""
    if not _together():
        return Gathered(values, 0, len(values))
    parts = _parts(values.detach())
    first = sum(len(part) for part in parts[: rank()])
    return Gathered(torch.cat(parts), first, first + len(values))


def _parts(values: Tensor) -> list[Tensor]:
    """The values of each process, in their order."""
    sizes = _alike(torch.tensor([len(values)], device="cpu")).tolist()
    if not any(sizes):
        return [values] * count()
    padded = values.new_zeros(max(sizes))
    padded[: len(values)] = values
    return [part[:size] for part, size in zip(_alike(padded).view(count(), -1), sizes, strict=True)]


def _alike(values: Tensor) -> Tensor:
    """The values of all processes, one after the other, where all have as many."""
    found = values.new_empty(count() * len(values))
    with _exchange():
        dist.all_gather(list(found.chunk(count())), values)
    return found


def spread(items: Iterable[T], work: Callable[[T], list[Tensor]], stopped: Callable[[], bool]) -> Iterator[list[Tensor]]:
    """What `work` makes of items, in their order and for all processes, each of which works on one of so many. It ends early once any
    process says that it is stopped. It has connections of its own, so it may go on in a thread beside everything else."""
    waiting = iter(items)
    while turn := list(itertools.islice(waiting, count())):
        if not _together():
            if stopped():
                return
            yield work(turn[0])
            continue
        group = _companies[-1].beside
        stop = torch.tensor(int(stopped()), device="cpu")
        with _exchange():
            dist.all_reduce(stop, dist.ReduceOp.MAX, group)
        if stop:
            return
        own = work(turn[rank()]) if rank() < len(turn) else []
        yield from (_broadcast(own if sender == rank() else None, sender, group) for sender in range(len(turn)))


def _broadcast(tensors: list[Tensor] | None, sender: int, group: Any) -> list[Tensor]:
    """The tensors on the processor that the sender has."""
    header = _header(tensors) if tensors is not None else None
    with _exchange():
        size = torch.tensor([0 if header is None else len(header)], device="cpu")
        dist.broadcast(size, sender, group)
        header = torch.empty(int(size), dtype=torch.uint8, device="cpu") if header is None else header
        dist.broadcast(header, sender, group)
        tensors = _room(header) if tensors is None else tensors
        for tensor in tensors:
            dist.broadcast(_as_bytes(tensor), sender, group)
    return tensors


def dealt(items: Iterable[T], work: Callable[[T], list[Tensor]]) -> Iterator[tuple[T, list[Tensor]]]:
    """Items in their order with what `work` makes of each, for process 0: all of them work, each on one of so many items. The others, who
    should have the same items, get nothing."""
    waiting = iter(items)
    while turn := list(itertools.islice(waiting, count())):
        own = work(turn[rank()]) if rank() < len(turn) else []
        if rank() == 0:
            yield turn[0], own
            yield from ((item, _received(sender)) for sender, item in enumerate(turn[1:], 1))
        elif rank() < len(turn):
            _send(own)


def _send(tensors: list[Tensor]) -> None:
    """Tensors on the processor, to process 0."""
    header = _header(tensors)
    with _exchange():
        for content in (torch.tensor([len(header)], device="cpu"), header, *(_as_bytes(tensor) for tensor in tensors)):
            dist.send(content, 0)


def _received(sender: int) -> list[Tensor]:
    with _exchange():
        size = torch.empty(1, dtype=torch.int64, device="cpu")
        dist.recv(size, sender)
        header = torch.empty(int(size), dtype=torch.uint8, device="cpu")
        dist.recv(header, sender)
        tensors = _room(header)
        for tensor in tensors:
            dist.recv(_as_bytes(tensor), sender)
    return tensors


def _header(tensors: list[Tensor]) -> Tensor:
    """Types and shapes."""
    kinds = [[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in tensors]
    return torch.frombuffer(bytearray(json.dumps(kinds).encode()), dtype=torch.uint8)


def _room(header: Tensor) -> list[Tensor]:
    """Tensors of these types and shapes."""
    kinds = json.loads(header.numpy().tobytes())
    return [torch.empty(shape, dtype=getattr(torch, kind), device="cpu") for kind, shape in kinds]


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def once(work: Callable[[], object]) -> None:
    """Let process 0 do what is done once, such as writing; the others go on when it is done."""
    if rank() == 0:
        work()
    wait()


def told(find: Callable[[], T]) -> T:
    """What process 0 finds, for all; it should be JSON."""
    if not _together():
        return find()
    content = json.dumps(find()).encode() if rank() == 0 else b""
    size = total(len(content))
    letters = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(size, dtype=torch.uint8, device="cpu")
    with _exchange():
        dist.broadcast(letters, 0)
    found: T = json.loads(letters.numpy().tobytes())
    return found


def collected(found: T) -> list[T]:
    """What each process found, in their order, for all; it should be JSON."""
    if not _together():
        return [found]
    letters = torch.frombuffer(bytearray(json.dumps(found).encode()), dtype=torch.uint8)
    return [json.loads(part.numpy().tobytes()) for part in _parts(letters)]


def same(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of process 0: nobody's arithmetic is quite that of another machine."""
    if _together():
        with _exchange():
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

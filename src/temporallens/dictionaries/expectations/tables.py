"""What tokens say of an activation, as tables of what is added for a token, for the token before it, and for the two as a pair.

    known(v', v) = token[v] + previous[v'] + pair[v', v]

With A and B the linear maps of the embeddings e of a token and of the one before it, n(.) how many training rows there are, and m(.) the
mean over these of what the terms before leave:

    token[v]  =  A e_v + n(v) / (n(v) + kappa) m(v),      previous[v']  =  B e_v',      pair  =  n / (n + lambda) m(v', v)

A and B are a ridge regression whose penalty minimises generalised cross-validation (Golub, Heath and Wahba 1979). kappa and lambda are
how much rows of one token, or pair, differ, over how much their true means do: a normal mean under a normal prior, whose variances are
measured (Efron and Morris 1973). So where tokens mean nothing, nothing is what the tables say.

A row that the tables were fitted on is part of its own means, which rows of other texts are not. In training it is left out, exactly: with
q what the whole of `token` and `previous` leaves of the row, and n, p the rows of its token and of its pair,

    token and previous leave   q (n + kappa) / (n - 1 + kappa)
    pair says                  ((p + lambda) pair - q + (p - 1) q / (n - 1 + kappa)) / (p - 1 + lambda), and nothing where p = 1.

Tokenized SAEs (Dooms and Wilhelm 2025, arXiv 2502.17332) have a learned table of tokens. Tables are rounded to bfloat16 once, before
anything is computed with them.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import BFloat16, Float, Int, Int32, Int64
from torch import Tensor

from temporallens.activations.context import UNKNOWN, Context
from temporallens.errors import TemporalLensError
from temporallens.files import link_or_copy, read_tensors, tensor_digest, write_tensors

FILE = "expectation.safetensors"
FORMAT = "temporallens.expectation/1"
WHAT = "the expectation of a dictionary"


@dataclass(frozen=True)
class Expectation:
    """Fitted tables, of V tokens and M pairs, in raw units about the mean (of all rows, or of the position), times `scale`."""

    token: BFloat16[Tensor, "V D"]
    previous: BFloat16[Tensor, "V D"] | BFloat16[Tensor, "0 D"]  # without rows where the token before is not asked about
    pair: BFloat16[Tensor, "M D"]
    pair_key: Int64[Tensor, " M"]  # token before * V + token, ascending
    token_count: Int32[Tensor, " V"]  # training rows; 0 for a token that has its embedding alone
    pair_count: Int32[Tensor, " M"]
    shrinkage: tuple[float, float]  # kappa and lambda, in rows
    closed: bool  # whether V is the whole vocabulary, as it is where embeddings were read
    fitted: bool = True  # whether tables hold the rows that training sees, each with its own token: not so of permuted ones
    scale: float = 1.0
    file: Path | None = None  # where it lies, so that dictionaries can share it

    @property
    def width(self) -> int:
        return self.token.shape[1]

    def scaled(self, scale: float) -> "Expectation":
        """The same in other units."""
        made = replace(self, scale=scale)
        made.__dict__.update({name: value for name, value in self.__dict__.items() if name == "digest"})  # of the tables alone
        return made

    def to(self, device: torch.device) -> "Expectation":
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return self if device == self.token.device else replace(self, **moved)

    @property
    def tensors(self) -> dict[str, Tensor]:
        names = ("token", "previous", "pair", "pair_key", "token_count", "pair_count")
        return {name: getattr(self, name) for name in names}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what it says."""
        return tensor_digest(self.tensors)

    def known(self, context: Context) -> Float[Tensor, "N D"]:
        """What tokens say of rows: nothing of a token that is not known. Raises TemporalLensError for a token beyond the vocabulary."""
        return self._single(context).add_(self._pairs(context)[1]).mul_(self.scale)

    def left_out(self, y: Float[Tensor, "N D"], context: Context) -> Float[Tensor, "N D"]:
        """The same of training rows `y` (in these units, about the same mean), each of them left out of the tables."""
        if not self.fitted:
            return self.known(context)
        q = y / self.scale - self._single(context)
        n = torch.where(context.token == UNKNOWN, 1, self.token_count[context.token.clamp(min=0)]).clamp(min=1)[:, None]
        found, pair = self._pairs(context)
        p = torch.where(found >= 0, self._counts(found), 1)[:, None]
        kappa, lambda_ = self.shrinkage
        others = torch.where(context.token == UNKNOWN, 0.0, 1.0)[:, None] / (n - 1 + kappa)
        left = q * (1 + others)
        again = (pair * (p + lambda_) - q + q * (p - 1) * others) / (p - 1 + lambda_)
        left -= torch.where(p > 1, again, 0.0)
        return y - left.mul_(self.scale)

    def _single(self, context: Context) -> Float[Tensor, "N D"]:
        said = _rows(self.token, self._checked(context.token))
        return said if not len(self.previous) else said.add_(_rows(self.previous, self._checked(context.token_before)))

    def _checked(self, token: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Ids that the tables have, UNKNOWN for others."""
        size = len(self.token)
        if self.closed and bool((token >= size).any()):
            raise TemporalLensError(f"token {int(token.max())} is beyond the vocabulary of {size} that this dictionary was trained with")
        return torch.where(token < size, token, UNKNOWN)

    def _pairs(self, context: Context) -> tuple[Int[Tensor, " N"], Float[Tensor, "N D"]]:
        """Which pair of the table each row is, -1 for none, and what the table says."""
        size = len(self.token)
        inside = (context.token >= 0) & (context.token_before >= 0) & (context.token < size) & (context.token_before < size)
        key = torch.where(inside, context.token_before * size + context.token, UNKNOWN)
        if not len(self.pair):
            return torch.full_like(key, -1), torch.zeros(len(key), self.width, dtype=torch.float32, device=key.device)
        place = torch.searchsorted(self.pair_key, key).clamp(max=len(self.pair_key) - 1)
        found = torch.where(self.pair_key[place] == key, place, -1)
        return found, _rows(self.pair, found)

    def _counts(self, found: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        return self.pair_count[found.clamp(min=0)] if len(self.pair_count) else torch.ones_like(found)

    def save(self, file: Path) -> None:
        """Write the tables, or link the file where they lie already: dictionaries of one study share it."""
        if self.file is not None and self.file.exists():
            link_or_copy(self.file, file)
        else:
            said = {"shrinkage": list(self.shrinkage), "closed": self.closed, "fitted": self.fitted}
            write_tensors(file, self.tensors, {"format": FORMAT} | said)


def _rows(table: BFloat16[Tensor, "V D"], number: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
    """Rows of a table in float32, zeros for -1."""
    found = table.index_select(0, number.clamp(min=0)).float()
    return found.masked_fill_((number < 0)[:, None], 0.0)


@dataclass(frozen=True)
class _Linked:
    """A file, under whichever of its names."""

    stamp: tuple[int, ...]  # changes with the content
    path: Path = field(compare=False)


def load_expectation(file: Path, width: int) -> Expectation:
    """Read what `save` wrote, links to one file once. Raises TemporalLensError where it is missing, damaged, or of another width."""
    if not file.is_file():
        raise TemporalLensError(f"{file} does not exist: it should be {WHAT}")
    about = file.stat()
    return _read(_Linked((about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns), file), width)


@lru_cache(maxsize=4)
def _read(linked: _Linked, width: int) -> Expectation:
    file = linked.path
    tensors, said = read_tensors(file, WHAT)
    try:
        if said["format"] != FORMAT:
            raise ValueError(f"its format is '{said['format']}', not '{FORMAT}'")
        kappa, lambda_ = (float(number) for number in said["shrinkage"])
        found = Expectation(**tensors, shrinkage=(kappa, lambda_), closed=bool(said["closed"]), fitted=bool(said["fitted"]), file=file)
        _check(found, width)
    except (TypeError, KeyError, ValueError, IndexError, AttributeError) as error:
        raise TemporalLensError(f"{file} is not {WHAT} of width {width}: {error}") from error
    return found


def _check(found: Expectation, width: int) -> None:
    """Raise ValueError unless shapes and types are those of such tables."""
    tokens, pairs = len(found.token), len(found.pair)
    shapes = {"token": (tokens, width), "previous": (len(found.previous), width), "pair": (pairs, width), "pair_key": (pairs,)}
    shapes |= {"token_count": (tokens,), "pair_count": (pairs,)}
    kinds = dict.fromkeys(("token", "previous", "pair"), torch.bfloat16)
    kinds |= {"pair_key": torch.int64, "token_count": torch.int32, "pair_count": torch.int32}
    for name, tensor in found.tensors.items():
        if tuple(tensor.shape) != shapes[name] or tensor.dtype != kinds[name]:
            raise ValueError(f"'{name}' should be {shapes[name]} of {kinds[name]}, and is {tuple(tensor.shape)} of {tensor.dtype}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"'{name}' holds NaN or infinity")
    if len(found.previous) not in (0, tokens):
        raise ValueError(f"'previous' should have no row or {tokens}, and has {len(found.previous)}")
    if not all(0 < rows < math.inf for rows in found.shrinkage) or bool((found.pair_key.diff() <= 0).any()):
        raise ValueError("its shrinkage is not positive, or its pairs are not ascending")
    if bool((found.token_count < 0).any()) or bool((found.pair_count < 0).any()):
        raise ValueError("it counts fewer than no rows")

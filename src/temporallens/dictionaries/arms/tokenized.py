"""Tokenized SAEs (Dooms and Wilhelm 2025, arXiv 2502.17332): BatchTopK beside a learned look-up of the token.

    x_hat = z decoder + b + lookup[token],      z = BatchTopK(x)

The encoder sees x itself, so codes are found without the token; what the token is known to be, they need not say. The look-up learns by
gradient. As in the released code (tdooms/tokenized-sae), it starts at half of what the model makes of the token alone, and the encoder at
half of the decoder, so that each explains about half at first; the look-up learns faster than the rest. That code takes TopK or ReLU
codes; here they are BatchTopK's, so that the look-up is all that tells the arm from `batchtopk`.

The table has the tokens that training sees most often, as many as it has rows; others get nothing but the bias, the mean of all.
"""

from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from temporallens.activations.context import UNKNOWN, Context, context_of_given
from temporallens.activations.language.unigrams import unigram_activations
from temporallens.activations.loader import sequential
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.batchtopk import BatchTopKDictionary, TopKConfig
from temporallens.dictionaries.config import Role
from temporallens.dictionaries.inputs import Tokens
from temporallens.dictionaries.steps import Forward, Previous
from temporallens.errors import TemporalLensError

HALF = 0.5
"""Of the model's activation that the look-up starts at, and of the decoder that the encoder starts at."""


class Tokenized(TopKConfig):
    """BatchTopK with a learned table of tokens."""

    roles: ClassVar[tuple[Role, ...]] = ("temporal",)
    kind: Literal["tokenized"] = "tokenized"

    rows: int = Field(16384, ge=1, le=1 << 22)
    """Of the table, at most: while training each takes 16 bytes times the width of the activations."""

    start: Literal["unigram", "mean"] = "unigram"
    """What the table's rows are half of at first: the model's activation of the token right behind BOS, as in the released code, or, for
    activations of your own, the mean of the rows that training sees."""

    rate: float = Field(10.0, gt=0)
    """Times the learning rate at which the table learns. The released code has 100, on activations that are not scaled to a root mean
    square of 1 and at a third of our learning rate."""

    @model_validator(mode="after")
    def _knows_tokens_once(self) -> "Tokenized":
        if self.expectation is not None:
            raise ValueError("a tokenized arm learns what tokens say: leave its expectation out")
        return self

    def build(self, width: int, positions: int, generator: torch.Generator) -> "TokenizedDictionary":
        return TokenizedDictionary(width, self, generator)


class TokenizedDictionary(BatchTopKDictionary):
    """BatchTopK codes, and what the token adds to them."""

    architecture = None
    config: Tokenized
    token: Tensor

    def __init__(self, width: int, config: Tokenized, generator: torch.Generator) -> None:
        super().__init__(width, config, generator)
        self.encoder.data *= HALF
        self.lookup = nn.Parameter(torch.zeros(config.rows, width, dtype=torch.float32))
        self.register_buffer("token", torch.full((config.rows,), UNKNOWN))  # of each row, ascending; -1 for rows that are not in use

    @torch.no_grad()
    def begin(self, store: ActivationStore, entries: Int[np.ndarray, " n"], centre: Float[Tensor, " D"], scale: float) -> None:
        count, total = _by_token(store, entries, centre)
        seen = count.argsort(descending=True, stable=True)[: len(self.token)]
        seen = seen[count[seen] > 0].sort().values
        if not len(seen):
            raise TemporalLensError(f"{store.folder} does not say which tokens its rows are of: a tokenized arm needs them")
        alone = total[seen] / count[seen, None] if self.config.start == "mean" else unigram_activations(store, seen) - centre
        self.token[-len(seen) :] = seen.to(self.token.device)
        self.lookup[-len(seen) :] = (HALF * scale * alone).to(self.lookup)

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        others = [parameter for name, parameter in self.named_parameters() if name != "lookup"]
        return [(others, 1.0), ([self.lookup], self.config.rate)]

    def context(self, x: Float[Tensor, "*batch _"], tokens: Tokens | None) -> Context | None:
        """None where no tokens are given: `encode` needs none."""
        return None if tokens is None else context_of_given(tokens, x.shape[:-1], x.device)

    def added(self, reconstruction: Float[Tensor, "N D"], context: Context | None) -> Float[Tensor, "N D"]:
        if context is None:
            raise TemporalLensError(
                f"a '{self.kind}' dictionary adds what it knows of each token to what codes decode to: pass tokens, their ids in the shape "
                "of the codes without their width (-1 where one is not known)"
            )
        row = torch.searchsorted(self.token, context.token).clamp(max=len(self.token) - 1)
        known = (self.token[row] == context.token) & (context.token != UNKNOWN)
        gain = self.lookup.index_select(0, row) * known[:, None]
        return reconstruction + gain

    def learn(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], previous: Previous | None, context: Context | None) -> Forward:
        forward = self.training_forward(x, positions, previous)
        return forward._replace(reconstruction=self.added(forward.reconstruction, context))

    @torch.no_grad()
    def fold(self, centre: Float[Tensor, " D"], scale: float) -> None:
        super().fold(centre, scale)
        self.lookup.div_(scale)


def _by_token(
    store: ActivationStore, entries: Int[np.ndarray, " n"], centre: Float[Tensor, " D"]
) -> tuple[Float[Tensor, " V"], Float[Tensor, "V D"]]:
    """How often each token stands on a kept row, and the sum of those rows about `centre`."""
    count, total = torch.zeros(0, dtype=torch.float32), torch.zeros(0, store.width, dtype=torch.float32)
    for rows in sequential(store, entries):
        known = (rows.excluded == 0) & (rows.token >= 0)
        token, x = rows.token[known].long(), rows.x[known].float() - centre.cpu()
        more = int(token.max()) + 1 - len(count) if len(token) else 0
        if more > 0:
            count, total = torch.cat([count, count.new_zeros(more)]), torch.cat([total, total.new_zeros(more, store.width)])
        count.index_add_(0, token, torch.ones_like(count[token]))
        total.index_add_(0, token, x)
    return count, total

"""What a study asks to be taken off activations before they are encoded, and given back after decoding."""

from typing import Literal

from pydantic import Field, model_validator

from temporallens.dictionaries.expectations.past import PastKind
from temporallens.settings import Seed, Settings


class ExpectationPolicy(Settings):
    """The `expectation` of an arm. What position says is taken off by the arm's `centre`."""

    token: Literal["embedding", "table", "pair"] | None = "table"
    """What of the token is known: a linear map of the model's own embedding of it; the mean activation of each token that training saw,
    shrunk towards that; or also that of each pair of a token and the one before it."""

    past: tuple[PastKind, ...] = ()
    """What earlier reconstructions of the row say, through a linear map each that is fitted when training is over."""

    decay: float = Field(0.9, gt=0, lt=1)
    """Of the past's exponential mean, by row."""

    past_of: Literal["row", "other"] = "row"
    """Whose past is looked back at; that of the next row of text, at the same place, is a control."""

    embedding: bool = True
    """Whether means are shrunk towards a linear map of the model's embedding; without it, towards the mean of all tokens. Arrays of your
    own have no model to read it from."""

    pairs: int = Field(1 << 16, ge=1, le=1 << 26)
    """Pairs in the table at most, those that training saw most often."""

    @model_validator(mode="after")
    def _is_of_something(self) -> "ExpectationPolicy":
        if self.token is None and not self.past:
            raise ValueError("an expectation of neither token nor past expects nothing; leave it out")
        if len(set(self.past)) < len(self.past):
            raise ValueError(f"past is {', '.join(self.past)}: each kind stands there once")
        if self.token == "embedding" and not self.embedding:
            raise ValueError("token: embedding and embedding: false contradict each other; give token: table or pair")
        return self

    permuted: bool = False
    """A control: tokens are permuted over the rows that the tables are fitted on, so that they mean nothing."""

    seed: Seed = 0
    """Draws that permutation."""

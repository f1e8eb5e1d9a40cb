"""The arms that a study can name. A new arm is one file beside this one, and one line here."""

from typing import Annotated

from pydantic import Field

from temporallens.dictionaries.base import ArmConfig
from temporallens.dictionaries.batchtopk import BatchTopK
from temporallens.dictionaries.budgeted import Budgeted
from temporallens.dictionaries.jumprelu import JumpReLU
from temporallens.dictionaries.matryoshka import Matryoshka
from temporallens.dictionaries.position_mean import PositionMean
from temporallens.dictionaries.positional import Positional
from temporallens.dictionaries.positional_relu import PositionalReLU
from temporallens.dictionaries.posthoc import PostHoc
from temporallens.dictionaries.random_mask import RandomMask
from temporallens.dictionaries.sliced import Sliced
from temporallens.dictionaries.standard import Standard
from temporallens.dictionaries.topk import TopK
from temporallens.dictionaries.tsae import TSAE

Arm = Annotated[
    Standard
    | TopK
    | BatchTopK
    | JumpReLU
    | Matryoshka
    | TSAE
    | Budgeted
    | PositionMean
    | Positional
    | PositionalReLU
    | Sliced
    | PostHoc
    | RandomMask,
    Field(discriminator="kind"),
]

ARMS: dict[str, type[ArmConfig]] = {
    "standard": Standard,
    "topk": TopK,
    "batchtopk": BatchTopK,
    "jumprelu": JumpReLU,
    "matryoshka": Matryoshka,
    "tsae": TSAE,
    "budgeted": Budgeted,
    "position_mean": PositionMean,
    "positional": Positional,
    "positional_relu": PositionalReLU,
    "sliced": Sliced,
    "posthoc": PostHoc,
    "random_mask": RandomMask,
}

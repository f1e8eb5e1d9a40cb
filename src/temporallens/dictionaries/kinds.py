"""The arms that a study can name. A new arm is one file beside this one, and one line here."""

from typing import Annotated

from pydantic import Field

from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.dictionaries.arms.budgeted import Budgeted
from temporallens.dictionaries.arms.jumprelu import JumpReLU
from temporallens.dictionaries.arms.matryoshka import Matryoshka
from temporallens.dictionaries.arms.position_mean import PositionMean
from temporallens.dictionaries.arms.positional import Positional
from temporallens.dictionaries.arms.positional_relu import PositionalReLU
from temporallens.dictionaries.arms.posthoc import PostHoc
from temporallens.dictionaries.arms.random_mask import RandomMask
from temporallens.dictionaries.arms.sliced import Sliced
from temporallens.dictionaries.arms.standard import Standard
from temporallens.dictionaries.arms.topk import TopK
from temporallens.dictionaries.arms.tsae import TSAE
from temporallens.dictionaries.base import ArmConfig

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

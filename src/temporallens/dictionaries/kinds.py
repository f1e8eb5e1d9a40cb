"""The arms that a study can name. A new arm is one file in `arms/` and two lines here: an import, and a member of the union.

Their order is that in which an arm is chosen where several of one role stand in a study (`config.Role`).
"""
# ruff: noqa: PLC0414 (names of the package too, to type checkers)

from typing import Annotated, get_args

from pydantic import Field

from temporallens.dictionaries.arms.batchtopk import BatchTopK as BatchTopK
from temporallens.dictionaries.arms.budgeted import Budgeted as Budgeted
from temporallens.dictionaries.arms.jumprelu import JumpReLU as JumpReLU
from temporallens.dictionaries.arms.matryoshka import Matryoshka as Matryoshka
from temporallens.dictionaries.arms.position_bias import PositionBias as PositionBias
from temporallens.dictionaries.arms.position_mean import PositionMean as PositionMean
from temporallens.dictionaries.arms.positional import Positional as Positional
from temporallens.dictionaries.arms.positional_relu import PositionalReLU as PositionalReLU
from temporallens.dictionaries.arms.posthoc import PostHoc as PostHoc
from temporallens.dictionaries.arms.pretrained import Pretrained as Pretrained
from temporallens.dictionaries.arms.random_mask import RandomMask as RandomMask
from temporallens.dictionaries.arms.sliced import Sliced as Sliced
from temporallens.dictionaries.arms.standard import Standard as Standard
from temporallens.dictionaries.arms.tfa import TFA as TFA
from temporallens.dictionaries.arms.tokenized import Tokenized as Tokenized
from temporallens.dictionaries.arms.topk import TopK as TopK
from temporallens.dictionaries.arms.tsae import TSAE as TSAE
from temporallens.dictionaries.base import ArmConfig
from temporallens.dictionaries.config import Role

Arm = Annotated[
    BatchTopK
    | TopK
    | JumpReLU
    | Matryoshka
    | Standard
    | TSAE
    | TFA
    | Tokenized
    | Budgeted
    | PositionMean
    | PositionBias
    | Positional
    | PositionalReLU
    | Sliced
    | PostHoc
    | RandomMask
    | Pretrained,
    Field(discriminator="kind"),
]

ARMS: dict[str, type[ArmConfig]] = {arm.model_fields["kind"].default: arm for arm in get_args(get_args(Arm)[0])}
"""By kind, in the same order."""

UNTRAINED = {kind for kind, arm in ARMS.items() if not arm.trained}
"""Kinds of dictionaries that were trained elsewhere."""


def kinds_of(role: Role) -> list[str]:
    """The kinds of arms that have a role, the one to be chosen first coming first."""
    return [kind for kind, arm in ARMS.items() if role in arm.roles]

"""The arms that a study can name. A new arm is one file beside this one, and one line here."""

from typing import Annotated

from pydantic import Field

from temporallens.dictionaries.batchtopk import BatchTopK
from temporallens.dictionaries.positional import Positional
from temporallens.dictionaries.standard import Standard

Arm = Annotated[Standard | BatchTopK | Positional, Field(discriminator="kind")]

ARMS: dict[str, type[Standard] | type[BatchTopK] | type[Positional]] = {
    "standard": Standard,
    "batchtopk": BatchTopK,
    "positional": Positional,
}

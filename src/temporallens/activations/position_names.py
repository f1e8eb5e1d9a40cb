"""Names of positions, where these are roles: the columns of a table, the fields of a record, the rows and columns of patches."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter, ValidationError, WithJsonSchema

from temporallens.activations.clocks import MOST_POSITIONS
from temporallens.errors import TemporalLensError
from temporallens.settings import first_problem

NAMES = "position_names"
"""Their key among the policies of a store."""
LONGEST = 80
"""Characters of a name."""


def _by_number(names: Any) -> Any:
    """A list names 0, 1, ...; in JSON numbers are strings."""
    if isinstance(names, list | tuple):
        names = dict(enumerate(names))
    if not isinstance(names, Mapping) or not names:
        raise ValueError("names of positions are a list of them, from position 0, or a mapping from positions to names")
    found = {}
    for position, name in names.items():
        number = int(position) if isinstance(position, str) and position.isdecimal() else position
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < MOST_POSITIONS:
            raise ValueError(f"{position!r:.40} is no position: these are whole numbers from 0 to {MOST_POSITIONS - 1:,}")
        if not isinstance(name, str) or not name.strip() or len(name) > LONGEST:
            raise ValueError(f"the name of position {number} is {name!r:.60}: it should be 1 to {LONGEST} characters")
        found[number] = name
    return found


WRITTEN: dict[str, Any] = {
    "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "object", "additionalProperties": {"type": "string"}}]
}
"""The JSON schema of names: a list from 0, or by number."""
PositionNames = Annotated[dict[int, str], BeforeValidator(_by_number), WithJsonSchema(WRITTEN)]
_ADAPTER: TypeAdapter[dict[int, str]] = TypeAdapter(PositionNames)


def checked_names(names: Any) -> dict[int, str]:
    """Names by position. Raises TemporalLensError for what are none."""
    try:
        return _ADAPTER.validate_python(names)
    except ValidationError as error:
        raise TemporalLensError(f"position_names: {first_problem(error)}") from error


def as_json_keys(names: Mapping[int, str]) -> dict[str, str]:
    """As they stand in a manifest."""
    return {str(position): name for position, name in sorted(names.items())}


def names_in(policies: Mapping[str, Any]) -> dict[int, str]:
    """Those of a store with these policies; none where it has none."""
    found = policies.get(NAMES)
    return {} if found is None else checked_names(found)

"""Named tuples as JSON and back: what a measurement finds is written, and read again, by its own type."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter


def as_json(value: Any) -> Any:
    """Named tuples as objects, keys as text."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: as_json(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(key): as_json(part) for key, part in value.items()}
    return [as_json(part) for part in value] if isinstance(value, list | tuple) else value


def from_json(kind: Any, content: Any) -> Any:
    """What `as_json` wrote of a `kind`, a named tuple. Raises pydantic's ValidationError where `content` is not of that form."""
    return _adapter(kind).validate_python(content)


@lru_cache
def _adapter(kind: Any) -> Any:  # pydantic's TypeAdapter, whose construction takes milliseconds
    return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))

"""The one base of all settings: frozen, strict about their names, and refused with one sentence.

Inside a larger model, or through `model_validate`, pydantic's own ValidationError is raised, from which the reader of study files
makes a sentence that names file and line. Who calls a class of settings in Python gets a TemporalLensError at once.
"""

import operator
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from temporallens.errors import TemporalLensError, did_you_mean

if TYPE_CHECKING:
    _Refusing = type  # what pydantic declares of fields to type checkers holds
else:

    class _Refusing(type(BaseModel)):
        """pydantic makes nested models without calling their class, so what is caught here is the outermost call alone."""

        def __call__(cls, *arguments: Any, **fields: Any) -> Any:
            for name in fields.keys() & cls.model_fields.keys():
                if _is_truth_value(fields[name]) and not _may_be_true(cls.model_fields[name].annotation):  # to Python, True is a 1
                    raise TemporalLensError(f"{name} is {fields[name]}: a number or a word is needed here, neither True nor False")
            try:
                return super().__call__(*arguments, **fields)
            except ValidationError as error:
                raise TemporalLensError(complaint(error, cls, fields)) from error


class Settings(BaseModel, metaclass=_Refusing):
    """Frozen settings that refuse what they do not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*")
    @classmethod
    def _within_64_bits(cls, value: Any) -> Any:
        """Beyond them NumPy and PyTorch count nothing."""
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and not -(1 << 63) <= number < 1 << 63:
                raise ValueError("a number of more than 64 bits counts nothing here; give a smaller one")
        return value


Length = Annotated[int, Field(le=1 << 24)]
"""Of a row, in positions: more than any model has, and few enough for tables over them."""

Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
"""What every generator takes."""


def whole_seed(seed: Any) -> int:
    """`seed` where it is no setting. Raises TemporalLensError unless it is a whole number that generators take."""
    whole = None if isinstance(seed, bool) or not hasattr(seed, "__index__") else operator.index(seed)
    if whole is None or not 0 <= whole < 1 << 63:
        raise TemporalLensError(f"seed is {seed!r}: it should be a whole number from 0 to 2^63 - 1")
    return whole


def _is_truth_value(value: object) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")  # NumPy's and PyTorch's too


def _may_be_true(annotation: Any) -> bool:
    return annotation is bool or bool in get_args(annotation)


def not_asked(part: object) -> bool:
    """Of what came after 0.1.0: where it is not asked for, it leaves no trace, so that what was finished stays so."""
    return part is None


def first_problem(error: ValidationError) -> str:
    """Where a file's content is not as it should be, and how."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def complaint(error: ValidationError, settings: type[BaseModel], fields: dict[str, Any]) -> str:
    """The sentence for the first thing that is wrong with `fields` as values for `settings`."""
    found = error.errors(include_url=False)
    same_field = [details for details in found if details["loc"][:1] == found[0]["loc"][:1]]
    first = max(same_field, key=lambda details: len(_name(details["loc"], fields)))  # of the members of a union the one that got furthest
    name = _name(first["loc"], fields)
    key = str(first["loc"][-1]) if first["loc"] else ""
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        return f"{settings.__name__} has no setting '{key}'{did_you_mean(key, settings.model_fields)}"
    if first["type"] == "missing":
        return f"{name or settings.__name__} needs the setting '{key}'"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{name}: {message}" if name else message
    messages = [lower(details["msg"]) for details in found if _name(details["loc"], fields) == name]
    return f"{name} is {short(first['input'])}: {' or '.join(dict.fromkeys(messages))}"


def _name(location: tuple[int | str, ...], fields: Any) -> str:
    """pydantic's location without the members of unions that it names too: they are no keys of the values."""
    names, value = [], fields
    for part in location:
        entries: Any = dict(enumerate(value)) if isinstance(value, list | tuple) else value
        if isinstance(entries, dict) and part in entries:
            names.append(str(part))
            value = entries[part]
    return ".".join(names)


def lower(message: str) -> str:
    """A sentence of pydantic's as a part of one."""
    return message[:1].lower() + message[1:]


def short(value: object) -> str:
    """A value as Python writes it, as far as a sentence has room."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

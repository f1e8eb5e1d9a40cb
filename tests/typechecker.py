"""What checks the annotations of every function while tests run: beartype, with an int accepted where a float is asked for.

Functions inside functions are left out: they are made, and would be made checkable, anew at every call.
"""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    return function if "<locals>" in function.__qualname__ else _check(function)

"""Reading what an outside tool says. What is missing is unknown, and so is a number that nobody can have counted (negative, infinite,
not a number); a word where a number or a list belongs is an error that names the field, and says nothing of what it holds.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from fairlead.errors import BadInput


def read(source: Any, name: str) -> Any:
    """A field of a mapping or of an object; None when it is missing."""
    found = getattr(source, name, None)  # first, since to ask what is a mapping takes five times as long
    return source.get(name) if found is None and isinstance(source, Mapping) else found


def amount(source: Any, name: str, of: str) -> float | None:
    """A field that counts something; None where it is unknown. ``of`` is whose field it is, for the error. Raises BadInput where it
    is no number."""
    value = read(source, name)
    if value is None:
        return None
    found = number(value, f"{of}.{name}")
    return found if 0.0 <= found < math.inf else None


def number(value: Any, field: str) -> float:
    """Raises BadInput where it is none; digits in quotes are none either."""
    if isinstance(value, str | bytes):
        raise _wrong(value, field, "a number")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise _wrong(value, field, "a number") from None


def moment(value: Any) -> float:
    """``now`` in seconds. Raises BadInput where it is no finite number."""
    found = number(value, "now")
    if not math.isfinite(found):
        raise BadInput("now: it is not finite", field="now")
    return found


def name_of(source: Any, of: str) -> str:
    """The ``id``, as text. Raises BadInput where there is none."""
    found = read(source, "id")
    if found is None:
        raise BadInput(f"{of}.id is missing", field=f"{of}.id")
    return str(found)


def several(value: Any, field: str) -> Iterable[Any]:
    """Raises BadInput where it is no list."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise _wrong(value, field, "a list")
    return value


def _wrong(value: Any, field: str, wanted: str) -> BadInput:
    return BadInput(f"{field}: {type(value).__name__} where {wanted} belongs", field=field)

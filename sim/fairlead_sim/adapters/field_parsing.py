"""Reading what an outside tool says. What is missing is unknown, and so is a number that nobody can have counted (negative, infinite,
not a number); a word where a number or a list belongs is an error that names the field, and says nothing of what it holds.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from fairlead.errors import BadInput


def read_field(source: Any, name: str) -> Any:
    """A field of a mapping or of an object; None when it is missing."""
    value = getattr(source, name, None)  # first, since to ask what is a mapping takes five times as long
    return source.get(name) if value is None and isinstance(source, Mapping) else value


def read_count(source: Any, name: str, owner: str) -> float | None:
    """A field that counts something; None where it is unknown. ``of`` is whose field it is, for the error. Raises BadInput where it
    is no number."""
    value = read_field(source, name)
    if value is None:
        return None
    # The path is put together where it is needed only: a look at 10,000 replicas reads 100,000 fields.
    count = value if type(value) is float else parse_number(value, f"{owner}.{name}")
    return count if 0.0 <= count < math.inf else None


def read_bounded(source: Any, name: str, owner: str, minimum: float, maximum: float) -> float | None:
    """A field that says how something is to be, not what was counted; None where it is missing. Raises BadInput where it is no
    number, and where it is none between ``least`` and ``most``."""
    value = read_field(source, name)
    if value is None:
        return None
    field = f"{owner}.{name}" if owner else name
    parsed = parse_number(value, field)
    if not minimum <= parsed <= maximum:
        raise BadInput(f"{field}: {parsed:g} is not between {minimum:g} and {maximum:g}", field=field)
    return parsed


def parse_number(value: Any, field: str) -> float:
    """Raises BadInput where it is none; digits in quotes are none either, nor are true and false."""
    if isinstance(value, str | bytes | bool):
        raise _type_error(value, field, "a number")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise _type_error(value, field, "a number") from None


def parse_time(value: Any) -> float:
    """``now`` in seconds. Raises BadInput where it is no finite number."""
    seconds = parse_number(value, "now")
    if not math.isfinite(seconds):
        raise BadInput("now: it is not finite", field="now")
    return seconds


def read_id(source: Any, owner: str) -> str:
    """The ``id``, as text. Raises BadInput where there is none."""
    identifier = read_field(source, "id")
    if identifier is None:
        raise BadInput(f"{owner}.id is missing", field=f"{owner}.id")
    return str(identifier)


def require_list(value: Any, field: str) -> Iterable[Any]:
    """Raises BadInput where it is no list."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise _type_error(value, field, "a list")
    return value


def require_object(value: Any, field: str) -> Any:
    """Raises BadInput where it has no fields: where it is neither a mapping nor an object with attributes, nor missing."""
    if isinstance(value, str | bytes | bool | int | float | list | tuple):
        raise _type_error(value, field, "an object")
    return value


def require_mapping(value: Any, field: str) -> Mapping[Any, Any]:
    """Raises BadInput where it is nothing in which each thing has its name."""
    if not isinstance(value, Mapping):
        raise _type_error(value, field, "an object with a field for each name")
    return value


def _type_error(value: Any, field: str, expected: str) -> BadInput:
    return BadInput(f"{field}: {type(value).__name__} where {expected} belongs", field=field)

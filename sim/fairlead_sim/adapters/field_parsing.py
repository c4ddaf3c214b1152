"""Parsing of the fields that an outside tool passes, as mappings or objects.

A missing field is unknown, and so is an impossible count: negative, infinite or not a number. A
value of a wrong type is an error that names the field but not the value.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from fairlead.errors import BadInput


def read_field(source: Any, name: str) -> Any:
    """Returns a field of a mapping or an object; None if it is missing."""
    value = getattr(source, name, None)  # first: the Mapping check takes five times as long
    return source.get(name) if value is None and isinstance(source, Mapping) else value


def read_count(source: Any, name: str, owner: str) -> float | None:
    """Returns a count; None if it is unknown. Raises BadInput if it is not a number.

    owner: the path of the parent, for the error.
    """
    value = read_field(source, name)
    if value is None:
        return None
    # The path is built on errors only: 10,000 replicas have 100,000 fields.
    count = value if type(value) is float else parse_number(value, f"{owner}.{name}")
    return count if 0.0 <= count < math.inf else None


def read_bounded(source: Any, name: str, owner: str, minimum: float, maximum: float) -> float | None:
    """Returns a configured number; None if it is missing.

    Raises BadInput if it is not a number between ``minimum`` and ``maximum``.
    """
    value = read_field(source, name)
    if value is None:
        return None
    field = f"{owner}.{name}" if owner else name
    parsed = parse_number(value, field)
    if not minimum <= parsed <= maximum:
        raise BadInput(f"{field}: {parsed:g} is not between {minimum:g} and {maximum:g}", field=field)
    return parsed


def parse_number(value: Any, field: str) -> float:
    """Returns the number. Raises BadInput for other types; strings and booleans are not numbers."""
    if isinstance(value, str | bytes | bool):
        raise _type_error(value, field, "a number")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise _type_error(value, field, "a number") from None


def parse_time(value: Any) -> float:
    """Returns ``now`` in seconds. Raises BadInput if it is not a finite number."""
    seconds = parse_number(value, "now")
    if not math.isfinite(seconds):
        raise BadInput("now is not finite", field="now")
    return seconds


def read_id(source: Any, owner: str) -> str:
    """Returns the ``id`` as text. Raises BadInput if it is missing."""
    identifier = read_field(source, "id")
    if identifier is None:
        raise BadInput(f"{owner}.id is missing", field=f"{owner}.id")
    return str(identifier)


def require_list(value: Any, field: str) -> Iterable[Any]:
    """Returns the value. Raises BadInput if it is not a list."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise _type_error(value, field, "a list")
    return value


def require_object(value: Any, field: str) -> Any:
    """Returns the value. Raises BadInput for a scalar or a list."""
    if isinstance(value, str | bytes | bool | int | float | list | tuple):
        raise _type_error(value, field, "an object")
    return value


def require_mapping(value: Any, field: str) -> Mapping[Any, Any]:
    """Returns the value. Raises BadInput if it is not a mapping."""
    if not isinstance(value, Mapping):
        raise _type_error(value, field, "an object with a field for each name")
    return value


def _type_error(value: Any, field: str, expected: str) -> BadInput:
    return BadInput(f"{field}: {type(value).__name__} where {expected} belongs", field=field)

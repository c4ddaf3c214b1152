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
    # The path is put together where it is needed only: a look at 10,000 replicas reads 100,000 fields.
    found = value if type(value) is float else number(value, f"{of}.{name}")
    return found if 0.0 <= found < math.inf else None


def within(source: Any, name: str, of: str, least: float, most: float) -> float | None:
    """A field that says how something is to be, not what was counted; None where it is missing. Raises BadInput where it is no
    number, and where it is none between ``least`` and ``most``."""
    value = read(source, name)
    if value is None:
        return None
    field = f"{of}.{name}" if of else name
    found = number(value, field)
    if not least <= found <= most:
        raise BadInput(f"{field}: {found:g} is not between {least:g} and {most:g}", field=field)
    return found


def number(value: Any, field: str) -> float:
    """Raises BadInput where it is none; digits in quotes are none either, nor are true and false."""
    if isinstance(value, str | bytes | bool):
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


def record(value: Any, field: str) -> Any:
    """Raises BadInput where it has no fields: where it is neither a mapping nor an object with attributes, nor missing."""
    if isinstance(value, str | bytes | bool | int | float | list | tuple):
        raise _wrong(value, field, "an object")
    return value


def named(value: Any, field: str) -> Mapping[Any, Any]:
    """Raises BadInput where it is nothing in which each thing has its name."""
    if not isinstance(value, Mapping):
        raise _wrong(value, field, "an object with a field for each name")
    return value


def _wrong(value: Any, field: str, wanted: str) -> BadInput:
    return BadInput(f"{field}: {type(value).__name__} where {wanted} belongs", field=field)

"""What could not be had, with the reason: it takes the place of a value, so that nobody can mistake it for an empty one."""

import re
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final, TypeVar

from fairlead.errors import FairleadError
from fairlead.kube.errors import Forbidden, NotFound

_Value = TypeVar("_Value")
NOT_ALLOWED_PREFIX: Final = "you may not"
"""How what we have no right to begins."""
_NO_KIND: Final = ("404 page not found", "the server could not find the requested resource")
"""How the API server says that it serves nothing under a path."""
_DENIED: Final = re.compile(
    r'cannot (\w+) resource "([^"]+)" in API group "[^"]*" (?:at the cluster scope|in the namespace "([^"]+)")'
)


@dataclass(frozen=True, slots=True)
class MissingValue:
    """``why`` in words for people. ``forbidden``: we may not; ``absent``: the API server says that it is not there."""

    reason: str
    is_forbidden: bool = False
    is_absent: bool = False


async def value_or_missing(request: Awaitable[_Value]) -> _Value | MissingValue:
    """The answer, or why there is none."""
    try:
        return await request
    except Forbidden as error:
        return MissingValue(_reason(error), is_forbidden=True)
    except NotFound as error:
        return MissingValue(_reason(error), is_absent=True)
    except FairleadError as error:
        return MissingValue(_reason(error))


def _reason(error: FairleadError) -> str:
    """Without the request in front, which says nothing to people."""
    head, _, rest = error.message.partition(": ")
    words = rest if rest and head.startswith(("GET /", "POST /", "PATCH /")) else error.message
    if words in _NO_KIND:
        return "the cluster does not know this kind"
    denied = _DENIED.search(words)
    if denied is None:
        return words
    return f"{NOT_ALLOWED_PREFIX} {denied[1]} {denied[2]} {f'in {denied[3]}' if denied[3] else 'in the whole cluster'}"

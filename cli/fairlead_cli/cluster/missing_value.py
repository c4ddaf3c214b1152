"""A value that could not be read, with the reason. It takes the place of the value, so that it is
never taken for an empty one.
"""

import re
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final, TypeVar

from fairlead.errors import FairleadError
from fairlead.kube.errors import Forbidden, NotFound

_Value = TypeVar("_Value")
NOT_ALLOWED_PREFIX: Final = "you may not"
"""Beginning of a reason that is a missing permission."""
_NO_KIND: Final = ("404 page not found", "the server could not find the requested resource")
"""Messages of the API server for a path that it does not serve."""
_DENIED: Final = re.compile(
    r'cannot (\w+) resource "([^"]+)" in API group "[^"]*" (?:at the cluster scope|in the namespace "([^"]+)")'
)


@dataclass(frozen=True, slots=True)
class MissingValue:
    """The reason why there is no value. ``is_absent``: the API server says that the object does not
    exist.
    """

    reason: str
    is_forbidden: bool = False
    is_absent: bool = False


async def value_or_missing(request: Awaitable[_Value]) -> _Value | MissingValue:
    """Awaits a request; returns its result, or a MissingValue in place of a FairleadError."""
    try:
        return await request
    except Forbidden as error:
        return MissingValue(_reason(error), is_forbidden=True)
    except NotFound as error:
        return MissingValue(_reason(error), is_absent=True)
    except FairleadError as error:
        return MissingValue(_reason(error))


def _reason(error: FairleadError) -> str:
    """Returns why a request failed: the message without the request line, or the permission that
    the user lacks.
    """
    head, _, rest = error.message.partition(": ")
    message = rest if rest and head.startswith(("GET /", "POST /", "PATCH /")) else error.message
    if message in _NO_KIND:
        return "the cluster does not know this kind"
    match = _DENIED.search(message)
    if match is None:
        return message
    return f"{NOT_ALLOWED_PREFIX} {match[1]} {match[2]} {f'in {match[3]}' if match[3] else 'in the whole cluster'}"

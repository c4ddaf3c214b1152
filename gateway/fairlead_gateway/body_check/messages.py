"""The messages of the checking process.

The body follows the query as it is, without a length of its own.
"""

from dataclasses import asdict, replace

import msgspec

from fairlead.limits import Limits
from fairlead_gateway.dialects.text_bounds import TextBounds


class BodyQuery(msgspec.Struct, array_like=True):
    """A query: is this body valid?

    - kind: the name of the request type, as in `BODY_DECODERS`.
    - body_bytes: the size of the body that follows.
    - wants_bounds: the reply says what its bytes do not bound, for which all of it is searched.
    """

    kind: str
    body_bytes: int
    wants_bounds: bool


class BodyProblem(msgspec.Struct, array_like=True):
    """The problem of a body: the parts of a `BadRequest`.

    repairs: as in `BadRequest`.
    """

    message: str
    param: str | None
    code: str
    hint: str | None
    repairs: dict[str, bytes] = {}


class BodyReply(msgspec.Struct, array_like=True):
    """The reply to a query.

    - problem: None if the body is valid.
    - fields: the checked fields as JSON. Of fields whose value the gateway does not use, only the
      presence is left.
    - members: the names of all top-level fields. A value is left of those only that `field_policy`
      reads, and only a short one.
    - cache_variant, bounds, items, repeated_bytes, prompts: as in `ModelRequest`.
    - prompt_start, prompt_end: where the JSON text of the prompt lies in the body; both 0 for
      requests without a prompt that the gateway reads.
    - context: where the other texts lie that engines put into the prompt.
    """

    problem: BodyProblem | None = None
    fields: bytes = b""
    members: dict[str, bytes] = {}
    prompt_start: int = 0
    prompt_end: int = 0
    cache_variant: bytes = b""
    bounds: TextBounds | None = None
    context: list[tuple[int, int]] = []
    repeated_bytes: int = 0
    prompts: int = 1
    items: int = 1


def encode_limits(limits: Limits) -> str:
    """Returns the limits that are not the default ones, as JSON for the command line."""
    defaults = asdict(Limits())
    changed = {name: value for name, value in asdict(limits).items() if value != defaults[name]}
    return msgspec.json.encode(changed).decode()


def decode_limits(text: str) -> Limits:
    return replace(Limits(), **msgspec.json.decode(text))

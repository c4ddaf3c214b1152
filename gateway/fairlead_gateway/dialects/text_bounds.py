"""The bound that the bytes of a body set to the tokens of its prompt, for strict limits. Pure."""

import re
from typing import Final, NamedTuple

import msgspec

from fairlead_gateway.dialects.schemas import MEMBERS_DECODER

_NULL: Final = msgspec.Raw(b"null")
_MEDIA: Final = re.compile(rb'"(?:input_|prompt_)?(?:image|audio|video|file)[a-z_]*"[ \t\r\n]*:')
"""A key of a part of a message that is not text."""
_ESCAPED_KEY: Final = re.compile(rb'"[^"\\]*\\u[^"]*"[ \t\r\n]*:')
"""A key with an escaped letter, which could be one of `_MEDIA`."""
_OUTSIDE_INPUT: Final = ("previous_response_id", "conversation", "prompt", "mcp_servers", "container")
"""Fields of open prompts that name input which is not in the body."""
_MEDIA_TYPE: Final = re.compile(
    rb'"type"[ \t\r\n]*:[ \t\r\n]*"(?:(?:input_)?(?:image|audio|video|file)[a-z_]*|document|item_reference)"'
)
"""A part of an open prompt whose tokens have no bound in its bytes."""
_OWN_TOOLS: Final = ("function", "custom")
_DECODE_ERRORS: Final = (msgspec.MsgspecError, RecursionError)


class UnboundedField(NamedTuple):
    """A field of an open prompt with tokens that its bytes do not bound."""

    name: str
    reason: str


class TextBounds(NamedTuple):
    """Causes of tokens that the bytes of a body do not bound.

    has_media: the body may have parts that are not text.
    unbounded: the first such field; None if there is none, or if the prompt is not open.
    """

    has_media: bool
    unbounded: UnboundedField | None


def text_bounds(body: bytes, *, is_open: bool) -> TextBounds:
    """Returns the causes of tokens that the bytes of a valid body do not bound.

    is_open: of its prompt, as in the table of dialects. Otherwise `unbounded` is None.
    """
    has_media = _MEDIA.search(body) is not None or (b"\\u" in body and _ESCAPED_KEY.search(body) is not None)
    return TextBounds(has_media, _unbounded_field(body) if is_open and body else None)


def _unbounded_field(body: bytes) -> UnboundedField | None:
    """Returns the first field with unbounded tokens of a body with an open prompt; None if there is
    none.

    A field that cannot be read counts as unbounded. So does a tool that a server runs, since its
    results enter the prompt, and the model starts again.
    """
    members = MEMBERS_DECODER.decode(body)
    for name in _OUTSIDE_INPUT:
        if bytes(members.get(name, _NULL)) != b"null":
            return UnboundedField(name, "names input outside of the request")
    try:
        tools = msgspec.json.decode(members.get("tools", _NULL), type=list[dict[str, msgspec.Raw]] | None) or []
    except _DECODE_ERRORS:
        return UnboundedField("tools", "cannot be read")
    for tool in tools:
        if "input_schema" not in tool and bytes(tool.get("type", _NULL)).strip(b'"').decode() not in _OWN_TOOLS:
            return UnboundedField("tools", "holds a tool that a server runs")
    name = "input" if "input" in members else "messages"
    try:
        text = msgspec.json.encode(msgspec.json.decode(body))  # without escapes
    except _DECODE_ERRORS:
        return UnboundedField(name, "is in a body with a number that cannot be read")
    return None if _MEDIA_TYPE.search(text) is None else UnboundedField(name, "holds parts that are not text")

"""Every Redis name of Fairlead, built here and nowhere else.

    fl1:{<namespace>/<model>}:dec               stream: what gateways decided, the last minutes
    fl1:{<namespace>/<model>}:sent              stream: what gateways have just sent where and have in flight, their heartbeats
    fl1:{<namespace>/<model>}:hot               hash: the hot-prefix table and who keeps it; expires by itself, and is its lease

``fl1`` is the generation of the layout. The braces are a Redis Cluster hash tag: all names of one model live in one slot,
so one batch may touch them together. What could break a tag out of its braces is percent-encoded.
"""

import unicodedata
from typing import Final

from fairlead.errors import BadInput
from fairlead.names import NAME_BYTES

PREFIX: Final = "fl1"
_ESCAPED: Final = {ord(char): f"%{ord(char):02X}" for char in "%{}*?[]\\ "}


def decisions(model_key: str) -> str:
    """The stream of decisions of one model."""
    return f"{_tag(model_key)}:dec"


def sent(model_key: str) -> str:
    """The stream of what gateways have just sent where."""
    return f"{_tag(model_key)}:sent"


def hot(model_key: str) -> str:
    """The table of hot prefixes of one model."""
    return f"{_tag(model_key)}:hot"


def _tag(model_key: str) -> str:
    namespace, slash, name = model_key.partition("/")
    if not slash:
        raise BadInput(f"{model_key!r} is no model key", field="model", hint="write it as namespace/name")
    return f"{PREFIX}:{{{_part(namespace, 'namespace')}/{_part(name, 'model')}}}"


def _part(text: str, field: str) -> str:
    """One part of a name: NFC, bounded, and unable to end its tag or act as a pattern."""
    part = unicodedata.normalize("NFC", text)
    if not part or len(part.encode("utf-8", "surrogatepass")) > NAME_BYTES:
        raise BadInput(f"it is empty or longer than {NAME_BYTES} bytes", field=field)
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in part):
        raise BadInput("it holds a control character", field=field)
    return part.translate(_ESCAPED)

"""Every Redis name of Fairlead, built here and nowhere else.

    fl1:{<namespace>/<model>}:dec               stream: what gateways decided, the last minutes
    fl1:{<namespace>/<model>}:sent              stream: what gateways have just sent where and have in flight, their heartbeats
    fl1:{<namespace>/<model>}:hot               hash: the hot-prefix table and who keeps it; expires by itself, and is its lease
    fl1:{<namespace>/<model>}:want              string: hot prefixes that want another home; expires by itself
    fl1:{<namespace>/<model>}:lnk               stream: which blocks of text are which blocks of tokens, as hashes
    fl1:{<namespace>/<model>/<shard>}:own       which indexer writes the index just now; expires by itself
    fl1:{<namespace>/<model>/<shard>}:ev        stream: what changed in the index, since the oldest part of it was written down
    fl1:{<namespace>/<model>/<shard>}:idx       hash: the index itself, see ``index/layout.py``

``fl1`` is the generation of the layout. The braces are a Redis Cluster hash tag: all names of one model live in one slot,
so one batch may touch them together. What could break a tag out of its braces is percent-encoded.
"""

import unicodedata
from typing import Final
from urllib.parse import unquote

from fairlead.errors import BadInput
from fairlead.names import MAX_NAME_BYTES

PREFIX: Final = "fl1"
_ESCAPED: Final = {ord(char): f"%{ord(char):02X}" for char in "%{}*?[]\\ "}


def decisions(model_key: str) -> str:
    """The stream of decisions of one model."""
    return f"{_tag(model_key)}:dec"


def sent_prompts(model_key: str) -> str:
    """The stream of what gateways have just sent where."""
    return f"{_tag(model_key)}:sent"


def hot_prefixes(model_key: str) -> str:
    """The table of hot prefixes of one model."""
    return f"{_tag(model_key)}:hot"


def replication_hints(model_key: str) -> str:
    """Which hot prefixes of one model want another home."""
    return f"{_tag(model_key)}:want"


def prompt_alignments(model_key: str) -> str:
    """The stream of what gateways learned of prompts: their text's blocks and their tokens' blocks, as hashes."""
    return f"{_tag(model_key)}:lnk"


def index_keys(model_key: str) -> tuple[str, str, str]:
    """Lease, index and stream of changes of one model's only shard; all in one slot."""
    tag = _tag(model_key, "/0")
    return f"{tag}:own", f"{tag}:idx", f"{tag}:ev"


def index_pattern() -> str:
    """The pattern that finds the indexes of all models."""
    return f"{PREFIX}:{{*/0}}:idx"


def model_of_index_key(name: bytes) -> str | None:
    """The model of a key that the pattern found; None for one that is none of ours."""
    before, after = f"{PREFIX}:{{".encode(), b"/0}:idx"
    if not name.startswith(before) or not name.endswith(after):
        return None
    try:
        key = unquote(name[len(before) : -len(after)].decode(), errors="strict")
    except UnicodeDecodeError:
        return None
    return key if "/" in key else None


def _tag(model_key: str, shard: str = "") -> str:
    namespace, slash, name = model_key.partition("/")
    if not slash:
        raise BadInput(f"{model_key!r} is no model key", field="model", hint="write it as namespace/name")
    return f"{PREFIX}:{{{_escaped(namespace, 'namespace')}/{_escaped(name, 'model')}{shard}}}"


def _escaped(text: str, field: str) -> str:
    """One part of a name: NFC, bounded, and unable to end its tag or act as a pattern."""
    part = unicodedata.normalize("NFC", text)
    if not part or len(part.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise BadInput(f"it is empty or longer than {MAX_NAME_BYTES} bytes", field=field)
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in part):
        raise BadInput("it holds a control character", field=field)
    return part.translate(_ESCAPED)

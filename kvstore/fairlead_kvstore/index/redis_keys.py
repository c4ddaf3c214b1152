"""Every Redis key of Fairlead, built here and nowhere else.

    fl1:{<namespace>/<model>}:dec          stream: routing decisions of the last minutes
    fl1:{<namespace>/<model>}:sent         stream: dispatches of gateways, and their heartbeats
    fl1:{<namespace>/<model>}:lnk          stream: links of text blocks and token blocks, as hashes
    fl1:{<tenant>}:lim                     hash: epoch of a tenant's limits
    fl1:{<tenant>}:lim|<limit>|<start>     hash: use of a limit in one window; expires
    fl1:{<namespace>/<model>/<shard>}:own  string: the indexer that writes the index; expires
    fl1:{<namespace>/<model>/<shard>}:ev   stream: changes of the index since its oldest snapshot
    fl1:{<namespace>/<model>/<shard>}:idx  hash: the index itself, see ``index/format.py``

``fl1`` is the version of the layout. The braces are a Redis Cluster hash tag: all keys of one model
are in one slot, so one batch may use them together. Characters that could break the tag are
percent-encoded.
"""

import unicodedata
from typing import Final
from urllib.parse import unquote

from fairlead.errors import BadInput
from fairlead.names import MAX_NAME_BYTES

PREFIX: Final = "fl1"
_ESCAPED: Final = {ord(char): f"%{ord(char):02X}" for char in "%{}*?[]\\ "}


def decisions(model_key: str) -> str:
    return f"{_tag(model_key)}:dec"


def sent_prompts(model_key: str) -> str:
    return f"{_tag(model_key)}:sent"


def prompt_links(model_key: str) -> str:
    """Returns the key of the stream of links from blocks of text to blocks of tokens."""
    return f"{_tag(model_key)}:lnk"


def tenant_limits(tenant: str) -> str:
    return f"{PREFIX}:{{{_escaped(tenant, 'tenant')}}}:lim"


def index_keys(model_key: str) -> tuple[str, str, str]:
    """Returns the keys of lease, index and stream of changes of a model's only shard, in
    one slot.
    """
    tag = _tag(model_key, "/0")
    return f"{tag}:own", f"{tag}:idx", f"{tag}:ev"


def index_pattern() -> str:
    return f"{PREFIX}:{{*/0}}:idx"


def model_of_index_key(name: bytes) -> str | None:
    """Returns the model of a key that ``index_pattern`` matched; None for a key of another
    format.
    """
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
        raise BadInput(f"{model_key!r} is not a model key", field="model", hint="write it as namespace/name")
    return f"{PREFIX}:{{{_escaped(namespace, 'namespace')}/{_escaped(name, 'model')}{shard}}}"


def _escaped(text: str, field: str) -> str:
    """Returns a namespace or a model's name for use in a key: in NFC, bounded and percent-encoded.

    Raises BadInput if it is empty, too long or has control characters.
    """
    part = unicodedata.normalize("NFC", text)
    if not part or len(part.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise BadInput(f"the {field} name is empty or longer than {MAX_NAME_BYTES} bytes", field=field)
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in part):
        raise BadInput(f"the {field} name contains a control character", field=field)
    return part.translate(_ESCAPED)

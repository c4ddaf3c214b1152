"""Names: what Kubernetes and URLs allow, and how a too long or clashing one is shortened."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable

from fairlead.errors import BadInput

DNS_LABEL_PATTERN = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
DNS_SUBDOMAIN_PATTERN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
MAX_NAME_BYTES = 253
SERVED_NAME_PATTERN = re.compile(r"[A-Za-z0-9._/:@+-]{1,253}")
"""What an engine may call a model: text that every writer of JSON writes alike, since it is looked for in answers."""


def normalize_model_name(text: str, *, field: str = "model") -> str:
    """A client's model name in NFC. Raises BadInput when empty, longer than 253 bytes or holding control characters."""
    name = unicodedata.normalize("NFC", text)
    if not name or len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise BadInput("the model name is empty or longer than 253 bytes", field=field)
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in name):
        raise BadInput("the model name holds a control character", field=field)
    return name


def shorten_name(name: str, *, taken: Iterable[str] = ()) -> str:
    """A DNS label: unchanged when it fits and is free, else cut with a 6-hex hash of the whole name."""
    if len(name) <= 63 and name not in set(taken):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{name[:56].rstrip('-')}-{digest}"


def closest_matches(name: str, known: Iterable[str], *, count: int = 3) -> list[str]:
    """The known names most like ``name``, best first: for error messages that help."""
    import difflib  # only who has something to say pays for it

    by_folded = {item.casefold(): item for item in known}
    return [by_folded[match] for match in difflib.get_close_matches(name.casefold(), by_folded, n=count, cutoff=0.5)]

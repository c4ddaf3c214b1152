"""Names: the forms that Kubernetes and URLs allow, and the shortening of long names."""

import hashlib
import re
from collections.abc import Iterable

from fairlead.errors import BadInput

DNS_LABEL_PATTERN = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
DNS_SUBDOMAIN_PATTERN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
MAX_NAME_BYTES = 253
SERVED_NAME_PATTERN = re.compile(r"[A-Za-z0-9._/:@+-]{1,253}")
"""Model names accepted for engines: text that every JSON writer encodes in the same way.

Why: gateways search for the name in engine responses.
"""

ALL_NAMESPACES = "*"
"""Stands for every namespace in a list of them."""
EXTERNAL_SUFFIX = "-external"
"""Ends the name of a model that stands in for another one until the cut-over."""


def normalize_model_name(text: str, *, field: str = "model") -> str:
    """Returns a client's model name in Unicode NFC.

    Raises BadInput if the name is empty, longer than 253 bytes, or has control characters.
    """
    name = text if text.isascii() else _to_nfc(text)
    if not name or len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise BadInput("the model name is empty or longer than 253 bytes", field=field)
    if _has_control_character(name):
        raise BadInput("the model name holds a control character", field=field)
    return name


def _to_nfc(text: str) -> str:
    import unicodedata  # 0.7 MB in each process of a gateway, and most names are ASCII

    return unicodedata.normalize("NFC", text)


def _has_control_character(name: str) -> bool:
    if name.isascii():
        return not name.isprintable()
    import unicodedata

    return any(unicodedata.category(char) in ("Cc", "Cs") for char in name)


def shorten_name(name: str, *, taken: Iterable[str] = ()) -> str:
    """Returns a DNS label: `name` itself if it fits and is free, else cut and with a 6-hex hash."""
    if len(name) <= 63 and name not in set(taken):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{name[:56].rstrip('-')}-{digest}"


def closest_matches(name: str, known: Iterable[str], *, count: int = 3) -> list[str]:
    """Returns the known names most similar to `name`, best first, for error messages."""
    import difflib  # loaded only when there is an error to report

    by_folded = {item.casefold(): item for item in known}
    return [by_folded[match] for match in difflib.get_close_matches(name.casefold(), by_folded, n=count, cutoff=0.5)]


def suggest_fix(name: object, known: Iterable[str], otherwise: str) -> str:
    matches = closest_matches(name, known, count=1) if isinstance(name, str) else []
    return f"did you mean {matches[0]}?" if matches else otherwise

"""Who may call: API keys, known here by their digests alone.

Each key is known by its name and its HMAC-SHA-256 under the installation's pepper (``keys_file``
reads them). A request's key is digested before anything is compared, so the dictionary only sees
digests, and how far two of them agree says nothing about the keys. The last comparison is constant
in time all the same.

The key is looked for in ``Authorization: Bearer KEY``, else in ``x-api-key``.
"""

import hmac
from collections.abc import Mapping

from fairlead_gateway.errors import InvalidApiKey
from fairlead_gateway.http.request_head import RequestHead

_DIGEST_NAME = "sha256"
_BEARER = b"bearer "


def key_digest(key: bytes, pepper: bytes) -> bytes:
    """HMAC-SHA-256 of ``key``; the file holds it in hexadecimal."""
    return hmac.digest(pepper, key, _DIGEST_NAME)


def api_key_of(head: RequestHead) -> bytes | None:
    """The key that a request shows, if any."""
    given = head.get(b"authorization")
    if given is not None and given[: len(_BEARER)].lower() == _BEARER:
        return given[len(_BEARER) :].strip(b" ")
    return head.get(b"x-api-key")


class ApiKeys:
    """``names`` maps digests to names."""

    def __init__(self, pepper: bytes, names: Mapping[bytes, str]) -> None:
        self._pepper = pepper
        self._known: Mapping[bytes, tuple[bytes, str]] = {}
        self.replace(names)

    def replace(self, names: Mapping[bytes, str]) -> None:
        """From now on these keys are known, and no others."""
        self._known = {known: (known, name) for known, name in names.items()}

    def caller(self, head: RequestHead) -> str:
        """The name of the key that a request shows. Raises NoKey.

        A connection that shows the very bytes of its last request again is not digested again, as
        long as the same keys are known.
        """
        seen = head.caller_cache
        if seen is not None and seen[0] is self._known:
            return seen[1]
        key = api_key_of(head)
        if not key:
            raise InvalidApiKey("no API key was given", hint="send the header Authorization: Bearer KEY, or x-api-key")
        asked = key_digest(key, self._pepper)
        known, name = self._known.get(asked, (b"", ""))
        if not hmac.compare_digest(known, asked):
            raise InvalidApiKey("this API key is not known here")
        head.caller_cache = (self._known, name)
        return name

"""Checks API keys, of which the worker knows only digests.

Each key has a name, and an HMAC-SHA-256 under the installation's pepper (`supervisor.key_file`). A
request's key is digested before it is compared, so the lookup sees digests only and its time
reveals nothing about keys. The final comparison takes constant time as well.

The key is read from `Authorization: Bearer KEY`, else from `x-api-key`.
"""

import hmac
from collections.abc import Mapping

from fairlead_gateway.errors import ApiKeysUnavailable, InvalidApiKey
from fairlead_gateway.http.request_head import RequestHead

_DIGEST_NAME = "sha256"
_BEARER = b"bearer "


def key_digest(key: bytes, pepper: bytes) -> bytes:
    """Returns the HMAC-SHA-256 of a key; the key file holds it in hexadecimal."""
    return hmac.digest(pepper, key, _DIGEST_NAME)


def api_key_of(head: RequestHead) -> bytes | None:
    """Returns the key in a request's headers; None if there is none."""
    authorization = head.get(b"authorization")
    if authorization is not None and authorization[: len(_BEARER)].lower() == _BEARER:
        return authorization[len(_BEARER) :].strip(b" ")
    return head.get(b"x-api-key")


class ApiKeys:
    """The accepted API keys.

    names: the name of each key, by its digest.
    is_loaded: False until the keys file has been valid once; every request is refused until then.
    """

    def __init__(self, pepper: bytes, names: Mapping[bytes, str], *, is_loaded: bool = True) -> None:
        self._pepper = pepper
        self._known: Mapping[bytes, tuple[bytes, str]] = {}
        self.replace(names)
        self.is_loaded = is_loaded

    def replace(self, names: Mapping[bytes, str]) -> None:
        """Replaces all accepted keys."""
        self._known = {digest: (digest, name) for digest, name in names.items()}
        self.is_loaded = True

    def caller(self, head: RequestHead) -> str:
        """Returns the name of a request's key.

        Raises InvalidApiKey without a known key, and ApiKeysUnavailable while none was loaded.
        The result is cached on the connection for as long as the accepted keys stay the same.
        """
        cached = head.caller_cache
        if cached is not None and cached[0] is self._known:
            return cached[1]
        if not self.is_loaded:
            raise ApiKeysUnavailable
        key = api_key_of(head)
        if not key:
            raise InvalidApiKey("no API key was given", hint="send the header Authorization: Bearer KEY, or x-api-key")
        digest = key_digest(key, self._pepper)
        known, name = self._known.get(digest, (b"", ""))
        if not hmac.compare_digest(known, digest):
            raise InvalidApiKey("this API key is unknown")
        head.caller_cache = (self._known, name)
        return name

    def is_known(self, head: RequestHead) -> bool:
        """Returns whether a request has a known key."""
        try:
            self.caller(head)
        except (InvalidApiKey, ApiKeysUnavailable):
            return False
        return True

"""Checks API keys, of which the worker knows only digests.

Each key has a name, and an HMAC-SHA-256 under the installation's pepper (`supervisor.key_file`). A
request's key is digested before it is compared, so the lookup sees digests only and its time
reveals nothing about keys. The final comparison takes constant time as well.

The key is read from `Authorization: Bearer KEY`, else from `x-api-key`.
"""

import hmac
from collections.abc import Mapping

from fairlead.tenants.model import CacheSharing, Tenant
from fairlead_gateway.caller_key import Caller
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


def implicit_tenant(key: str) -> Tenant:
    """Returns the tenant of a key that no tenant lists: no limits, all models, a shared cache."""
    return Tenant(key, cache_sharing=CacheSharing.CLUSTER)


class ApiKeys:
    """The accepted API keys.

    names: the name of each key, by its digest. Each is a tenant of its own.
    is_loaded: False until the keys file has been valid once; every request is refused until then.
    """

    def __init__(self, pepper: bytes, names: Mapping[bytes, str], *, is_loaded: bool = True) -> None:
        self._pepper = pepper
        self._known: Mapping[bytes, tuple[bytes, Caller]] = {}
        self.replace(names)
        self.is_loaded = is_loaded

    def replace(self, names: Mapping[bytes, str]) -> None:
        """Replaces all accepted keys."""
        self._known = {digest: (digest, Caller(implicit_tenant(name), name)) for digest, name in names.items()}
        self.is_loaded = True

    def caller(self, head: RequestHead) -> Caller:
        """Returns the caller that a request's key identifies.

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
        known = self._known.get(digest)
        if known is None or not hmac.compare_digest(known[0], digest):
            raise InvalidApiKey("this API key is unknown")
        head.caller_cache = (self._known, known[1])
        return known[1]

    def is_known(self, head: RequestHead) -> bool:
        """Returns whether a request has a known key."""
        try:
            self.caller(head)
        except (InvalidApiKey, ApiKeysUnavailable):
            return False
        return True

"""The accepted management tokens, and the scope of the one that a request carries.

There are two kinds. The token of the installation, `FAIRLEAD_MANAGE_TOKEN`, may see everything.
Those of a file have a name and a scope each, and only their digests are known.
"""

import hmac
from collections.abc import Mapping

from fairlead import http_access
from fairlead_gateway.supervisor.management.access.access_scope import AccessScope

INSTALLATION_TOKEN_NAME = "installation"
"""The name of `FAIRLEAD_MANAGE_TOKEN` in audit records."""
LOCAL_NAME = "this machine"
"""The name of clients of this machine in audit records, where no token is configured."""
_MAX_TOKEN_BYTES = 1_024


class ManageTokens:
    """All accepted tokens.

    token: that of the installation.
    pepper: the digests of the others are made under it; None: there are no others.
    """

    def __init__(self, token: str | None, pepper: bytes | None = None) -> None:
        self._token = token.encode() if token else None
        self._pepper = pepper
        self._by_digest: Mapping[bytes, AccessScope] = {}

    @property
    def are_required(self) -> bool:
        return self._token is not None or self._pepper is not None

    def replace(self, scopes: Mapping[bytes, AccessScope]) -> None:
        """Replaces the tokens of the file."""
        self._by_digest = scopes

    def scope_of(self, authorization: bytes) -> AccessScope | None:
        """Returns the scope of the token in an Authorization header; None without a known token."""
        if self._token is not None and http_access.is_authorized(authorization, self._token):
            return AccessScope(INSTALLATION_TOKEN_NAME)
        scheme, _, given = authorization.partition(b" ")
        if self._pepper is None or scheme.lower() != b"bearer":
            return None
        token = given.strip(b" ")
        if not 0 < len(token) <= _MAX_TOKEN_BYTES:
            return None
        return self._by_digest.get(hmac.digest(self._pepper, token, "sha256"))

"""Checks API keys, of which the worker knows only digests.

A key is known by its HMAC-SHA-256 under the installation's pepper. A request's key is digested
before it is looked up, so the time of the lookup reveals nothing about keys.

Keys are those of tenants, and those of the keys file. One of the keys file belongs to the tenant of
its name. If there is none, it is a tenant of its own, without limits. With issuers of bearer
tokens, a token (JWT) identifies a tenant in place of a key.

A key is read from `Authorization: Bearer KEY` and `x-api-key`. With both, the known one counts.

Reports to the supervisor which keys callers use, some seconds after the first use.

Why: a request sets one flag, and most set none. A timer runs only after a use.
"""

import asyncio
import hmac
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar, cast

from fairlead.engines.credentials import EngineCredentials
from fairlead.tenants.model import CacheSharing, Tenant
from fairlead_gateway.caller_key import NEVER, Caller
from fairlead_gateway.errors import ApiKeysUnavailable, InvalidApiKey, NotPermitted
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.ipc.channel import MessageSender
from fairlead_gateway.tenants.messages import AccessReport

KEY_USE_SECONDS: Final = 10.0
"""Limit: from the first use of API keys until a worker reports them."""

if TYPE_CHECKING:
    from fairlead_gateway.bearer_tokens.worker.token_callers import TokenCallers

_DIGEST_NAME: Final = "sha256"
_BEARER: Final = b"bearer "
_TOKEN_BEGINNING: Final = b"eyJ"
"""The beginning of each bearer token (JWT): that of a JSON object in base64."""
_MAX_UNUSED_PARTS: Final = 4_096
_PARTS_PER_TENANT: Final = 8
_T = TypeVar("_T")


def key_digest(key: bytes, pepper: bytes) -> bytes:
    return hmac.digest(pepper, key, _DIGEST_NAME)


def api_keys_of(head: RequestHead) -> list[bytes]:
    """Returns the different keys in a request's headers, a bearer first."""
    authorization, key = head.get(b"authorization") or b"", head.get(b"x-api-key")
    bearer = authorization[len(_BEARER) :].strip(b" ") if authorization[: len(_BEARER)].lower() == _BEARER else b""
    return [found for found in dict.fromkeys((bearer, key)) if found]


def implicit_tenant(key: str) -> Tenant:
    return Tenant(key, cache_sharing=CacheSharing.CLUSTER)


def check_tenant(tenant: Tenant) -> None:
    """Raises NotPermitted for a suspended tenant."""
    if tenant.is_suspended:
        raise NotPermitted("this tenant is suspended", code="tenant_suspended", hint="ask the operator of the gateway")


class ApiKeys:
    """The accepted API keys.

    names: the names of the keys of the keys file, by digest.
    is_loaded: False until every source of keys has been valid once. Until then an unknown key may
        be a good one.
    wall: returns Unix seconds.
    tokens: identifies the callers of bearer tokens; None if none are accepted.
    on_first_use: called when the use of a key is to be reported, and none was before.
    """

    def __init__(
        self,
        pepper: bytes,
        names: Mapping[bytes, str],
        *,
        is_loaded: bool = True,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._pepper = pepper
        self._wall = wall
        self._names: Mapping[bytes, str] = names
        self._tenants: dict[str, Tenant] = {}
        self._callers: dict[bytes, Caller] = {}
        self._revoked: frozenset[bytes] = frozenset()
        self._named_callers: dict[str, Caller] = {}
        self._shared: dict[object, object] = {}
        self._generation = object()
        self._used: list[Caller] = []
        self.is_loaded = is_loaded
        self.tokens: TokenCallers | None = None
        self.on_first_use: Callable[[], None] | None = None

    def replace(self, names: Mapping[bytes, str]) -> None:
        self._names = names
        self.on_changed()

    def update_tenants(self, changed: Iterable[Tenant], removed: Collection[str] = ()) -> None:
        """Adds or replaces tenants with their keys, and removes those of the given names.

        Equal parts of tenants are kept once, and their keys only here.

        Why: the tables of 10,000 tenants with 50,000 keys then take less than 20 MB.
        """
        changed = list(changed)
        former = {tenant.name for tenant in changed if tenant.name in self._tenants}.union(removed)
        if former:
            for digest in [digest for digest, caller in self._callers.items() if caller.name in former]:
                del self._callers[digest]
        for name in removed:
            self._tenants.pop(name, None)
        if len(self._shared) > _MAX_UNUSED_PARTS + _PARTS_PER_TENANT * len(self._tenants):
            self._shared.clear()
        for tenant in changed:
            kept = replace(
                tenant,
                keys=(),
                models=self._share(tenant.models),
                limits=self._share(tuple([self._share(limit) for limit in tenant.limits])),
                subjects=self._share(tenant.subjects),
            )
            self._tenants[tenant.name] = kept
            for key in tenant.keys:
                self._callers[key.digest] = Caller(kept, self._share(key.name), key.expires_at, key.digest)
        self.on_changed()

    def revoke(self, digests: Collection[bytes]) -> None:
        self._revoked = frozenset(digests)
        self.on_changed()

    def shows_details(self, head: RequestHead) -> bool:
        """Returns whether a request may read details of the gateway: it has a known key that no
        tenant owns.

        Why: details name models, engines and tenants of others.
        """
        return self.is_known(head) and self.caller(head).name not in self._tenants

    def tenant(self, name: str) -> Tenant | None:
        """Returns a tenant; None for an unknown one, and for those of the keys file."""
        return self._tenants.get(name)

    def caller_of(self, tenant: str) -> Caller | None:
        """Returns a caller of a tenant, or of a name in the keys file; None for an unknown one.

        Raises NotPermitted for a suspended tenant.
        """
        known = self._tenants.get(tenant)
        if known is None and tenant in self._names.values():
            known = implicit_tenant(tenant)
        if known is None:
            return None
        check_tenant(known)
        return Caller(known, "")

    def tenants(self) -> Iterable[Tenant]:
        return self._tenants.values()

    def take_used_keys(self) -> list[bytes]:
        """Returns the digests of keys that were used since the last call."""
        digests = [caller.digest for caller in self._used if caller.digest is not None]
        for caller in self._used:
            caller.was_used = False
        self._used = []
        return digests

    def caller(self, head: RequestHead) -> Caller:
        """Returns the caller that a request's key identifies.

        Raises InvalidApiKey without a known key, NotPermitted for a suspended tenant, and
        ApiKeysUnavailable for an unknown key while a source of keys is missing. The result is
        cached on the connection for as long as the accepted keys stay the same.
        """
        cached = head.caller_cache
        if cached is not None and cached[0] is self._generation:
            caller = cached[1]
            if caller.expires_at < NEVER and caller.expires_at <= self._wall():
                raise _expired()
        else:
            caller = self._find(head)
            head.caller_cache = (self._generation, caller)
        if not caller.was_used:
            caller.was_used = True
            self._used.append(caller)
            if self.on_first_use is not None and len(self._used) == 1:
                self.on_first_use()
        return caller

    def is_known(self, head: RequestHead) -> bool:
        """Returns whether a request has a known key."""
        try:
            self.caller(head)
        except (InvalidApiKey, NotPermitted, ApiKeysUnavailable):
            return False
        return True

    def _find(self, head: RequestHead) -> Caller:
        """Returns the caller of the only known key. Some clients send other systems' tokens too."""
        refusals: list[InvalidApiKey] = []
        found: list[Caller] = []
        for key in api_keys_of(head):
            try:
                found.append(self._caller_of(key))
            except InvalidApiKey as error:
                refusals.append(error)
        if not found:
            if not self.is_loaded:
                raise ApiKeysUnavailable
            if refusals:
                raise refusals[0]
            raise InvalidApiKey("no API key was given", hint="send the header Authorization: Bearer KEY, or x-api-key")
        if len(found) > 1:
            raise InvalidApiKey("authorization and x-api-key hold two different keys", hint="send one of them")
        caller = found[0]
        if caller.expires_at < NEVER and caller.expires_at <= self._wall():
            raise _expired()
        check_tenant(caller.tenant)
        return caller

    def _caller_of(self, key: bytes) -> Caller:
        """Returns the caller of a key or a bearer token. Raises InvalidApiKey."""
        digest = key_digest(key, self._pepper)
        caller = None if digest in self._revoked else self._callers.get(digest) or self._caller_of_file(digest)
        if caller is None and self.tokens is not None and key.startswith(_TOKEN_BEGINNING):
            caller = self.tokens.caller(key)
        if caller is None:
            raise InvalidApiKey("this API key is unknown")
        return caller

    def _share(self, part: _T) -> _T:
        return cast(_T, self._shared.setdefault(part, part))

    def _caller_of_file(self, digest: bytes) -> Caller | None:
        name = self._names.get(digest)
        if name is None:
            return None
        caller = self._named_callers.get(name)
        if caller is None:
            tenant = self._tenants.get(name)
            if tenant is None and not self.is_loaded:
                return None  # a tenant of this name, with its limits, may not have been read yet
            caller = Caller(implicit_tenant(name) if tenant is None else tenant, name)
            self._named_callers[name] = caller
        return caller

    def on_changed(self) -> None:
        self._named_callers = {}
        self._generation = object()
        if self.tokens is not None:
            self.tokens.on_tenants_changed()


def _expired() -> InvalidApiKey:
    return InvalidApiKey("this API key has expired", hint="ask the operator of the gateway for a new one")


@dataclass(frozen=True, slots=True)
class GatewaySecrets:
    """The secrets of one worker.

    hash_secret: keys all prompt hashes.
    credentials: CAs and tokens of engines.
    api_keys: the accepted keys; None if clients need no key.
    """

    hash_secret: bytes
    credentials: EngineCredentials
    api_keys: ApiKeys | None = None


class AccessReporter:
    """The reporter of the uses of API keys."""

    def __init__(self, api_keys: ApiKeys, channel: MessageSender, loop: asyncio.AbstractEventLoop) -> None:
        self._api_keys = api_keys
        self._channel = channel
        self._loop = loop
        api_keys.on_first_use = self._on_first_use

    def report_unknown_key(self, issuer: str) -> None:
        self._channel.send(AccessReport(unknown_key_issuers=[issuer]))

    def flush(self) -> None:
        """Reports all uses since the last report."""
        used = self._api_keys.take_used_keys()
        if used:
            self._channel.send(AccessReport(used_keys=used))

    def _on_first_use(self) -> None:
        self._loop.call_later(KEY_USE_SECONDS, self.flush)

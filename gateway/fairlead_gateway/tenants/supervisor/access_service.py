"""Follows the sources of API keys and tenants, and sends workers what changed.

Sources are independent: one that is broken keeps its last good state and does not hold others up.
The revocation list counts above all of them.

When API keys were used last, to the minute, since the start of the gateway.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from fairlead.errors import ManifestError
from fairlead.fleet.model import Model
from fairlead.runtime.file_watcher import FileWatcher, ToleratedErrors
from fairlead.tenants.documents import merge_sources
from fairlead.tenants.model import ApiKey, Tenant, TenantTable
from fairlead_gateway.bearer_tokens.messages import TokenIssuer, TokenIssuerUpdate
from fairlead_gateway.tenants.cache_isolation import shared_caches
from fairlead_gateway.tenants.messages import (
    LIST_ACTOR,
    AccessReport,
    KeyUpdate,
    RevocationUpdate,
    TenantsSnapshot,
    TenantUpdate,
)
from fairlead_gateway.tenants.supervisor.tenant_file import KeyFile, RevocationFile

if TYPE_CHECKING:
    from fairlead_gateway.bearer_tokens.supervisor.key_service import IssuerKeyService
    from fairlead_gateway.tenants.supervisor.tenant_watch import RevocationWatch

_MINUTE: Final = 60.0
_MAX_KEYS: Final = 200_000
"""Keys that are remembered, also those that are gone; then those that were used first are not."""

_BATCH: Final = 64
"""Tenants of one message. A worker applies them in a few milliseconds."""
_MAX_WARNINGS: Final = 5


class KeyUseLog:
    """The last use of each API key, by digest.

    wall: returns Unix seconds.
    started_at: since when uses are counted.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._used_at: dict[bytes, float] = {}
        self.started_at = wall()

    def add(self, digests: Iterable[bytes]) -> None:
        """Notes that keys were used in this minute."""
        minute = self._wall() // _MINUTE * _MINUTE
        for digest in digests:
            self._used_at.pop(digest, None)  # the last used come last
            self._used_at[digest] = minute
        while len(self._used_at) > _MAX_KEYS:
            del self._used_at[next(iter(self._used_at))]

    def used_at(self, digest: bytes) -> float | None:
        """Returns the minute of the last use in Unix seconds; None if there was none."""
        return self._used_at.get(digest)


_log = logging.getLogger("fairlead.gateway")


class TenantSource(Protocol):
    """A source of tenants.

    problems: of single documents.
    is_loaded: False while the source may still have tenants that are not known.
    """

    tenants: Mapping[str, Tenant]
    problems: Sequence[str]

    @property
    def is_loaded(self) -> bool: ...

    async def start(self, on_change: Callable[[], None]) -> None: ...

    async def stop(self) -> None: ...

    def author_of(self, name: str) -> str: ...

    def warnings(self) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class AccessSources:
    """The sources of API keys and tenants.

    key_file, revocation_file, token_issuers, revocation_watch: None without one.
    tenant_sources: the first one that has a tenant counts.
    """

    key_file: KeyFile | None = None
    tenant_sources: Sequence[TenantSource] = ()
    revocation_file: RevocationFile | None = None
    token_issuers: "IssuerKeyService | None" = None
    revocation_watch: "RevocationWatch | None" = None

    @property
    def asks_for_keys(self) -> bool:
        return self.key_file is not None or bool(self.tenant_sources)


@dataclass(frozen=True, slots=True)
class _SharedCaches:
    """Warnings about caches that tenants share, and what they were computed from.

    Why kept: with 10,000 tenants they take milliseconds, and are asked for five times a second.
    """

    tenants: Mapping[str, Tenant]
    models: Mapping[str, Model]
    warnings: Sequence[str]


class AccessService:
    """The API keys and tenants of a gateway.

    broadcast: sends a message to all workers.
    on_tenants: called with all tenants after each change.
    on_change: called after each change, once all sources were read.
    tenants: by name, of all sources.
    key_uses: when API keys were used last.
    """

    def __init__(
        self,
        sources: AccessSources,
        broadcast: Callable[[msgspec.Struct], None],
        wall: Callable[[], float],
        on_tenants: Callable[[Collection[Tenant]], None] = lambda _: None,
        on_change: "Callable[[AccessService], None]" = lambda _: None,
    ) -> None:
        self._sources = sources
        self._notify = on_tenants
        self._broadcast = broadcast
        self._on_change = on_change
        self._is_started = False
        self._problems: list[str] = []
        self._logged: frozenset[str] = frozenset()
        self._were_keys_loaded = False
        self._shared_caches = _SharedCaches({}, {}, [])
        self._watchers = self._create_watchers()
        self.tenants: Mapping[str, Tenant] = {}
        self.key_uses = KeyUseLog(wall)
        if sources.token_issuers is not None:
            sources.token_issuers.on_changed = self._send_issuers

    async def start(self) -> None:
        """Reads all files and starts to follow all sources. Raises FairleadError for a file that
        cannot be read.
        """
        for watcher in self._watchers:
            await watcher.start()
        if self._sources.token_issuers is not None:
            self._sources.token_issuers.start()
        if self._sources.revocation_watch is not None:
            await self._sources.revocation_watch.start(self._on_revocations)
        for source in self._sources.tenant_sources:
            await source.start(self._on_tenants)
        self._merge()
        self._log_problems()
        self._is_started = True
        self._report_change()

    async def stop(self) -> None:
        """Stops following."""
        for watcher in self._watchers:
            await watcher.stop()
        if self._sources.token_issuers is not None:
            await self._sources.token_issuers.stop()
        if self._sources.revocation_watch is not None:
            await self._sources.revocation_watch.stop()
        for source in self._sources.tenant_sources:
            await source.stop()

    def on_report(self, report: AccessReport) -> None:
        """Notes which keys callers have used, and which issuers may have new keys."""
        self.key_uses.add(report.used_keys)
        if self._sources.token_issuers is not None:
            for issuer in report.unknown_key_issuers:
                self._sources.token_issuers.on_unknown_key(issuer)

    @property
    def keys(self) -> dict[bytes, str] | None:
        """The keys of the keys file, as names by digest; None if requests need no key."""
        if not self._sources.asks_for_keys:
            return None
        return {} if self._sources.key_file is None else dict(self._sources.key_file.names_by_digest)

    @property
    def revoked(self) -> list[bytes]:
        lists = (self._sources.revocation_file, self._sources.revocation_watch)
        return sorted(frozenset().union(*(revocations.digests for revocations in lists if revocations is not None)))

    @property
    def token_issuers(self) -> list[TokenIssuer] | None:
        """The issuers of bearer tokens; None if no bearer tokens are accepted."""
        issuers = self._sources.token_issuers
        return None if issuers is None else issuers.issuers()

    @property
    def are_keys_loaded(self) -> bool:
        sources = (self._sources.key_file, self._sources.revocation_watch, *self._sources.tenant_sources)
        return all(source.is_loaded for source in sources if source is not None)

    def table(self) -> TenantTable:
        """Returns all tenants, with those of the keys file, and the revoked keys."""
        tenants = dict(self.tenants)
        for digest, name in (self.keys or {}).items():
            known = tenants.get(name) or Tenant(name)
            tenants[name] = replace(known, keys=(*known.keys, ApiKey(name, digest)))
        return TenantTable(tenants=tenants, revoked=frozenset(self.revoked))

    def author_of(self, name: str) -> str:
        """Returns who changed a tenant last, as its source knows."""
        for source in self._sources.tenant_sources:
            if name in source.tenants:
                return source.author_of(name)
        return "keys file" if name in (self.keys or {}).values() else "unknown"

    def revoked_by(self, digest: bytes) -> str:
        watch = self._sources.revocation_watch
        return watch.author if watch is not None and digest in watch.digests else LIST_ACTOR

    def state_messages(self) -> list[msgspec.Struct]:
        """Returns the messages that bring a worker up to date, whatever it has."""
        keys = self.keys
        if keys is None:
            return []
        issuers = self.token_issuers
        return [
            KeyUpdate(keys, self.are_keys_loaded),
            TenantUpdate(list(self.tenants.values()), is_whole=True),
            RevocationUpdate(self.revoked),
            *([] if issuers is None else [TokenIssuerUpdate(issuers)]),
        ]

    def snapshot(self) -> TenantsSnapshot:
        return TenantsSnapshot(self.tenants, self.key_uses.started_at, self.key_uses.used_at)

    def warnings(self, models: Mapping[str, Model]) -> list[str]:
        """Returns the problems of all sources, of each kind the first few, and models that cannot
        keep caches of tenants apart.
        """
        found = [watcher.problem for watcher in self._watchers if watcher.problem is not None]
        found += self._revocation_problems()
        if self._sources.token_issuers is not None:
            found += self._sources.token_issuers.warnings()
        of_tenants = [text for source in self._sources.tenant_sources for text in source.warnings()] + self._problems
        more = len(of_tenants) - _MAX_WARNINGS
        return [
            *found,
            *of_tenants[:_MAX_WARNINGS],
            *([f"and {more} more problems of tenants"] if more > 0 else []),
            *self._cache_warnings(models),
        ]

    def counters(self) -> dict[str, int]:
        """Returns the counts of keys and tenants for metrics; empty if requests need no key."""
        if not self._sources.asks_for_keys:
            return {}
        key_file = self._sources.key_file
        found = {} if key_file is None else {"keys_file_broken": int(not key_file.is_valid)}
        of_tenants = sum(len(tenant.keys) for tenant in self.tenants.values())
        of_file = 0 if key_file is None else len(key_file.names_by_digest)
        return {**found, "keys": of_file + of_tenants}

    def _cache_warnings(self, models: Mapping[str, Model]) -> Sequence[str]:
        last = self._shared_caches
        if last.tenants is not self.tenants or last.models is not models:
            last = _SharedCaches(self.tenants, models, shared_caches(self.tenants, models))
            self._shared_caches = last
        return last.warnings

    def _create_watchers(self) -> list[FileWatcher]:
        watchers = []
        keys, revocations = self._sources.key_file, self._sources.revocation_file
        if keys is not None:

            async def read_keys() -> None:
                await keys.load()
                self._send_keys()

            # Why: if new gateways ended instead, a drained node could leave none that serves.
            tolerated = ToleratedErrors((ManifestError,), "no API key is known")
            watchers.append(FileWatcher("the keys file", [keys.path], read_keys, tolerated=tolerated))
        if revocations is not None:

            async def read_revocations() -> None:
                await revocations.load()
                self._on_revocations()

            watchers.append(FileWatcher("the revocation list", [revocations.path], read_revocations))
        issuers = self._sources.token_issuers
        if issuers is not None:
            tolerated = ToleratedErrors((ManifestError,), "no bearer token is accepted")
            watchers.append(FileWatcher("the file of token issuers", [issuers.path], issuers.load, tolerated=tolerated))
        return watchers

    def _revocation_problems(self) -> list[str]:
        lists = (self._sources.revocation_file, self._sources.revocation_watch)
        return [problem for revocations in lists if revocations is not None and (problem := revocations.problem)]

    def _log_problems(self) -> None:
        """Logs each problem once, of documents and lines that the watcher of their file does not
        log.
        """
        found = [*self._revocation_problems(), *self._problems]
        for source in self._sources.tenant_sources:
            found += source.problems
        for problem in [problem for problem in found if problem not in self._logged][:_MAX_WARNINGS]:
            _log.warning("%s", problem)
        self._logged = frozenset(found)

    def _send_keys(self) -> None:
        keys = self.keys
        if keys is not None:
            self._broadcast(KeyUpdate(keys, self.are_keys_loaded))
        self._report_change()

    def _report_change(self) -> None:
        if self._is_started and self.are_keys_loaded:
            self._on_change(self)

    def _send_issuers(self, issuers: Sequence[TokenIssuer]) -> None:
        self._broadcast(TokenIssuerUpdate(list(issuers)))

    def _on_tenants(self) -> None:
        former = self.tenants
        self._merge()
        self._log_problems()
        removed = [name for name in former if name not in self.tenants]
        changed = [tenant for name, tenant in self.tenants.items() if former.get(name) != tenant]
        for start in range(0, max(len(changed), 1), _BATCH):
            batch = changed[start : start + _BATCH]
            if batch or removed:
                self._broadcast(TenantUpdate(batch, removed))
            removed = []
        self._report_load()

    def _on_revocations(self) -> None:
        self._broadcast(RevocationUpdate(self.revoked))
        self._log_problems()
        self._report_load()

    def _report_load(self) -> None:
        """Reports a change, and sends workers the keys if all sources are loaded now."""
        if self.are_keys_loaded != self._were_keys_loaded:
            self._were_keys_loaded = self.are_keys_loaded
            self._send_keys()
        else:
            self._report_change()

    def _merge(self) -> None:
        self.tenants, self._problems = merge_sources(source.tenants for source in self._sources.tenant_sources)
        self._notify(self.tenants.values())

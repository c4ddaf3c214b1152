"""``KubeApi``: requests to the API server, retried where that is safe, and watches.

One class for operator, gateway and autoscaler. Objects are plain JSON. Writing is server-side apply wherever it can be: the same call
creates and changes, repeating it changes nothing, and each field has an owner that the API server knows.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import msgspec

from fairlead.clock import Clock
from fairlead.kube.access import Access
from fairlead.kube.changes import Change, Known, Lines, change_of
from fairlead.kube.credentials import Credentials
from fairlead.kube.errors import (
    AlreadyExists,
    Conflict,
    Gone,
    KubeError,
    NotFound,
    Unauthenticated,
    Unreachable,
    error_of,
)
from fairlead.kube.feed import BROKEN, Feed, Opened
from fairlead.kube.resource import PODS, Manifest, Resource, metadata_of, name_of, namespace_of, resource_of, uid_of
from fairlead.kube.retry import again
from fairlead.kube.wire import Ask, Headers, Reply, Unsent, Wire
from fairlead.limits import Limits

_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_JSON = "application/json"
_ERROR_BYTES = 65_536
_NO_OBJECTS_VERSION = "1"
"""etcd counts from 1, so that what is written first has 2."""
_Query = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """All objects of a kind at one moment; a watch goes on from ``resource_version``."""

    items: list[Manifest]
    resource_version: str


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back for a path: any status, the body (its beginning when ``cut``), and the API server's ``Date``."""

    status: int
    body: bytes
    date: str = ""
    cut: bool = False


class KubeApi:
    """The API server that ``access`` leads to; close it, or use it as an ``async with`` block.

    Every method raises ``KubeError``s, and AccessError when our own credentials cannot be used. ``chance`` draws evenly from 0 to 1;
    ``pause`` waits for seconds.
    """

    def __init__(
        self,
        access: Access,
        clock: Clock,
        chance: Callable[[], float],
        *,
        agent: str = "fairlead",
        limits: Limits | None = None,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.access = access
        # Within a cluster compression costs more than it saves, and it would hold back a watch's events.
        self._plain = (("Accept", _JSON), ("Accept-Encoding", "identity"), ("User-Agent", agent))
        self._chance = chance
        self._pause = pause
        self._limits = limits or Limits()
        self._credentials = Credentials(access, clock, self._limits.kube_token_seconds)
        seconds = self._limits.kube_connect_seconds
        self._wire = Wire(access.server, self._credentials.tls, access.server_name, seconds)
        self._feed = Feed(access.server, self._credentials, access.server_name, seconds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all connections, those of watches too."""
        await self._wire.close()
        await self._feed.close()

    # --- reading --------------------------------------------------------------------------------------------------------

    async def get(
        self, resource: Resource, namespace: str | None, name: str, subresource: str | None = None
    ) -> Manifest:
        """One object. Raises NotFound."""
        return await self._ask(Ask("GET", resource.path(namespace, name, subresource)))

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        labels: str | None = None,
        *,
        fields: str | None = None,
        limit: int | None = None,
    ) -> Listing:
        """All objects, page by page of ``limit``; those of all namespaces without one. ``labels``, ``fields`` are selectors."""
        path = resource.path(namespace)
        query = _query(limit=str(limit or self._limits.kube_page_items), labelSelector=labels, fieldSelector=fields)
        try:
            return await self._pages(resource, path, query)
        except Gone:  # the snapshot that the pages came from is forgotten: once more, in one piece
            return await self._pages(resource, path, tuple(pair for pair in query if pair[0] != "limit"))

    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        labels: str | None = None,
        *,
        fields: str | None = None,
        resource_version: str,
        seconds: float | None = None,
        opened: Callable[[], None] = lambda: None,
        known: Known | None = None,
    ) -> AsyncGenerator[Change, None]:
        """What happens after ``resource_version``, bookmarks included, until the API server ends it; ``seconds`` asks it when to.

        ``opened`` is called when the API server has agreed to it, which may be long before anything happens; ``known`` finds objects
        that need not be read again.

        A clean end just ends: watch on from the last resource version. Raises Gone when that is too old, Unreachable when the
        connection breaks. It is tried once only (``Informer`` goes on). Close it (``contextlib.aclosing``) when leaving early.
        """
        query = _query(
            watch="1",
            allowWatchBookmarks="true",
            resourceVersion=resource_version,
            labelSelector=labels,
            fieldSelector=fields,
            timeoutSeconds=None if seconds is None else str(max(1, round(seconds))),
        )
        asked = Ask("GET", resource.path(namespace), query)
        what = f"watching {asked.path}"
        try:
            async with await self._opened(asked) as response:
                if response.status != 200:
                    refused = await response.beginning(_ERROR_BYTES)
                    raise _refusal(response.status, refused, response.header("Retry-After"), what)
                opened()
                lines = Lines(self._limits.kube_event_bytes)
                async for data in response.parts():
                    for line in lines.take(data):
                        yield change_of(line, what, known)
        except BROKEN as error:
            raise self._unreachable(what, error) from error

    async def serves(self, resource: Resource) -> bool:
        """Does the API server know this kind at this version? False too while its definition is not established."""
        path = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
        try:
            found = await self._ask(Ask("GET", path))
        except NotFound:
            return False
        return any(one.get("name") == resource.plural for one in found.get("resources") or [])

    async def version(self) -> str:
        """The API server's version, such as ``v1.36.3``."""
        return str((await self._ask(Ask("GET", "/version"))).get("gitVersion", ""))

    async def raw(
        self,
        path: str,
        most_bytes: int,
        seconds: float,
        *,
        query: Mapping[str, str] | None = None,
        host: str | None = None,
    ) -> Answered:
        """Any path, once, whatever it answers: logs, and what pods say through the API server's proxy, which is given ``host``.

        What is longer than ``most_bytes`` is cut. Raises Unreachable when nothing comes within ``seconds``.
        """
        asked = Ask("GET", path, tuple((query or {}).items()), host=host)
        try:
            reply = await self._known(asked, seconds, most_bytes, most_bytes)
        except OSError as error:
            raise self._unreachable(str(asked), error) from error
        return Answered(reply.status, reply.body, reply.header("date"), reply.cut)

    # --- writing --------------------------------------------------------------------------------------------------------

    async def apply(self, manifest: Manifest, manager: str, *, force: bool = True, dry_run: bool = False) -> Manifest:
        """Create it, or make the fields that it holds so (server-side apply), as ``manager``. Answers with what is there now.

        What changes nothing leaves ``resourceVersion`` as it is. Fields that the API server does not know are an error. Raises
        Conflict when another manager owns a field and ``force`` is off, or when ``metadata.resourceVersion`` is given and old.
        """
        return await self._apply(manifest, manager, None, force, dry_run)

    async def apply_status(self, manifest: Manifest, manager: str, *, force: bool = True) -> Manifest:
        """The same for ``status``; everything else of the manifest but its name is left out."""
        metadata = {name: metadata_of(manifest)[name] for name in _NAMING if name in metadata_of(manifest)}
        body = {"apiVersion": manifest.get("apiVersion"), "kind": manifest.get("kind"), "metadata": metadata}
        return await self._apply({**body, "status": manifest.get("status") or {}}, manager, "status", force, False)

    async def apply_scale(self, live: Manifest, replicas: int, manager: str) -> Manifest:
        """Make this the number of instances of an object, by its ``/scale`` (server-side apply by force). Answers with a Scale.

        Raises Conflict when the object is not what ``live`` says any more. Kinds of definitions of one's own cannot be written so:
        their API server (1.36) does not convert what is applied.
        """
        names = {name: metadata_of(live)[name] for name in ("name", "namespace", "resourceVersion")}
        body = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": names, "spec": {"replicas": replicas}}
        path = resource_of(live).path(namespace_of(live), name_of(live), "scale")
        query = _query(fieldManager=manager, force="true", fieldValidation="Strict")
        return await self._ask(Ask("PATCH", path, query, msgspec.json.encode(body), _APPLY))

    async def apply_new(self, manifest: Manifest, manager: str) -> Manifest:
        """The same for what is not there yet, in one request that never touches what is. Raises AlreadyExists.

        It is asked for at a version that no object can have. The API server compares versions only where there is an object.
        """
        metadata = {**metadata_of(manifest), "resourceVersion": _NO_OBJECTS_VERSION}
        try:
            return await self._apply({**manifest, "metadata": metadata}, manager, None, True, False)
        except Conflict as error:
            raise AlreadyExists(error.message, status=error.status) from error

    async def create(self, manifest: Manifest, manager: str) -> Manifest:
        """A new object. Raises AlreadyExists. When the answer is lost it is not tried again: look, then decide."""
        path = resource_of(manifest).path(namespace_of(manifest))
        query = _query(fieldManager=manager, fieldValidation="Strict")
        return await self._ask(Ask("POST", path, query, msgspec.json.encode(manifest), repeatable=False))

    async def patch_merge(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        patch: Manifest,
        manager: str,
        *,
        subresource: str | None = None,
    ) -> Manifest:
        """Change the fields that ``patch`` names; null removes one. Raises Conflict when its ``metadata.resourceVersion`` is old."""
        path = resource.path(namespace, name, subresource)
        query = _query(fieldManager=manager, fieldValidation="Strict")
        return await self._ask(Ask("PATCH", path, query, msgspec.json.encode(patch), _MERGE))

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        uid: str | None = None,
        propagation: str = "Background",
    ) -> bool:
        """Begin its deletion; False when it (the one with this ``uid``) is not there.

        Without a uid the object is looked at first, so that a deletion whose answer is lost never meets a new one of the same name.
        """
        if uid is None:
            try:
                uid = uid_of(await self.get(resource, namespace, name))
            except NotFound:
                return False
        options: Manifest = {"propagationPolicy": propagation, **_precondition(uid)}
        try:
            await self._ask(Ask("DELETE", resource.path(namespace, name), body=msgspec.json.encode(options)))
        except NotFound:
            return False
        except Conflict as error:
            if "recondition" in error.message:  # the name is another object's now
                return False
            raise
        return True

    async def evict(self, namespace: str, name: str, uid: str | None = None) -> bool:
        """Ask a pod to go as its disruption budget allows; False when it is not there. Raises Refused when it may not now."""
        body: Manifest = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": _precondition(uid),
        }
        path = PODS.path(namespace, name, "eviction")
        try:
            await self._ask(Ask("POST", path, body=msgspec.json.encode(body), repeatable=uid is not None))
        except NotFound:
            return False
        return True

    async def _apply(
        self, manifest: Manifest, manager: str, subresource: str | None, force: bool, dry_run: bool
    ) -> Manifest:
        path = resource_of(manifest).path(namespace_of(manifest), name_of(manifest), subresource)
        query = _query(
            fieldManager=manager,
            force="true" if force else "false",
            fieldValidation="Strict",
            dryRun="All" if dry_run else None,
        )
        return await self._ask(Ask("PATCH", path, query, msgspec.json.encode(manifest), _APPLY))

    # --- the wire -------------------------------------------------------------------------------------------------------

    async def _pages(self, resource: Resource, path: str, query: _Query) -> Listing:
        items: list[Manifest] = []
        more = ""
        while True:
            page = await self._ask(Ask("GET", path, (*query, *_query(**{"continue": more or None}))))
            for item in page.get("items") or []:
                item.setdefault("apiVersion", resource.api_version)  # lists leave out what is the same for all
                item.setdefault("kind", resource.kind)
                items.append(item)
            more = metadata_of(page).get("continue") or ""
            if not more:
                return Listing(items, str(metadata_of(page).get("resourceVersion", "")))

    async def _ask(self, asked: Ask) -> Manifest:
        """Send it until there is an answer, or no sense in another attempt."""
        attempt = 0
        while True:
            attempt += 1
            sent = True
            try:
                return await self._once(asked)
            except OSError as error:
                sent = not isinstance(error, Unsent)
                failure: KubeError = self._unreachable(str(asked), error)
                failure.__cause__ = error
            except Unreachable as error:
                failure = error
            then = again(
                failure, attempt, repeatable=asked.repeatable, sent=sent, chance=self._chance(), limits=self._limits
            )
            if then.pause_seconds is None:
                raise failure
            await self._pause(then.pause_seconds)

    async def _once(self, asked: Ask) -> Manifest:
        most = self._limits.kube_answer_bytes
        reply = await self._known(asked, self._limits.kube_answer_seconds, most, _ERROR_BYTES)
        if reply.status not in (200, 201, 202):
            raise _refusal(reply.status, reply.body, reply.header("retry-after"), str(asked))
        if reply.cut:
            raise Unreachable(f"{asked}: the answer has more than {most} bytes")
        try:
            found = msgspec.json.decode(reply.body)
        except msgspec.DecodeError as error:
            raise Unreachable(f"{asked}: the answer is no JSON", status=reply.status) from error
        if not isinstance(found, dict):
            raise Unreachable(f"{asked}: the answer is no object", status=reply.status)
        return found

    async def _known(self, asked: Ask, seconds: float, most: int, most_refused: int) -> Reply:
        """An answer; once more with fresh credentials when the API server does not know us."""
        reply = await self._send(asked, seconds, most, most_refused)
        if reply.status == 401 and self._credentials.renew():
            reply = await self._send(asked, seconds, most, most_refused)
        return reply

    async def _send(self, asked: Ask, seconds: float, most: int, most_refused: int) -> Reply:
        try:
            return await self._wire.ask(asked, self._headers(), seconds, most, most_refused)
        except Unsent as error:
            if isinstance(error.__cause__, ssl.SSLError):
                self._credentials.renew()  # the authority may have been replaced
            raise

    async def _opened(self, asked: Ask) -> Opened:
        """The beginning of a watch, likewise."""
        response = await self._feed.open(asked.target, self._headers())
        if response.status == 401 and self._credentials.renew():
            async with response:
                pass
            response = await self._feed.open(asked.target, self._headers())
        return response

    def _headers(self) -> Headers:
        return (*self._plain, *self._credentials.headers())

    def _unreachable(self, asked: str, error: Exception) -> Unreachable:
        """A connection that broke, in words; some of these exceptions have none."""
        words = str(error) or type(error).__name__
        return Unreachable(
            f"{asked}: {words}", hint=f"the API server is {self.access.server}, from {self.access.found}"
        )


_NAMING = ("name", "namespace", "resourceVersion", "uid")


def _query(**values: str | None) -> _Query:
    return tuple((name, value) for name, value in values.items() if value is not None)


def _precondition(uid: str | None) -> dict[str, Any]:
    return {} if uid is None else {"preconditions": {"uid": uid}}


def _refusal(status: int, body: bytes, told: str, asked: str) -> KubeError:
    error = error_of(status, body, asked, float(told) if told.isdecimal() else None)
    if isinstance(error, Unauthenticated):
        error.hint = "the token or certificate is not accepted, or has run out"
    return error

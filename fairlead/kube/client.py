"""The Kubernetes API client: requests with safe retries, and watches.

Operator, gateway and autoscaler share it. Objects are plain JSON. Writes use server-side apply
where possible: one call creates or changes, repetition has no effect, and the API server records
the owner of each field.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import msgspec

from fairlead.kube.errors import (
    AlreadyExists,
    Conflict,
    Gone,
    KubeError,
    NotFound,
    ResponseTooLarge,
    Unauthenticated,
    Unreachable,
    error_from_response,
)
from fairlead.kube.json_decoding import ObjectList, ObjectPage, decode_object, decode_page
from fairlead.kube.resources import (
    PODS,
    Manifest,
    ObjectSelection,
    Resource,
    metadata_of,
    name_of,
    namespace_of,
    resource_of,
    uid_of,
)
from fairlead.kube.transport.credentials import ClusterCredentials
from fairlead.kube.transport.http_transport import Headers, HttpRequest, HttpResponse, HttpTransport, NotSent
from fairlead.kube.transport.kubeconfig import ClusterConfig
from fairlead.kube.transport.retry import decide_retry
from fairlead.kube.transport.watch_stream import CONNECTION_ERRORS, WatchStream, WatchTransport
from fairlead.kube.watch_events import KnownObjectFinder, LineSplitter, WatchEvent, parse_watch_event
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock

KUBE_PAGE_ITEMS: Final = 500
"""Limit: objects in one page of a list."""
KUBE_TOKEN_SECONDS: Final = 10.0
"""Limit: interval at which a token file is read again; clusters rotate it."""

_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_JSON = "application/json"
_ERROR_BYTES = 65_536
_UNUSED_VERSION = "1"
"""A resource version that no object has: etcd starts at 1, so that the first write gets 2."""
_PAGE_REDUCTION = 8  # so many times fewer objects if a page has too many bytes
_Query = tuple[tuple[str, str], ...]
_Decoded = TypeVar("_Decoded")
_DecodePage = Callable[[bytes], ObjectPage]

_IDENTITY_FIELDS = ("name", "namespace", "resourceVersion", "uid")


@dataclass(frozen=True, slots=True)
class RawResponse:
    """A response of any status.

    date: the API server's `Date` header.
    truncated: `body` is only the beginning.
    """

    status: int
    body: bytes
    date: str = ""
    truncated: bool = False


class KubeApi:
    """A client of one API server. Close it, or use it as an `async with` block.

    Every method raises KubeError, and ClusterConfigError if the credentials are unusable.

    chance: returns a random number from 0 to 1.
    pause: sleeps for a number of seconds.
    """

    def __init__(
        self,
        config: ClusterConfig,
        clock: Clock,
        chance: Callable[[], float],
        *,
        agent: str = "fairlead",
        limits: Limits | None = None,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.config = config
        # Inside a cluster, compression costs more than it saves, and it delays watch events.
        self._plain = (("Accept", _JSON), ("Accept-Encoding", "identity"), ("User-Agent", agent))
        self._chance = chance
        self._pause = pause
        self.limits = limits or Limits()
        self._credentials = ClusterCredentials(config, clock, KUBE_TOKEN_SECONDS)
        seconds = self.limits.kube_connect_seconds
        self._transport = HttpTransport(config.server, self._credentials.tls_context, config.server_name, seconds)
        self._watch_transport = WatchTransport(config.server, self._credentials, config.server_name, seconds)
        self._transport.proxy = self._watch_transport.proxy = config.proxy_url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._transport.close()
        await self._watch_transport.close()

    # --- reading ---------------------------------------------------------------------------

    async def get(
        self, resource: Resource, namespace: str | None, name: str, subresource: str | None = None
    ) -> Manifest:
        """Returns one object. Raises NotFound."""
        return await self._request(HttpRequest("GET", resource.path(namespace, name, subresource)))

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        labels: str | None = None,
        *,
        fields: str | None = None,
        limit: int | None = None,
        trim: Callable[[Manifest], Manifest] = lambda item: item,
    ) -> ObjectList:
        """Returns all objects of a kind, fetched in pages.

        namespace: None for all namespaces.
        labels, fields: selectors.
        limit: objects per page; None for the limit `kube_page_items`.
        trim: shortens each object before the next one is decoded.
        """
        path, query = resource.path(namespace), _query(labelSelector=labels, fieldSelector=fields)
        decode = partial(decode_page, resource=resource, trim=trim)
        try:
            return await self._list_pages(path, query, limit or KUBE_PAGE_ITEMS, decode)
        except Gone:  # the snapshot of the pages has expired: list again without pages
            return await self._list_pages(path, query, None, decode)

    async def watch(
        self,
        selection: ObjectSelection,
        *,
        resource_version: str,
        seconds: float | None = None,
        on_opened: Callable[[], None] = lambda: None,
        find_known: KnownObjectFinder | None = None,
    ) -> AsyncGenerator[WatchEvent, None]:
        """Yields events after `resource_version`, including bookmarks, until the API server ends
        the watch.

        After a clean end, continue from the last resource version. Raises Gone if that is too old,
        and Unreachable if the connection breaks. There are no retries; `Informer` continues. To
        leave early, close the generator (`contextlib.aclosing`).

        seconds: requested duration of the watch.
        on_opened: called when the API server accepts the watch, possibly long before the first
            event.
        find_known: returns objects that need not be decoded again.
        """
        query = _query(
            watch="1",
            allowWatchBookmarks="true",
            resourceVersion=resource_version,
            labelSelector=selection.labels,
            fieldSelector=selection.fields,
            timeoutSeconds=None if seconds is None else str(max(1, round(seconds))),
        )
        request = HttpRequest("GET", selection.resource.path(selection.namespace), query)
        what = f"watching {request.path}"
        try:
            async with await self._open_watch(request) as response:
                if response.status != 200:
                    refused = await response.read_prefix(_ERROR_BYTES)
                    raise _error_response(response.status, refused, response.header("Retry-After"), what)
                on_opened()
                lines = LineSplitter(self.limits.kube_event_bytes)
                async for data in response.iter_bytes():
                    for line in lines.feed(data):
                        yield parse_watch_event(line, what, find_known)
        except CONNECTION_ERRORS as error:
            raise self._unreachable_error(what, error) from error

    async def has_resource(self, resource: Resource) -> bool:
        """Returns True if the API server serves this kind and version.

        Returns False while its CustomResourceDefinition is not established.
        """
        path = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
        try:
            found = await self._request(HttpRequest("GET", path))
        except NotFound:
            return False
        return any(one.get("name") == resource.plural for one in found.get("resources") or [])

    async def version(self) -> str:
        return str((await self._request(HttpRequest("GET", "/version"))).get("gitVersion", ""))

    async def get_raw(
        self,
        path: str,
        max_bytes: int,
        seconds: float,
        *,
        query: Mapping[str, str] | None = None,
    ) -> RawResponse:
        """Sends a GET to any path, such as logs, and returns the response.

        There are no retries. A longer body is cut after `max_bytes`. Raises Unreachable after
        `seconds`, or if the connection breaks.
        """
        request = HttpRequest("GET", path, tuple((query or {}).items()))
        try:
            reply = await self._send_authenticated(request, seconds, max_bytes, max_bytes)
        except OSError as error:
            raise self._unreachable_error(str(request), error) from error
        return RawResponse(reply.status, reply.body, reply.header("date"), reply.truncated)

    # --- writing ---------------------------------------------------------------------------

    async def apply(self, manifest: Manifest, manager: str, *, force: bool = True, dry_run: bool = False) -> Manifest:
        """Creates or changes an object with server-side apply, and returns it.

        An apply without changes keeps `resourceVersion`. Unknown fields are an error. Raises
        Conflict if another manager owns a field and `force` is False, or if a given
        `metadata.resourceVersion` is old.
        """
        return await self._apply(manifest, manager, None, force, dry_run)

    async def apply_status(self, manifest: Manifest, manager: str, *, force: bool = True) -> Manifest:
        """Applies the `status` of an object, and nothing else of the manifest but its name."""
        metadata = {name: metadata_of(manifest)[name] for name in _IDENTITY_FIELDS if name in metadata_of(manifest)}
        body = {"apiVersion": manifest.get("apiVersion"), "kind": manifest.get("kind"), "metadata": metadata}
        return await self._apply({**body, "status": manifest.get("status") or {}}, manager, "status", force, False)

    async def apply_scale(self, live: Manifest, replicas: int, manager: str) -> Manifest:
        """Sets the replicas of an object through `/scale` with forced server-side apply; returns
        the Scale.

        Raises Conflict if the object has changed since `live`. It does not work for custom
        resources: the API server (1.36) does not convert the applied object.
        """
        names = {name: metadata_of(live)[name] for name in ("name", "namespace", "resourceVersion")}
        body = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": names, "spec": {"replicas": replicas}}
        path = resource_of(live).path(namespace_of(live), name_of(live), "scale")
        query = _query(fieldManager=manager, force="true", fieldValidation="Strict")
        return await self._request(HttpRequest("PATCH", path, query, msgspec.json.encode(body), _APPLY))

    async def apply_new(self, manifest: Manifest, manager: str) -> Manifest:
        """Creates an object with server-side apply in one request, without touching an existing
        one.

        Raises AlreadyExists. The request names a version that no object can have; the API server
        compares versions only if the object exists.
        """
        metadata = {**metadata_of(manifest), "resourceVersion": _UNUSED_VERSION}
        try:
            return await self._apply({**manifest, "metadata": metadata}, manager, None, True, False)
        except Conflict as error:
            raise AlreadyExists(error.message, status=error.status) from error

    async def create(self, manifest: Manifest, manager: str) -> Manifest:
        """Creates an object. Raises AlreadyExists.

        The request is not retried if its response is lost: read the object, then decide.
        """
        path = resource_of(manifest).path(namespace_of(manifest))
        query = _query(fieldManager=manager, fieldValidation="Strict")
        return await self._request(HttpRequest("POST", path, query, msgspec.json.encode(manifest), repeatable=False))

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
        """Changes the fields in `patch`; null removes a field.

        Raises Conflict if a given `metadata.resourceVersion` is old.
        """
        path = resource.path(namespace, name, subresource)
        query = _query(fieldManager=manager, fieldValidation="Strict")
        return await self._request(HttpRequest("PATCH", path, query, msgspec.json.encode(patch), _MERGE))

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        uid: str | None = None,
        propagation: str = "Background",
        *,
        grace_seconds: int | None = None,
    ) -> bool:
        """Starts the deletion of an object. Returns False if it (with this `uid`) does not exist.

        Without a uid, the object is read first, so that a retry never deletes a new object of that
        name.

        grace_seconds: until a pod is killed; None: as its spec says.
        """
        if uid is None:
            try:
                uid = uid_of(await self.get(resource, namespace, name))
            except NotFound:
                return False
        options: Manifest = {"propagationPolicy": propagation, **_uid_precondition(uid)}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            await self._request(
                HttpRequest("DELETE", resource.path(namespace, name), body=msgspec.json.encode(options))
            )
        except NotFound:
            return False
        except Conflict as error:
            if "recondition" in error.message:  # another object has the name now
                return False
            raise
        return True

    async def evict(self, namespace: str, name: str, uid: str | None = None) -> bool:
        """Evicts a pod within its disruption budget. Returns False if it does not exist.

        Raises EvictionBlocked if the budget does not allow it now.
        """
        body: Manifest = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": _uid_precondition(uid),
        }
        path = PODS.path(namespace, name, "eviction")
        try:
            await self._request(HttpRequest("POST", path, body=msgspec.json.encode(body), repeatable=uid is not None))
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
        return await self._request(HttpRequest("PATCH", path, query, msgspec.json.encode(manifest), _APPLY))

    # --- requests --------------------------------------------------------------------------

    async def _list_pages(self, path: str, query: _Query, limit: int | None, decode: _DecodePage) -> ObjectList:
        items, more = list[Manifest](), ""
        while True:
            first, last = _query(limit=str(limit) if limit else None), _query(**{"continue": more or None})
            request = HttpRequest("GET", path, (*first, *query, *last))
            max_bytes = self.limits.kube_response_bytes if limit is None else self.limits.kube_page_bytes
            try:
                page = await self._request_decoded(request, decode, max_bytes)
            except ResponseTooLarge:
                if limit == 1:
                    raise
                limit = max(1, (limit or KUBE_PAGE_ITEMS) // _PAGE_REDUCTION)
                continue
            items += page.items
            more = page.metadata.get("continue") or ""
            if not more:
                return ObjectList(items, str(page.metadata.get("resourceVersion", "")))

    async def _request(self, request: HttpRequest) -> Manifest:
        return await self._request_decoded(request, decode_object, self.limits.kube_response_bytes)

    async def _request_decoded(
        self, request: HttpRequest, decode: Callable[[bytes], _Decoded], max_bytes: int
    ) -> _Decoded:
        """Sends a request, with the retries of `decide_retry`, and returns the decoded response.

        Raises the last KubeError.

        decode: raises msgspec.DecodeError.
        """
        attempt = 0
        while True:
            attempt += 1
            sent = True
            try:
                return await self._request_once(request, decode, max_bytes)
            except OSError as error:
                sent = not isinstance(error, NotSent)
                failure: KubeError = self._unreachable_error(str(request), error)
                failure.__cause__ = error
            except ResponseTooLarge:
                raise
            except Unreachable as error:
                failure = error
            then = decide_retry(
                failure, attempt, repeatable=request.repeatable, sent=sent, chance=self._chance(), limits=self.limits
            )
            if then.pause_seconds is None:
                raise failure
            await self._pause(then.pause_seconds)

    async def _request_once(
        self, request: HttpRequest, decode: Callable[[bytes], _Decoded], max_bytes: int
    ) -> _Decoded:
        reply = await self._send_authenticated(request, self.limits.kube_response_seconds, max_bytes, _ERROR_BYTES)
        if reply.status not in (200, 201, 202):
            raise _error_response(reply.status, reply.body, reply.header("retry-after"), str(request))
        if reply.truncated:
            raise ResponseTooLarge(f"{request}: the answer has more than {max_bytes} bytes")
        try:
            return decode(reply.body)
        except msgspec.DecodeError as error:
            wanted = "an object" if isinstance(error, msgspec.ValidationError) else "JSON"
            raise Unreachable(f"{request}: the response is not {wanted}", status=reply.status) from error

    async def _send_authenticated(
        self, request: HttpRequest, seconds: float, max_bytes: int, max_error_bytes: int
    ) -> HttpResponse:
        """Sends a request, and once more with fresh credentials after a 401."""
        reply = await self._send(request, seconds, max_bytes, max_error_bytes)
        if reply.status == 401 and self._credentials.invalidate():
            reply = await self._send(request, seconds, max_bytes, max_error_bytes)
        return reply

    async def _send(self, request: HttpRequest, seconds: float, max_bytes: int, max_error_bytes: int) -> HttpResponse:
        try:
            return await self._transport.send(request, self._headers(), seconds, max_bytes, max_error_bytes)
        except NotSent as error:
            if isinstance(error.__cause__, ssl.SSLError):
                self._credentials.invalidate()  # the CA may have been replaced
            raise

    async def _open_watch(self, request: HttpRequest) -> WatchStream:
        """Opens a watch, and once more with fresh credentials after a 401."""
        response = await self._watch_transport.open(request.target, self._headers())
        if response.status == 401 and self._credentials.invalidate():
            async with response:
                pass
            response = await self._watch_transport.open(request.target, self._headers())
        return response

    def _headers(self) -> Headers:
        return (*self._plain, *self._credentials.headers())

    def _unreachable_error(self, request: str, error: Exception) -> Unreachable:
        """Returns an error for a broken connection, with the text of `error` or else its type."""
        words = str(error) or type(error).__name__
        return Unreachable(
            f"{request}: {words}", hint=f"the API server is {self.config.server}, from {self.config.source}"
        )


def _query(**values: str | None) -> _Query:
    return tuple((name, value) for name, value in values.items() if value is not None)


def _uid_precondition(uid: str | None) -> dict[str, Any]:
    return {} if uid is None else {"preconditions": {"uid": uid}}


def _error_response(status: int, body: bytes, retry_after: str, request: str) -> KubeError:
    error = error_from_response(status, body, request, float(retry_after) if retry_after.isdecimal() else None)
    if isinstance(error, Unauthenticated):
        error.hint = "the token or certificate is not accepted, or has run out"
    return error

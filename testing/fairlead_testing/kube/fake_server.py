"""A small HTTP server that lists, watches and applies like the Kubernetes API server, with faults.

It has no schemas and no field owners; tests that need them use a real server (`api_server`). Its
purpose is faults that are rare on a real server: 410, ended and silent watches, 429, new tokens,
resets.
"""

import asyncio
import copy
import json
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from fairlead.kube.resources import Manifest, Resource
from fairlead.kube.transport.kubeconfig import ClusterConfig

_END = None
_TURNS_TO_BE_KNOWN = 3
"""Loop iterations until the server knows an accepted connection.

Why: at its end it closes only connections that it knows. Others stayed open, and their warning
appeared in a later test.
"""


@dataclass(frozen=True, slots=True)
class OrderedResponse:
    """A response ordered by a test: a `Status`, or any bytes.

    reset: breaks the connection instead.
    mute: never responds.
    takes_effect: executes the request first, so that only its response is lost.
    """

    status: int = 500
    reason: str = ""
    message: str = "on purpose"
    headers: dict[str, str] = field(default_factory=dict)
    causes: tuple[dict[str, str], ...] = ()
    body: bytes | None = None
    reset: bool = False
    mute: bool = False
    takes_effect: bool = False


@dataclass(frozen=True, slots=True)
class ReceivedCall:
    """A received request. `query` has the last value of each name."""

    method: str
    path: str
    query: dict[str, str]
    token: str
    content: str

    @property
    def is_watch(self) -> bool:
        return self.query.get("watch") in ("1", "true")


class FakeApiServer:
    """The state of the server, and the ordered responses. Objects are keyed by path."""

    def __init__(self) -> None:
        self.objects: dict[str, Manifest] = {}
        self.calls: list[ReceivedCall] = []
        self.ordered_responses: deque[OrderedResponse] = deque()
        self.ordered_watch_responses: deque[OrderedResponse] = deque()
        self.token: str | None = None
        self.url = ""
        self.refused_paths: set[str] = set()
        self.bare = False
        self.frozen = False
        self._version = 100
        self._uids = 0
        self._forgotten = 0
        self._log: list[tuple[int, str, str, Manifest]] = []
        self._watches: dict[asyncio.Queue[bytes | None], str] = {}

    # --- what a test does to it -----------------------------------------------------------------------------------------

    def config(self, **more: Any) -> ClusterConfig:
        return ClusterConfig(server=self.url, source="a test", **more)

    def put(self, resource: Resource, namespace: str | None, name: str, **more: Any) -> Manifest:
        """Creates or changes an object, like another client."""
        body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"name": name}, **more}
        if namespace is not None:
            body["metadata"] = {"name": name, "namespace": namespace}
        return self._store(resource.path(namespace, name), body)

    def remove(self, resource: Resource, namespace: str | None, name: str) -> None:
        self._drop(resource.path(namespace, name))

    def forget(self) -> None:
        self._forgotten = self._version

    def end_watches(self) -> None:
        self._notify(_END)

    def send_event(self, event: Manifest) -> None:
        self._notify(json.dumps(event).encode() + b"\n")

    def bookmark(self) -> None:
        self.send_event({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(self._version)}}})

    @property
    def watch_count(self) -> int:
        return len(self._watches)

    def call_count(self, method: str, watching: bool = False) -> int:
        return sum(call.method == method and call.is_watch == watching for call in self.calls)

    # --- the server -----------------------------------------------------------------------------------------------------

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Handles any request."""
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        asked = ReceivedCall(
            request.method, unquote(request.path), dict(request.query), token, request.headers.get("Content-Type", "")
        )
        self.calls.append(asked)
        body = await request.read()
        if self.token is not None and token != self.token:
            return _status(OrderedResponse(401, "Unauthorized", "Unauthorized"))
        if asked.path in self.refused_paths:
            return _status(OrderedResponse(403, "Forbidden"))
        orders = self.ordered_watch_responses if asked.is_watch else self.ordered_responses
        if not orders:
            return await self._serve(request, asked, body)
        order = orders.popleft()
        if order.takes_effect:
            await self._serve(request, asked, body)
        if order.mute:
            await asyncio.Event().wait()
        if order.reset and request.transport is not None:
            request.transport.abort()
        return _status(order)

    async def _serve(self, request: web.BaseRequest, asked: ReceivedCall, body: bytes) -> web.StreamResponse:
        if asked.is_watch:
            return await self._watch(request, asked)
        if asked.method == "PATCH":
            return self._patch(asked, json.loads(body))
        if asked.method == "POST":
            return self._create(asked, json.loads(body))
        found = self.objects.get(asked.path)
        if asked.method == "DELETE":
            return self._delete(asked, json.loads(body))
        if asked.method == "GET" and found is None and asked.path.rpartition("/")[2].endswith("s"):
            return self._list(asked)
        return web.json_response(found) if found is not None else _status(OrderedResponse(404, "NotFound", "not found"))

    def _list(self, asked: ReceivedCall) -> web.Response:
        under = [item for path, item in sorted(self.objects.items()) if self._within(path, asked.path)]
        start, page = int(asked.query.get("continue", 0)), int(asked.query.get("limit", 0)) or len(under)
        metadata = {"resourceVersion": str(self._version)}
        if start + page < len(under):
            metadata["continue"] = str(start + page)
        items = [
            {name: value for name, value in item.items() if not (self.bare and name in ("apiVersion", "kind"))}
            for item in under[start : start + page]
        ]
        return web.json_response({"kind": "List", "metadata": metadata, "items": items})

    @staticmethod
    def _within(path: str, collection: str) -> bool:
        parent = path.rpartition("/")[0]
        if parent == collection:
            return True
        head, _, tail = parent.partition("/namespaces/")
        return bool(tail) and f"{head}/{tail.partition('/')[2]}" == collection

    async def _watch(self, request: web.BaseRequest, asked: ReceivedCall) -> web.StreamResponse:
        since = int(asked.query["resourceVersion"])
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if since < self._forgotten:
            status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            await response.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
            return response
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        for version, kind, path, item in self._log:
            if version > since and self._within(path, asked.path):
                queue.put_nowait(_event(kind, item))
        self._watches[queue] = asked.path
        try:
            while (line := await queue.get()) is not _END:
                await response.write(line)
        finally:
            del self._watches[queue]
        return response

    def _patch(self, asked: ReceivedCall, body: Manifest) -> web.Response:
        path = asked.path.removesuffix("/status")
        before = self.objects.get(path)
        if before is None and "apply" not in asked.content:
            return _status(OrderedResponse(404, "NotFound", "not found"))
        version = body.get("metadata", {}).pop("resourceVersion", None)
        if before is not None and version not in (None, before["metadata"]["resourceVersion"]):
            return _status(OrderedResponse(409, "Conflict", "the object has been modified"))
        return web.json_response(self._store(path, _merged(before or {}, body)))

    def _create(self, asked: ReceivedCall, body: Manifest) -> web.Response:
        if asked.path.endswith("/eviction"):
            pod = asked.path.removesuffix("/eviction")
            return self._delete(ReceivedCall("DELETE", pod, {}, "", ""), {})
        path = f"{asked.path}/{body['metadata']['name']}"
        if path in self.objects:
            return _status(OrderedResponse(409, "AlreadyExists", "already exists"))
        return web.json_response(self._store(path, body), status=201)

    def _delete(self, asked: ReceivedCall, body: Manifest) -> web.Response:
        found = self.objects.get(asked.path)
        if found is None:
            return _status(OrderedResponse(404, "NotFound", "not found"))
        if body.get("preconditions", {}).get("uid") not in (None, found["metadata"]["uid"]):
            return _status(OrderedResponse(409, "Conflict", "Precondition failed: UID in precondition"))
        self._drop(asked.path)
        return web.json_response(found)

    # --- the store ------------------------------------------------------------------------------------------------------

    def _store(self, path: str, body: Manifest) -> Manifest:
        before = self.objects.get(path)
        body = copy.deepcopy(body)
        metadata = body.setdefault("metadata", {})
        if before is None:
            self._uids += 1
            metadata["uid"] = f"uid-{self._uids}"
        else:
            metadata["uid"] = before["metadata"]["uid"]
            metadata["resourceVersion"] = before["metadata"]["resourceVersion"]
            if body == before:
                return before
        self._version += 1
        metadata["resourceVersion"] = str(self._version)
        self.objects[path] = body
        self._record("ADDED" if before is None else "MODIFIED", path, body)
        return body

    def _drop(self, path: str) -> None:
        body = copy.deepcopy(self.objects.pop(path))
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        self._record("DELETED", path, body)

    def _record(self, kind: str, path: str, body: Manifest) -> None:
        self._log.append((self._version, kind, path, copy.deepcopy(body)))
        if not self.frozen:
            self._notify(_event(kind, body), path)

    def _notify(self, line: bytes | None, path: str | None = None) -> None:
        for queue, collection in self._watches.items():
            if path is None or self._within(path, collection):
                queue.put_nowait(line)


def _event(kind: str, body: Manifest) -> bytes:
    return json.dumps({"type": kind, "object": body}).encode() + b"\n"


def _status(order: OrderedResponse) -> web.Response:
    body = {"kind": "Status", "code": order.status, "reason": order.reason, "message": order.message}
    if order.causes:
        body["details"] = {"causes": list(order.causes)}
    text = json.dumps(body).encode() if order.body is None else order.body
    return web.Response(status=order.status, headers=order.headers, body=text, content_type="application/json")


def _merged(before: Any, patch: Any) -> Any:
    """Returns the result of a JSON merge patch."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(before) if isinstance(before, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merged(merged.get(name), value)
    return merged


@asynccontextmanager
async def fake_api_server() -> AsyncIterator[FakeApiServer]:
    """Runs a fake server on a free loopback port."""
    fake = FakeApiServer()
    server = web.Server(fake.handle, handler_cancellation=True)
    runner = web.ServerRunner(server, shutdown_timeout=0.0)
    await runner.setup()
    door = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, door).start()
    fake.url = f"http://127.0.0.1:{door.getsockname()[1]}"
    try:
        yield fake
    finally:
        fake.end_watches()
        asyncio.get_running_loop().remove_reader(door)  # no more connections
        for _ in range(_TURNS_TO_BE_KNOWN):
            await asyncio.sleep(0)
        await runner.cleanup()

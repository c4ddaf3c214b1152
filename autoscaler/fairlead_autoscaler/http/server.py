"""HTTP server of the autoscaler: probes, metrics, decisions with their reasons, and the wake hints
of gateways.

`/healthz`, `/readyz` and `/metrics` are open. All other paths need the management token if there is
one. A hint makes the next tick come sooner and starts one replica of a model that has none, nothing
else. It must be JSON, so that no page of another site can make a browser send one.
"""

import hmac
import math
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec
from aiohttp import web

from fairlead.runtime.aiohttp_server import ProbeResult, add_probes
from fairlead.runtime.clock import Clock
from fairlead_autoscaler.control_loop import ControlLoop
from fairlead_autoscaler.history.recorder import RecordBuffer
from fairlead_autoscaler.http.metrics import AutoscalerMetrics

_JSON: Final = "application/json"
_PUBLIC_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics"})
_HINT_BYTES: Final = 4_096
_MAX_ECHOED_CHARS: Final = 70
"""Characters of a wrong value that an error repeats."""


class WakeHint(msgspec.Struct):
    """The body that a gateway posts to `/wake`: the model (`namespace/name`) of which it queues a
    request.
    """

    model: str


_hint: Final = msgspec.json.Decoder(WakeHint)


def create_app(
    loop: ControlLoop, buffer: RecordBuffer, notes: Callable[[], list[str]], clock: Clock, token: str | None
) -> web.Application:
    """Returns the application of the port.

    notes: returns all current problems, in words.
    token: the management token; None: every path is open.
    """
    handlers = _Handlers(loop, buffer, notes)
    app = web.Application(middlewares=[_require_token(token)], client_max_size=_HINT_BYTES)
    add_probes(app, AutoscalerMetrics(loop, clock), lambda: ProbeResult(True, "the loop runs"), handlers.readiness)
    app.add_routes(
        [
            web.get("/autoscaling", handlers.status),
            web.get("/autoscaling/look", handlers.record),
            web.get("/autoscaling/recording", handlers.recording),
            web.post("/wake", handlers.wake),
        ]
    )
    return app


def _require_token(token: str | None) -> Callable[..., Awaitable[web.StreamResponse]]:
    wanted = None if token is None else f"Bearer {token}".encode()

    @web.middleware
    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if wanted is not None and request.path not in _PUBLIC_PATHS:
            given = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, wanted):
                return _error_response(401, "the management token is missing or wrong")
        return await handler(request)

    return guard


class _Handlers:
    def __init__(self, loop: ControlLoop, buffer: RecordBuffer, notes: Callable[[], list[str]]) -> None:
        self._loop = loop
        self._buffer = buffer
        self._notes = notes

    def readiness(self) -> ProbeResult:
        """Returns the readiness. It is False while the models or their metrics are unavailable."""
        is_ready = self._loop.unavailable_reason is None
        return ProbeResult(is_ready, "\n".join(["ready" if is_ready else "not ready", *self._notes()]))

    async def status(self, _: web.Request) -> web.Response:
        """Returns the last record of every model, all problems, and whether this process leads."""
        records = dict(sorted(self._loop.last_records().items()))
        status = {
            "leads": self._loop.is_leader,
            "frozen": self._loop.is_frozen,
            "notes": self._notes(),
            "models": records,
        }
        return web.Response(body=msgspec.json.encode(status), content_type=_JSON)

    async def record(self, request: web.Request) -> web.Response:
        """Returns the last record of a model, or the last one at or before a time; 404 if none.

        Query: `?model=KEY[&at=UNIX]`.
        """
        model = request.query.get("model", "")
        at = _parse_time(request, "at")
        line = self._buffer.last_at(model, at)
        if line is None:
            return _error_response(404, f"there is no such record of {model!r}; {self._retention_hint(model)}")
        return web.Response(body=line, content_type=_JSON)

    def _retention_hint(self, model: str) -> str:
        """Returns the time of the model's first record; without any, the names of scaled models."""
        begins = self._buffer.first_time(model)
        if begins is None:
            return f"scaled models: {', '.join(sorted(self._loop.last_records())) or 'none'}"
        return f"the first record is of {datetime.fromtimestamp(begins, UTC):%Y-%m-%d %H:%M:%S} UTC"

    async def recording(self, request: web.Request) -> web.StreamResponse:
        """Returns the records in memory as JSON lines, of one model or all, since a time or all.

        Query: `?[model=KEY][&since=UNIX]`.
        """
        lines: Iterator[bytes] = self._buffer.lines(request.query.get("model"), _parse_time(request, "since") or 0.0)
        response = web.StreamResponse(headers={"Content-Type": "application/jsonl"})
        await response.prepare(request)
        for line in lines:
            await response.write(line + b"\n")
        await response.write_eof()
        return response

    async def wake(self, request: web.Request) -> web.Response:
        """Passes on a gateway's hint that a request is queued, after which the next tick comes
        early.

        Returns 200, 404 if no such model is scaled, and 400 or 415 for anything but a hint.
        """
        if request.content_type != _JSON:
            return _error_response(415, "a hint is JSON: send it with Content-Type: application/json")
        try:
            hint = _hint.decode(await request.read())
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return _error_response(400, 'a hint is {"model": "NAMESPACE/NAME"}')
        if not self._loop.wake(hint.model):
            return _error_response(404, "no model of this name is scaled")
        return web.Response(body=b"{}", content_type=_JSON)


def _parse_time(request: web.Request, name: str) -> float | None:
    """Returns a time of the query; None if it is missing. Raises the response to a wrong one."""
    text = request.query.get(name)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        message = f"{name}={text[:_MAX_ECHOED_CHARS]} is not a time; write Unix seconds, such as {name}=1763726400.5"
        raise web.HTTPBadRequest(text=_error_body(message).decode(), content_type=_JSON)
    return seconds


def _error_response(status: int, message: str) -> web.Response:
    return web.Response(status=status, body=_error_body(message), content_type=_JSON)


def _error_body(message: str) -> bytes:
    return msgspec.json.encode({"error": {"message": message}})

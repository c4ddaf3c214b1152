"""The autoscaler's port: probes, Prometheus, what was decided and why, and the hints of gateways.

``/healthz``, ``/readyz`` and ``/metrics`` are open. The rest wants the management token where there is one. A hint makes a look come
sooner and starts one replica of a model that has none, nothing else; it is JSON, so that no page of another site can make a browser
send one.
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
"""Characters of a wrong value that are said back."""


class WakeHint(msgspec.Struct):
    """What a gateway posts to ``/wake``: the model (``namespace/name``) of which it holds a request."""

    model: str


_hint: Final = msgspec.json.Decoder(WakeHint)


def create_app(
    loop: ControlLoop, buffer: RecordBuffer, notes: Callable[[], list[str]], clock: Clock, token: str | None
) -> web.Application:
    """The port's application. ``notes`` say what is wrong, in words."""
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
            given = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, wanted):
                return _error_response(401, "the management token is missing or wrong")
        return await handler(request)

    return guard


class _Handlers:
    def __init__(self, loop: ControlLoop, ring: RecordBuffer, notes: Callable[[], list[str]]) -> None:
        self._loop = loop
        self._ring = ring
        self._notes = notes

    def readiness(self) -> ProbeResult:
        """Returns the readiness. It is False while the models or their metrics are unavailable."""
        is_ready = self._loop.unavailable_reason is None
        return ProbeResult(is_ready, "\n".join(["ready" if is_ready else "not ready", *self._notes()]))

    async def status(self, _: web.Request) -> web.Response:
        """The last look at every model."""
        looks = dict(sorted(self._loop.last_records().items()))
        about = {"leads": self._loop.is_leader, "frozen": self._loop.is_frozen, "notes": self._notes(), "models": looks}
        return web.Response(body=msgspec.json.encode(about), content_type=_JSON)

    async def record(self, request: web.Request) -> web.Response:
        """``?model=KEY[&at=UNIX]``: the last look at a model, or the last at or before a moment."""
        model = request.query.get("model", "")
        at = _parse_time(request, "at")
        line = self._ring.last_at(model, at)
        if line is None:
            return _error_response(404, f"no look at {model!r} is kept from then; {self._retention_hint(model)}")
        return web.Response(body=line, content_type=_JSON)

    def _retention_hint(self, model: str) -> str:
        """What there is instead, in words."""
        begins = self._ring.first_time(model)
        if begins is None:
            return f"models that are scaled: {', '.join(sorted(self._loop.last_records())) or 'none'}"
        return f"the first one that is kept is of {datetime.fromtimestamp(begins, UTC):%Y-%m-%d %H:%M:%S} UTC"

    async def recording(self, request: web.Request) -> web.StreamResponse:
        """``?[model=KEY][&since=UNIX]``: all looks that are kept, as JSON lines."""
        lines: Iterator[bytes] = self._ring.lines(request.query.get("model"), _parse_time(request, "since") or 0.0)
        answer = web.StreamResponse(headers={"Content-Type": "application/jsonl"})
        await answer.prepare(request)
        for line in lines:
            await answer.write(line + b"\n")
        await answer.write_eof()
        return answer

    async def wake(self, request: web.Request) -> web.Response:
        """200: a look comes at once. 404: no such model is scaled."""
        if request.content_type != _JSON:
            return _error_response(415, "a hint is JSON: send it with Content-Type: application/json")
        try:
            hint = _hint.decode(await request.read())
        except (msgspec.MsgspecError, ValueError):
            return _error_response(400, 'a hint is {"model": "NAMESPACE/NAME"}')
        if not self._loop.wake(hint.model):
            return _error_response(404, "no such model is scaled")
        return web.Response(body=b"{}", content_type=_JSON)


def _parse_time(request: web.Request, name: str) -> float | None:
    """A moment of the query; None where it is not given. Raises the answer to one that is none."""
    text = request.query.get(name)
    if text is None:
        return None
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        told = f"{name}={text[:_MAX_ECHOED_CHARS]} is no moment; write Unix seconds, such as {name}=1763726400.5"
        raise web.HTTPBadRequest(text=_error_body(told).decode(), content_type=_JSON)
    return found


def _error_response(status: int, message: str) -> web.Response:
    return web.Response(status=status, body=_error_body(message), content_type=_JSON)


def _error_body(message: str) -> bytes:
    return msgspec.json.encode({"error": {"message": message}})

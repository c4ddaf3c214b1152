"""HTTP server of the autoscaler: probes, metrics, decisions with their reasons, and the wake hints
of gateways.

`/healthz`, `/readyz` and `/metrics` are open. All other paths need the management token if there is
one. Web pages of other sites are refused, as at the gateway's management port. All errors have one
shape, `{"error": {"message": …}}`.

A hint makes the next tick come sooner and starts one replica of a model that has none, nothing
else. It must be JSON, so that no page of another site can make a browser send one.
"""

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec
from aiohttp import web

from fairlead import http_access
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
_FRAMEWORK_ERRORS: Final = {
    404: "nothing is served under this path",
    405: "this path does not answer this method",
    413: f"a hint has at most {_HINT_BYTES:,} bytes",
}
"""Messages for the errors that aiohttp raises itself, as text."""


@dataclass(frozen=True, slots=True)
class PortAccess:
    """The access rules of the port.

    token: the management token; None: every path is open.
    hosts: further DNS names under which clients reach the port.
    """

    token: str | None = None
    hosts: Sequence[str] = ()


class WakeHint(msgspec.Struct):
    """The body that a gateway posts to `/wake`: the model (`namespace/name`) of which it queues a
    request.
    """

    model: str


_hint: Final = msgspec.json.Decoder(WakeHint)


def create_app(
    loop: ControlLoop,
    buffer: RecordBuffer,
    notes: Callable[[], list[str]],
    clock: Clock,
    access: PortAccess,
) -> web.Application:
    """Returns the application of the port.

    notes: returns all current problems, in words.
    """
    handlers = _Handlers(loop, buffer, notes, is_open=access.token is None)
    app = web.Application(middlewares=[_guard(access.token, access.hosts)], client_max_size=_HINT_BYTES)
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


def _guard(token: str | None, hosts: Iterable[str]) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Returns the middleware that refuses web pages, and requests without the token."""
    names = http_access.normalize_host_names(hosts)
    wanted = None if token is None else token.encode()

    @web.middleware
    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        headers = request.headers
        sent_hosts = headers.getall("host", [])
        if len(sent_hosts) != 1 or not http_access.is_trusted_host(sent_hosts[0], names):
            hint = "use the address, or start the autoscaler with --manage-host NAME"
            return _error_response(403, f"this host name is not served here; {hint}")
        if http_access.is_foreign_origin(headers.get("origin"), sent_hosts[0]):
            return _error_response(403, "requests from other origins are refused")
        if http_access.is_foreign_fetch(headers.get("sec-fetch-site"), headers.get("sec-fetch-mode")):
            return _error_response(403, "requests from other sites are refused")
        if wanted is not None and request.path not in _PUBLIC_PATHS:
            # The bytes, since text that was not UTF-8 cannot be encoded again.
            sent = [value for name, value in request.raw_headers if name.lower() == b"authorization"]
            if len(sent) != 1 or not http_access.is_authorized(sent[0], wanted):
                response = _error_response(401, "the management token is missing or wrong")
                response.headers["www-authenticate"] = "Bearer"
                return response
        try:
            return await handler(request)
        except web.HTTPException as error:
            if error.content_type == _JSON:
                raise
            response = _error_response(error.status, _FRAMEWORK_ERRORS.get(error.status, error.reason))
            if "allow" in error.headers:
                response.headers["allow"] = error.headers["allow"]
            return response

    return guard


class _Handlers:
    def __init__(
        self, loop: ControlLoop, buffer: RecordBuffer, notes: Callable[[], list[str]], *, is_open: bool
    ) -> None:
        self._loop = loop
        self._is_open = is_open
        self._buffer = buffer
        self._notes = notes

    def readiness(self) -> ProbeResult:
        """Returns the readiness. It is False while the models or their metrics are unavailable.

        With a token, who lacks it reads no names of models and gateways here.
        """
        is_ready = self._loop.unavailable_reason is None
        notes = self._notes() if self._is_open else []
        return ProbeResult(is_ready, "\n".join(["ready" if is_ready else "not ready", *notes]))

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
        if request.method != "HEAD":  # what is written goes out also where no body may follow
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

"""One recorded exchange: the request as sent, and the response as received.

A recording is a text file with three marked sections. Files with a blanked path have LF line ends
and a wrong Content-Length. The parser permits both and ignores the recorded length.

The manifest: what each recording is, and how equal the simulated engine must be to it.

Recordings are in the order of their replay, because state (cached, loaded, asleep) carries over.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from fairlead.errors import BadInput

_REQUEST = b"===== REQUEST =====\n"
_RESPONSE = b"\n===== RESPONSE =====\n"
_TIMELINE = b"\n===== RECV TIMELINE"

EXACT = "exact"
SHAPE = "shape"
EXCLUDED = "excluded"
_MATCH_LEVELS = frozenset({EXACT, SHAPE, EXCLUDED})


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request; ``headers`` are in order, as written."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def to_bytes(self, host: str) -> bytes:
        """Returns the request for another address, with new Host and Content-Length headers."""
        lines = [f"{self.method} {self.target} HTTP/1.1"]
        for name, value in self.headers:
            lowered = name.lower()
            if lowered == "host":
                value = host
            elif lowered == "content-length":
                value = str(len(self.body))
            lines.append(f"{name}: {value}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + self.body


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response, recorded or live; ``chunks`` is empty without chunked encoding."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    chunks: tuple[bytes, ...] = ()

    @property
    def fields(self) -> Mapping[str, str]:
        return {name.lower(): value for name, value in self.headers}

    @property
    def is_stream(self) -> bool:
        return self.fields.get("content-type", "").startswith("text/event-stream")

    def json(self) -> Any:
        """Returns the body as JSON. Raises ValueError if it is not JSON."""
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """Returns the ``data:`` of each event: parsed JSON, or text such as ``[DONE]``."""
        events: list[Any] = []
        for block in self.body.split(b"\n\n"):
            if not block.startswith(b"data: "):
                continue
            data = block[6:].decode("utf-8", "replace")
            events.append(json.loads(data) if data.startswith("{") else data)
        return events


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded exchange; ``response`` is None if the engine did not answer in time."""

    name: str
    request: RecordedRequest
    response: HttpResponse | None


def is_recording(raw: bytes) -> bool:
    return _REQUEST in raw and _RESPONSE in raw


def read_recording(path: Path) -> Recording:
    """Returns the recording of a file. Raises ValueError if it is not one."""
    raw = path.read_bytes()
    if not is_recording(raw):
        raise ValueError(f"{path.name} is not a request/response recording")
    request, _, rest = raw.split(_REQUEST, 1)[1].partition(_RESPONSE)
    response = rest.split(_TIMELINE, 1)[0]
    return Recording(path.stem, _parse_request(request), parse_response(response) if response.strip() else None)


def _parse_request(raw: bytes) -> RecordedRequest:
    lines, body = _split_head(raw)
    method, target, _ = lines[0].split(" ", 2)
    return RecordedRequest(method, target, _parse_headers(lines[1:]), body)


def parse_response(raw: bytes) -> HttpResponse:
    """Parses a complete response. Raises ValueError if it is not HTTP."""
    lines, body = _split_head(raw)
    version, status, reason = [*lines[0].split(" ", 2), ""][:3]
    if not version.startswith("HTTP/"):
        raise ValueError(f"no HTTP status line: {lines[0]!r}")
    headers = _parse_headers(lines[1:])
    chunked = any(name.lower() == "transfer-encoding" and "chunked" in value.lower() for name, value in headers)
    chunks = _dechunk(body) if chunked else ()
    return HttpResponse(int(status), reason, headers, b"".join(chunks) if chunked else body, chunks)


def is_complete(raw: bytes) -> bool:
    """Whether ``raw`` has one complete response, by Content-Length or the last chunk."""
    head, separator, body = raw.partition(b"\r\n\r\n")
    if not separator:
        return False
    fields = dict(_parse_headers(head.decode("latin-1").split("\r\n")[1:]))
    folded = {name.lower(): value for name, value in fields.items()}
    if "chunked" in folded.get("transfer-encoding", ""):
        return body.endswith(b"\r\n0\r\n\r\n") or body == b"0\r\n\r\n"
    return len(body) >= int(folded.get("content-length", "0"))


def _split_head(raw: bytes) -> tuple[list[str], bytes]:
    ends = [(raw.find(mark), len(mark)) for mark in (b"\r\n\r\n", b"\n\n") if mark in raw]
    if not ends:
        return raw.decode("latin-1").splitlines(), b""
    position, length = min(ends)
    return raw[:position].decode("latin-1").splitlines(), raw[position + length :]


def _parse_headers(lines: list[str]) -> tuple[tuple[str, str], ...]:
    pairs = (line.partition(":") for line in lines if line)
    return tuple((name, value.strip()) for name, _, value in pairs)


def _dechunk(body: bytes) -> tuple[bytes, ...]:
    chunks: list[bytes] = []
    position = 0
    while True:
        line_end = body.find(b"\r\n", position)
        if line_end < 0:
            return tuple(chunks)
        size = int(body[position:line_end], 16)
        if size == 0:
            return tuple(chunks)
        chunks.append(body[line_end + 2 : line_end + 2 + size])
        position = line_end + 2 + size + 2


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One recorded request and response.

    - hold: number of requests that are kept open until the recording named ``until`` is replayed.
    - abandon: a ``stream`` or ``plain`` request that is left in the middle before this one.
    """

    name: str
    engine: str
    match: str
    why: str = ""
    hold: int = 0
    until: str = ""
    abandon: str = ""
    times: int = 1


@dataclass(frozen=True, slots=True)
class ManifestScenario:
    """A file with a whole scenario, and the tests that cover it."""

    name: str
    summary: str
    tests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """All files; ``engines`` has the flags of each engine configuration."""

    engines: Mapping[str, tuple[str, ...]]
    entries: tuple[ManifestEntry, ...]
    scenarios: tuple[ManifestScenario, ...]

    def entries_for(self, engine: str) -> list[ManifestEntry]:
        return [entry for entry in self.entries if entry.engine == engine and entry.match != EXCLUDED]


def load_manifest() -> Manifest:
    """Returns the manifest of this package. Raises BadInput with the entry's name."""
    text = resources.files(__package__).joinpath("manifest.yaml").read_text("utf-8")
    return parse_manifest(yaml.safe_load(text))


def parse_manifest(document: Mapping[str, Any]) -> Manifest:
    """Returns a manifest from its YAML document. Raises BadInput with the entry's name."""
    engines = {name: tuple(str(word) for word in words) for name, words in document["engines"].items()}
    entries = tuple(_parse_entry(name, fields, engines) for name, fields in document["recordings"].items())
    scenarios = tuple(
        ManifestScenario(name, fields["what"], tuple(fields["tests"])) for name, fields in document["scenarios"].items()
    )
    return Manifest(engines, entries, scenarios)


def _parse_entry(name: str, fields: Mapping[str, Any], engines: Mapping[str, Any]) -> ManifestEntry:
    try:
        entry = ManifestEntry(name, **fields)
    except TypeError as error:
        raise BadInput(f"{name}: {error}", field=f"recordings.{name}") from error
    if entry.match not in _MATCH_LEVELS:
        raise BadInput(
            f"{name}: match {entry.match!r} is unknown", field=f"recordings.{name}.match", hint="exact, shape, excluded"
        )
    if entry.engine not in engines:
        raise BadInput(f"{name}: no engine is called {entry.engine!r}", field=f"recordings.{name}.engine")
    if entry.match == EXCLUDED and not entry.why:
        raise BadInput(f"{name}: excluded without a reason", field=f"recordings.{name}.why")
    return entry

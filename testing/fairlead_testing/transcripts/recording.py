"""Recorded exchanges, and the manifest that says how equal the simulated engine is to each.

A recording is a text file with three marked sections: the request as sent, the response as
received, and times. Files with a blanked path have LF line ends and a wrong Content-Length. The
parser permits both and ignores the recorded length.

The manifest has the recordings in the order of their replay, because state (cached, loaded, asleep)
carries over.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

REQUEST_MARK = b"===== REQUEST =====\n"
RESPONSE_MARK = b"\n===== RESPONSE =====\n"
_TIMELINE = b"\n===== RECV TIMELINE"

EXACT = "exact"


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
    return REQUEST_MARK in raw and RESPONSE_MARK in raw


def read_recording(path: Path) -> Recording:
    """Returns the recording of a file. Raises ValueError if it is not one."""
    raw = path.read_bytes()
    if not is_recording(raw):
        raise ValueError(f"{path.name} is not a request/response recording")
    request, _, rest = raw.split(REQUEST_MARK, 1)[1].partition(RESPONSE_MARK)
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

    - match: ``exact`` or ``shape``; why: the reason if it is not ``exact``.
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
class Manifest:
    """All recordings; ``engines`` has the flags of each engine configuration."""

    engines: Mapping[str, Sequence[str]]
    entries: Sequence[ManifestEntry]

    def entries_for(self, engine: str) -> list[ManifestEntry]:
        return [entry for entry in self.entries if entry.engine == engine]


def load_manifest() -> Manifest:
    document = yaml.safe_load(resources.files(__package__).joinpath("manifest.yaml").read_text("utf-8"))
    entries = [ManifestEntry(name, **fields) for name, fields in document["recordings"].items()]
    return Manifest(document["engines"], entries)

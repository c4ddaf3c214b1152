"""Artifacts for a registry in memory: files one by one, or archives as layers.

A registry in memory, on loopback: the part of the OCI distribution API that images need.

``token`` makes it ask for a bearer token, which its own ``/token`` gives to the right password.
``damage`` replaces the bytes of blobs.
"""

import base64
import gzip
import hashlib
import io
import json
import re
import tarfile
import threading
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

USER: Final = base64.b64encode(b"user:password").decode()
_PATH: Final = re.compile(r"/v2/(?P<repository>.+)/(?P<kind>blobs|manifests|blobs/uploads)/(?P<name>[^/]*)")

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
TAR_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
FILE_TYPE = "application/octet-stream"


@dataclass(slots=True)
class MemoryRegistry:
    """The content of a registry, and the requests that it got.

    blobs: repository and digest → content.
    manifests: repository and tag or digest → content and media type.
    requests: method and path of each.
    """

    address: str = ""
    token: str = ""
    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[bytes, str]] = field(default_factory=dict)
    damage: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)


@contextmanager
def memory_registry(token: str = "") -> Iterator[MemoryRegistry]:
    """Serves a registry during the block."""
    state = MemoryRegistry(token=token)

    class Handler(_Handler):
        registry = state

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.address = f"127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    registry: MemoryRegistry
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Writes nothing."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        url = urllib.parse.urlsplit(self.path)
        self.registry.requests.append(f"{self.command} {url.path}")
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path == "/token":
            right = self.headers.get("authorization") == f"Basic {USER}"
            self._send(200 if right else 403, json.dumps({"token": self.registry.token}).encode() if right else b"{}")
        elif self.registry.token and self.headers.get("authorization") != f"Bearer {self.registry.token}":
            realm = f'Bearer realm="http://{self.registry.address}/token",service="tests"'
            self._send(401, b"", **{"www-authenticate": realm})
        elif url.path == "/v2/":
            self._send(200, b"{}")
        elif (found := _PATH.fullmatch(url.path)) is not None:
            self._store(found["repository"], found["kind"], found["name"], query, body)
        else:
            self._send(404, b"")

    def _store(self, repository: str, kind: str, name: str, query: dict[str, str], body: bytes) -> None:
        registry = self.registry
        match self.command, kind:
            case "POST", _:
                origin = (query.get("from", ""), query.get("mount", ""))
                if origin in registry.blobs:
                    registry.blobs[repository, query["mount"]] = registry.blobs[origin]
                    self._send(201, b"")
                else:
                    self._send(202, b"", location=f"/v2/{repository}/blobs/uploads/1")
            case "PUT", "blobs/uploads":
                right = query["digest"] == f"sha256:{hashlib.sha256(body).hexdigest()}"
                if right:
                    registry.blobs[repository, query["digest"]] = body
                self._send(201 if right else 400, b"")
            case "PUT", "manifests":
                digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
                for version in (name, digest):
                    registry.manifests[repository, version] = (body, self.headers["content-type"])
                self._send(201, b"")
            case _, "manifests":
                content, media_type = registry.manifests.get((repository, name), (b"", ""))
                self._send(200 if media_type else 404, content, **{"content-type": media_type})
            case _:
                found = registry.blobs.get((repository, name))
                self._send(404 if found is None else 200, registry.damage.get(name, found or b""))

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def push_layers(
    registry: MemoryRegistry,
    repository: str,
    layers: Sequence[tuple[bytes, str, Mapping[str, str]]],
    tag: str = "latest",
) -> str:
    """Stores a manifest of layers (content, media type, annotations), and returns its digest."""
    listed: list[dict[str, Any]] = []
    for content, media_type, notes in layers:
        digest = digest_of(content)
        registry.blobs[repository, digest] = content
        listed.append({"mediaType": media_type, "digest": digest, "size": len(content), "annotations": dict(notes)})
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "layers": listed}
    return push_document(registry, repository, manifest, MANIFEST_TYPE, tag)


def push_document(registry: MemoryRegistry, repository: str, document: object, media_type: str, tag: str) -> str:
    """Stores a manifest or an index, and returns its digest."""
    body = json.dumps(document).encode()
    for version in (tag, digest_of(body)):
        registry.manifests[repository, version] = (body, media_type)
    return digest_of(body)


def file_layers(files: Mapping[str, bytes]) -> list[tuple[bytes, str, Mapping[str, str]]]:
    return [(content, FILE_TYPE, {"org.opencontainers.image.title": name}) for name, content in files.items()]


def tar_layer(members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """Returns a compressed archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member, content in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


def tar_of(files: Mapping[str, bytes]) -> bytes:
    return tar_layer([(tarfile.TarInfo(name), content) for name, content in files.items()])

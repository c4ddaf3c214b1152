"""Artefacts of the OCI image format: documents, layouts in folders, and a client of registries.

Documents of the OCI image format: media types, descriptors, and bytes that do not vary.

Source: the OCI image format specification, version 1.1; Helm's OCI artefacts.

OCI layouts: folders with artefacts, their blobs stored once.

An entry of a layout has a name such as ``gateway:0.2.0``: the repository below a registry's prefix,
and the tag.

Source: the OCI image layout specification, version 1.1.

A client of registries that pushes the artefacts of a layout.

Source: the OCI distribution specification, version 1.1; the token authentication of Distribution.
"""

import base64
import hashlib
import ipaddress
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from fairlead.errors import BadInput, Unavailable

Descriptor = dict[str, Any]
"""Media type, digest and size of a blob, and further fields of the specification."""

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CHART_CONFIG = "application/vnd.cncf.helm.config.v1+json"
CHART_CONTENT = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
EMPTY = "application/vnd.oci.empty.v1+json"
MANIFESTS = (INDEX, MANIFEST)
REF_NAME = "org.opencontainers.image.ref.name"
"""Annotation of an entry of a layout: its name."""

_CHUNK: Final = 1 << 20
_TIMEOUT: Final = httpx.Timeout(30.0, read=300.0, write=300.0)
_PARAMETER: Final = re.compile(r'(\w+)="([^"]*)"')
_PATH: Final = re.compile(r"[a-z0-9]+(?:[._/-]+[a-z0-9]+)*")


def encode(document: object) -> bytes:
    return json.dumps(document, sort_keys=True).encode()


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def descriptor(data: bytes, media_type: str) -> Descriptor:
    """Returns the descriptor of these bytes."""
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def references(document: Mapping[str, Any]) -> Iterator[Descriptor]:
    """Yields descriptors of everything that an index or a manifest names."""
    yield from document.get("manifests", [])
    if "config" in document:
        yield document["config"]
    yield from document.get("layers", [])


class LayoutError(BadInput):
    """Raised where a layout lacks a blob or has a wrong one."""


class OciLayout:
    """A layout in ``folder``, which is made where it is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self) -> dict[str, Descriptor]:
        """Returns name → descriptor of each artefact, by name."""
        index = self.folder / "index.json"
        manifests = json.loads(index.read_bytes())["manifests"] if index.is_file() else []
        found = {manifest["annotations"][REF_NAME]: manifest for manifest in manifests}
        return {
            name: {key: value for key, value in found[name].items() if key != "annotations"} for name in sorted(found)
        }

    def set_entries(self, entries: Mapping[str, Descriptor]) -> None:
        """Names these artefacts, and no others, as the content of the layout."""
        manifests = [entries[name] | {"annotations": {REF_NAME: name}} for name in sorted(entries)]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "oci-layout").write_bytes(encode({"imageLayoutVersion": "1.0.0"}))
        (self.folder / "index.json").write_bytes(encode({"schemaVersion": 2, "manifests": manifests}))

    def add(self, data: bytes, media_type: str) -> Descriptor:
        """Stores a blob; returns its descriptor."""
        described = descriptor(data, media_type)
        target = self._new(described["digest"])
        if target is not None:
            target.write_bytes(data)
        return described

    def add_file(self, path: Path, digest: str) -> None:
        """Stores a file as the blob of this digest, by a link where that is possible."""
        target = self._new(digest)
        if target is None:
            return
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)

    def path(self, digest: str) -> Path:
        return self.folder / "blobs" / digest.replace(":", "/")

    def document(self, digest: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.read(digest))
        return found

    def read(self, digest: str) -> bytes:
        """Returns a small blob. Raises LayoutError where it is missing or damaged."""
        path = self.path(digest)
        if not path.is_file():
            raise LayoutError(f"the blob {digest} is missing")
        if file_digest(path) != digest:
            raise LayoutError(f"the blob {digest} is damaged")
        return path.read_bytes()

    def closure(self, described: Descriptor) -> Iterator[Descriptor]:
        """Yields everything that an artefact consists of, parts before what names them, itself
        last.

        Raises LayoutError for a document that is missing or damaged.
        """
        if described["mediaType"] in MANIFESTS:
            for part in references(self.document(described["digest"])):
                yield from self.closure(part)
        yield described

    def prune(self) -> None:
        """Removes blobs that no artefact consists of."""
        wanted = {part["digest"] for entry in self.entries().values() for part in self.closure(entry)}
        for path in (self.folder / "blobs" / "sha256").iterdir():
            if f"sha256:{path.name}" not in wanted:
                path.unlink()

    def _new(self, digest: str) -> Path | None:
        """The path for a new blob; None where it is there."""
        target = self.path(digest)
        if target.exists():
            return None
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


class RegistryError(Unavailable):
    """Raised when a registry does not answer, or refuses."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository of a registry, and the tag or digest of one of its artefacts."""

    host: str
    repository: str
    version: str = ""

    @classmethod
    def below(cls, prefix: str, repository: str) -> Self:
        """Returns a repository below a registry's prefix, such as ``ghcr.io/team``.

        Raises BadInput for a prefix of another form.
        """
        host, _, path = prefix.partition("/")
        if not re.fullmatch(r"[\w.-]+(:\d+)?|\[[0-9a-f:]+\](:\d+)?", host) or (path and not _PATH.fullmatch(path)):
            raise BadInput(f"{prefix!r} is no registry: give HOST[:PORT][/PATH]", field="registry")
        return cls(host, f"{path}/{repository}" if path else repository)

    @property
    def base(self) -> str:
        """The address of the registry. One on this machine is reached without TLS."""
        name = re.sub(r":\d+$", "", self.host)
        try:
            is_plain = name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
        except ValueError:
            is_plain = False
        host = "registry-1.docker.io" if self.host == "docker.io" else self.host
        return f"{'http' if is_plain else 'https'}://{host}"

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}{'@' if ':' in self.version else ':'}{self.version}"


@dataclass(slots=True)
class RegistryClient:
    """Connections to registries, with the credentials that docker's configuration has for them."""

    _http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=_TIMEOUT, follow_redirects=True))
    _headers: dict[tuple[str, str], str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def push_entries(self, layout: OciLayout, prefix: str) -> Mapping[str, Descriptor]:
        """Copies all artefacts of a layout to a registry, each under its name below ``prefix``;
        returns name → descriptor."""
        entries = layout.entries()
        pushed: dict[str, str] = {}
        for name, described in entries.items():
            repository, _, tag = name.rpartition(":")
            target = Reference.below(prefix, repository)
            for part in layout.closure(described):
                digest = part["digest"]
                reference = replace(target, version=digest)
                if part["mediaType"] in MANIFESTS:
                    self.push_manifest(reference, layout.read(digest), part["mediaType"])
                else:
                    self.push_blob(reference, layout.path(digest), pushed.get(digest, ""))
                pushed.setdefault(digest, target.repository)
            self.push_manifest(replace(target, version=tag), layout.read(described["digest"]), described["mediaType"])
        return entries

    def push_manifest(self, reference: Reference, data: bytes, media_type: str) -> None:
        """Stores an index or a manifest under a tag or its digest."""
        path = f"manifests/{reference.version}"
        answer = self._send("PUT", reference, path, headers={"content-type": media_type}, content=data)
        self._expect(answer, reference, 201)

    def push_blob(self, reference: Reference, path: Path, mount_from: str = "") -> None:
        """Stores a file as a blob, unless the repository has it.

        mount_from: repository of the same registry that has the blob.
        """
        if self._send("HEAD", reference, f"blobs/{reference.version}").status_code == 200:
            return
        mount = {"mount": reference.version, "from": mount_from} if mount_from else {}
        begun = self._send("POST", reference, "blobs/uploads/", params=mount)
        if mount and begun.status_code == 201:
            return
        self._expect(begun, reference, 202)
        place = httpx.URL(str(begun.request.url)).join(begun.headers.get("location", ""))
        headers = {"content-length": str(path.stat().st_size), "content-type": "application/octet-stream"}
        if place.host == begun.request.url.host:
            headers |= self._authorization(reference)
        url = place.copy_merge_params({"digest": reference.version})
        request = self._http.build_request("PUT", url, headers=headers, content=_pieces(path))
        self._expect(self._answer(request, reference), reference, 201)

    def _send(
        self, method: str, reference: Reference, path: str, *, headers: Mapping[str, str] | None = None, **options: Any
    ) -> httpx.Response:
        url = f"{reference.base}/v2/{reference.repository}/{path}"
        fields = {**(headers or {}), **self._authorization(reference)}
        return self._answer(self._http.build_request(method, url, headers=fields, **options), reference)

    def _answer(self, request: httpx.Request, reference: Reference) -> httpx.Response:
        """Returns the answer. Raises RegistryError if there is none."""
        try:
            return self._http.send(request)
        except httpx.HTTPError as error:
            raise RegistryError(f"no registry answers at {reference.host}: {error!r}") from error

    def _authorization(self, reference: Reference) -> dict[str, str]:
        """Returns the header for a repository; the registry is asked once what it wants."""
        key = (reference.host, reference.repository)
        if key not in self._headers:
            self._headers[key] = self._authorize(reference)
        return {"authorization": self._headers[key]} if self._headers[key] else {}

    def _authorize(self, reference: Reference) -> str:
        credentials = docker_credentials(reference.host)
        basic = f"Basic {credentials}" if credentials else ""
        answer = self._answer(self._http.build_request("GET", f"{reference.base}/v2/"), reference)
        challenge = answer.headers.get("www-authenticate", "")
        if answer.status_code != 401 or not challenge.lower().startswith("bearer"):
            return basic
        wanted = dict(_PARAMETER.findall(challenge))
        asked = {"scope": f"repository:{reference.repository}:pull,push"} | (
            {"service": wanted["service"]} if "service" in wanted else {}
        )
        headers = {"authorization": basic} if basic else {}
        try:
            request = self._http.build_request("GET", wanted["realm"], params=asked, headers=headers)
            reply = self._answer(request, reference)
            self._expect(reply, reference, 200)
            tokens = reply.json()
            return f"Bearer {tokens.get('token') or tokens['access_token']}"
        except (httpx.InvalidURL, KeyError, ValueError, AttributeError) as error:
            raise RegistryError(f"{reference.host} gives no token: {error!r}") from error

    @staticmethod
    def _expect(answer: httpx.Response, reference: Reference, status: int) -> None:
        if answer.status_code == status:
            return
        text = answer.text.strip()[:300]
        hint = "Log in with `docker login` or `helm registry login`." if answer.status_code in (401, 403) else ""
        raise RegistryError(f"{reference.host} answers {answer.status_code} for {reference}: {text}", hint=hint)


def docker_credentials(host: str) -> str:
    """Returns user and password for a registry in base64, as docker's or helm's configuration has
    them; empty without any."""
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    helm = Path(os.environ.get("HELM_REGISTRY_CONFIG") or Path.home() / ".config" / "helm" / "registry" / "config.json")
    for path in (folder / "config.json", helm):
        try:
            entries = json.loads(path.read_text()).get("auths", {})
        except (OSError, ValueError):
            continue
        for name in (host, f"https://{host}", "https://index.docker.io/v1/" if host == "docker.io" else host):
            found = entries.get(name, {})
            if found.get("auth"):
                return str(found["auth"])
            if found.get("username"):
                return base64.b64encode(f"{found['username']}:{found.get('password', '')}".encode()).decode()
    return ""


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            yield piece

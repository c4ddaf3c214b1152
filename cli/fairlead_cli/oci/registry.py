"""A client of registries: blobs and manifests of one repository, pulled and pushed.

Source: the OCI distribution specification, version 1.1; the token authentication of Distribution.
"""

import base64
import json
import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx

from fairlead.errors import Unavailable
from fairlead_cli.oci.documents import MANIFESTS, digest_of
from fairlead_cli.oci.layout import MAX_DOCUMENT_BYTES, file_digest
from fairlead_cli.oci.reference import Reference, is_loopback

_CHUNK: Final = 1 << 20
_TIMEOUT: Final = httpx.Timeout(30.0, read=300.0, write=300.0)
_ACCEPTED: Final = ", ".join(
    (
        *MANIFESTS,
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_PARAMETER: Final = re.compile(r'(\w+)="([^"]*)"')


class RegistryError(Unavailable):
    """Raised when a registry does not answer, refuses, or gives other bytes than asked for."""


@dataclass(slots=True)
class RegistryClient:
    """Connections to registries, with the credentials that docker's configuration has for them.

    plain_http: do without TLS, also for hosts that are not this machine.
    """

    plain_http: bool = False
    _http: httpx.Client = field(init=False)
    _headers: dict[tuple[str, str], str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        # Compressed answers are refused: a few bytes of them can fill memory or disk.
        headers = {"accept-encoding": "identity"}
        self._http = httpx.Client(timeout=_TIMEOUT, follow_redirects=True, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def manifest(self, reference: Reference) -> tuple[bytes, str]:
        """Returns an index or a manifest, and its media type."""
        answer = self._send("GET", reference, f"manifests/{reference.version}", headers={"accept": _ACCEPTED})
        self._expect(answer, reference, 200)
        if reference.digest and digest_of(answer.content) != reference.digest:
            raise RegistryError(f"{reference.host} answers {reference} with other bytes")
        return answer.content, answer.headers.get("content-type", "").partition(";")[0]

    def push_manifest(self, reference: Reference, data: bytes, media_type: str) -> None:
        """Stores an index or a manifest under a tag or its digest."""
        path = f"manifests/{reference.version}"
        answer = self._send("PUT", reference, path, headers={"content-type": media_type}, content=data)
        self._expect(answer, reference, 201)

    def has_blob(self, reference: Reference) -> bool:
        """Whether the repository has the blob of this digest."""
        return self._send("HEAD", reference, f"blobs/{reference.digest}").status_code == 200

    def pull_blob(self, reference: Reference, target: Path, size: int) -> None:
        """Writes a blob of this size to a file, and checks its digest."""
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        request = self._request("GET", reference, f"blobs/{reference.digest}")
        try:
            answer = self._http.send(request, stream=True)
            with closing(answer), partial.open("wb") as file:
                if answer.status_code != 200:
                    self._expect(_read_answer(answer), reference, 200)
                for piece in _pieces_of(answer, size):
                    file.write(piece)
            if file_digest(partial) != reference.digest:
                raise RegistryError(f"{reference.host} gives {reference} with other bytes")
        except httpx.HTTPError as error:
            partial.unlink(missing_ok=True)
            raise RegistryError(f"{reference.host} does not give {reference}: {error!r}") from error
        except RegistryError:
            partial.unlink(missing_ok=True)
            raise
        partial.replace(target)

    def push_blob(self, reference: Reference, path: Path, mount_from: str = "") -> None:
        """Stores a file as a blob.

        mount_from: repository of the same registry that has the blob.
        """
        mount = {"mount": reference.digest, "from": mount_from} if mount_from else {}
        begun = self._send("POST", reference, "blobs/uploads/", params=mount)
        if mount and begun.status_code == 201:
            return
        self._expect(begun, reference, 202)
        try:
            place = httpx.URL(str(begun.request.url)).join(begun.headers["location"])
        except (KeyError, httpx.InvalidURL) as error:
            raise RegistryError(f"{reference.host} names no place for {reference}") from error
        headers = {"content-length": str(path.stat().st_size), "content-type": "application/octet-stream"}
        if place.host == begun.request.url.host:
            headers |= self._authorization(reference)
        url = place.copy_merge_params({"digest": reference.digest})
        answer = self._answer(self._http.build_request("PUT", url, headers=headers, content=_pieces(path)), reference)
        self._expect(answer, reference, 201)

    def _send(
        self,
        method: str,
        reference: Reference,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
        content: bytes = b"",
    ) -> httpx.Response:
        request = self._request(method, reference, path, headers=headers, params=params, content=content)
        return self._answer(request, reference)

    def _answer(self, request: httpx.Request, reference: Reference) -> httpx.Response:
        """Returns the answer, read. Raises RegistryError if there is none, or if it is too long."""
        try:
            with closing(self._http.send(request, stream=True)) as answer:
                return _read_answer(answer)
        except httpx.HTTPError as error:
            raise RegistryError(f"no registry answers at {reference.host}: {error!r}") from error

    def _request(
        self,
        method: str,
        reference: Reference,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
        content: bytes = b"",
    ) -> httpx.Request:
        url = f"{self._base(reference)}/v2/{reference.repository}/{path}"
        fields = {**(headers or {}), **self._authorization(reference)}
        return self._http.build_request(method, url, headers=fields, params=params, content=content or None)

    def _base(self, reference: Reference) -> str:
        plain = self.plain_http or is_loopback(reference.host)
        return f"{'http' if plain else 'https'}://{reference.endpoint}"

    def _authorization(self, reference: Reference) -> dict[str, str]:
        """The header for a repository; the registry is asked once what it wants."""
        key = (reference.host, reference.repository)
        if key not in self._headers:
            self._headers[key] = self._authorize(reference)
        return {"authorization": self._headers[key]} if self._headers[key] else {}

    def _authorize(self, reference: Reference) -> str:
        credentials = docker_credentials(reference.host)
        basic = f"Basic {credentials}" if credentials else ""
        try:
            answer = self._answer(self._http.build_request("GET", f"{self._base(reference)}/v2/"), reference)
            challenge = answer.headers.get("www-authenticate", "")
            if answer.status_code != 401 or not challenge.lower().startswith("bearer"):
                return basic
            wanted = dict(_PARAMETER.findall(challenge))
            actions = "pull,push" if credentials else "pull"
            scope = f"repository:{reference.repository}:{actions}"
            asked = {"scope": scope} | ({"service": wanted["service"]} if "service" in wanted else {})
            headers = {"authorization": basic} if basic else {}
            request = self._http.build_request("GET", wanted["realm"], params=asked, headers=headers)
        except (httpx.InvalidURL, KeyError) as error:
            raise RegistryError(f"{reference.host} names no place for tokens: {error!r}") from error
        reply = self._answer(request, reference)
        self._expect(reply, reference, 200)
        return f"Bearer {_token(reply, reference)}"

    @staticmethod
    def _expect(answer: httpx.Response, reference: Reference, status: int) -> None:
        if answer.status_code == status:
            return
        text = answer.text.strip()[:300]
        hint = "Log in with `docker login` or `helm registry login`." if answer.status_code in (401, 403) else ""
        raise RegistryError(f"{reference.host} answers {answer.status_code} for {reference}: {text}", hint=hint)


def _read_answer(answer: httpx.Response) -> httpx.Response:
    """Returns an answer that is no blob, with its body. Raises RegistryError if it is too long."""
    data = b"".join(_pieces_of(answer, MAX_DOCUMENT_BYTES))
    return httpx.Response(answer.status_code, headers=answer.headers, content=data, request=answer.request)


def _pieces_of(answer: httpx.Response, max_bytes: int) -> Iterator[bytes]:
    """Yields the body of an answer. Raises RegistryError if it is longer, or compressed."""
    host, size = answer.request.url.host, 0
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise RegistryError(f"{host} answers with compressed bytes, which were not asked for")
    for piece in answer.iter_raw(_CHUNK):
        size += len(piece)
        if size > max_bytes:
            raise RegistryError(f"{host} answers with more than {max_bytes:,} bytes")
        yield piece


def _token(answer: httpx.Response, reference: Reference) -> str:
    try:
        reply = answer.json()
    except (ValueError, RecursionError):
        reply = None
    found = reply.get("token") or reply.get("access_token") if isinstance(reply, dict) else None
    if not isinstance(found, str) or not found.isascii() or not found.isprintable():
        raise RegistryError(f"{reference.host} gives no token")
    return found


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

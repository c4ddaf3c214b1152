"""Artifacts of OCI registries: files that were pushed one by one, or layers that are archives.

Each blob must have the digest that the manifest gives it, and the manifest that of the address.

Source: https://github.com/opencontainers/distribution-spec, version 1.1.

Source: https://distribution.github.io/distribution/spec/auth/token
"""

import asyncio
import base64
import binascii
import gzip
import hashlib
import re
import tarfile
import zlib
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, cast
from urllib.parse import urlencode, urlsplit

import aiohttp
import msgspec

from fairlead.adapters.download import AdapterDownload
from fairlead_downloader.errors import CredentialsRefused, DigestMismatch, InvalidContent, SourceFailed
from fairlead_downloader.folder_writer import FolderWriter, is_hidden
from fairlead_downloader.sources.http_source import (
    CHUNK_BYTES,
    check_status,
    get_response,
    parse_object,
    read_document,
)

_DOCKER_HUB: Final = "docker.io"
_HUB_KEYS: Final = ("https://index.docker.io/v1/", "index.docker.io", _DOCKER_HUB)
_PARAMETER: Final = re.compile(r'(\w+)="([^"]*)"')

_TITLE: Final = "org.opencontainers.image.title"
_UNPACK: Final = "io.deis.oras.content.unpack"
_TAR_SUFFIXES: Final = (".tar", ".tar+gzip", ".tar.gzip", "/x-tar", "/gzip", "/x-gzip")
_MAX_HEADER_BYTES: Final = 1024 * 1024
_LONG_HEADERS: Final = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

_REFERENCE: Final = re.compile(r"(?P<registry>[^/]+)/(?P<repository>[^:@]+)(:(?P<tag>[^@]+))?(@(?P<digest>.+))?")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_INDEX_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_ACCEPT: Final = ", ".join(
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        *_INDEX_TYPES,
    )
)


def registry_host(registry: str) -> str:
    return "registry-1.docker.io" if registry == _DOCKER_HUB else registry


def read_docker_config(text: str) -> dict[str, str]:
    """Returns user and password as base64 by registry, from a Docker configuration.

    Raises CredentialsRefused for one that cannot be read.
    """
    try:
        document = msgspec.json.decode(text.encode(), type=dict[str, Any])
        found = {name: _basic(entry) for name, entry in (document.get("auths") or {}).items()}
    except (msgspec.DecodeError, AttributeError, binascii.Error, UnicodeDecodeError):
        raise CredentialsRefused("the Docker configuration in the credentials cannot be read") from None
    return {_registry_of(name): auth for name, auth in found.items() if auth}


def _basic(entry: Mapping[str, Any]) -> str:
    if entry.get("auth"):
        return base64.b64encode(base64.b64decode(entry["auth"], validate=True)).decode()
    user, password = entry.get("username"), entry.get("password")
    return base64.b64encode(f"{user}:{password}".encode()).decode() if user and password else ""


def _registry_of(name: str) -> str:
    if name in _HUB_KEYS:
        return _DOCKER_HUB
    return name.partition("://")[2].partition("/")[0] if "://" in name else name.partition("/")[0]


class RegistryLogin:
    """The Authorization headers of one registry.

    basic: user and password as base64; None without any.
    plain_hosts: hosts that are reached without TLS.
    """

    def __init__(
        self, session: aiohttp.ClientSession, registry: str, basic: str | None, plain_hosts: Collection[str]
    ) -> None:
        self._session = session
        self._registry = registry
        self._basic = basic
        self._plain_hosts = plain_hosts
        self.headers: dict[str, str] = {}

    async def answer(self, challenge: str) -> None:
        """Sets the headers that a challenge asks for. Raises DownloadError."""
        scheme, _, rest = challenge.partition(" ")
        basic = {"authorization": f"Basic {self._basic}"} if self._basic else {}
        if scheme.lower() == "basic" and basic:
            self.headers = basic
            return
        if scheme.lower() != "bearer":
            raise CredentialsRefused(f"{self._registry} wants credentials, and there are none for it")
        parameters = dict(_PARAMETER.findall(rest))
        realm = parameters.pop("realm", "")
        parts = urlsplit(realm)
        if parts.scheme != "https" and parts.netloc not in self._plain_hosts:
            raise SourceFailed(f"{self._registry} issues tokens without TLS")
        query = urlencode({name: parameters[name] for name in ("service", "scope") if name in parameters})
        what = f"the token of {self._registry}"
        async with get_response(self._session, f"{realm}?{query}", what, basic) as response:
            check_status(response, what)
            document = parse_object(await read_document(response, what), what)
        token = document.get("token") or document.get("access_token")
        if not isinstance(token, str) or not token.isprintable():
            raise SourceFailed(f"{what} cannot be read")
        self.headers = {"authorization": f"Bearer {token}"}


class _BoundedHeader(tarfile.TarInfo):
    """A header of an archive; the parts that tarfile reads as a whole have a limit."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_BoundedHeader":
        """Returns a header. Raises InvalidContent for a long one."""
        found = super().frombuf(buf, encoding, errors)
        if found.type in _LONG_HEADERS and found.size > _MAX_HEADER_BYTES:
            raise InvalidContent("a layer has a header that is too long")
        return found


def layer_title(layer: dict[str, Any]) -> str | None:
    """Returns the name of a layer that is one file; None for an archive. Raises InvalidContent."""
    media_type = str(layer.get("mediaType", ""))
    notes = layer.get("annotations") or {}
    title = notes.get(_TITLE) if isinstance(notes, dict) else None
    if isinstance(title, str) and notes.get(_UNPACK) != "true":
        return title
    if media_type.endswith(_TAR_SUFFIXES):
        return None
    raise InvalidContent(f"a layer of the type {media_type:.80} is neither a tar archive nor a file with a title")


async def unpack_layer(path: Path, writer: FolderWriter) -> None:
    """Writes the files of an archive but hidden ones. Raises InvalidContent.

    Links and devices are refused: what they name may lie outside of the folder.
    """
    try:
        with path.open("rb") as raw, _decompressed(raw) as plain:
            archive = tarfile.open(fileobj=plain, mode="r|", tarinfo=_BoundedHeader)  # noqa: SIM115
            for member in archive:
                name = member.name.removeprefix("./").rstrip("/")
                if member.isdir() or (member.isreg() and is_hidden(name)):
                    continue
                if not member.isreg():
                    raise InvalidContent(f"{name:.100} in a layer is a link or a device")
                content = archive.extractfile(member)
                assert content is not None
                await writer.write_stream(name, _read(content), member.size)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError):
        raise InvalidContent("a layer is not a valid tar archive") from None


def _decompressed(raw: BinaryIO) -> BinaryIO:
    is_gzip = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if is_gzip else raw


async def _read(content: IO[bytes]) -> AsyncIterator[bytes]:
    while chunk := content.read(CHUNK_BYTES):
        yield chunk
        await asyncio.sleep(0)  # others are served between the chunks


class OciRegistries:
    """The source of oci:// addresses.

    logins: user and password as base64, by registry.
    plain_hosts: registries that are reached without TLS.
    """

    def __init__(
        self, session: aiohttp.ClientSession, logins: Mapping[str, str], plain_hosts: Collection[str] = ()
    ) -> None:
        self._session = session
        self._logins = logins
        self._plain_hosts = plain_hosts

    async def fetch(self, download: AdapterDownload, writer: FolderWriter) -> None:
        """Writes the files of an artifact but hidden ones. Raises DownloadError."""
        found = _REFERENCE.fullmatch(download.location)
        assert found is not None  # the pattern of addresses is stricter
        registry, name = found["registry"], found["repository"]
        host = registry_host(registry)
        login = RegistryLogin(self._session, registry, self._logins.get(registry), self._plain_hosts)
        scheme = "http" if host in self._plain_hosts else "https"
        repository = _Repository(self._session, f"{scheme}://{host}/v2/{name}", f"{registry}/{name}", login)
        manifest = await repository.manifest(found["digest"] or found["tag"] or "latest")
        for layer in _objects(manifest, "layers"):
            await _write_layer(repository, layer, writer)


class _Repository:
    """One repository of a registry.

    url: of the repository.
    what: its name, for messages.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, what: str, login: RegistryLogin) -> None:
        self._session = session
        self._url = url
        self._login = login
        self.what = what

    async def manifest(self, reference: str, *, is_nested: bool = False) -> dict[str, Any]:
        """Returns the manifest of a tag or digest; that of an index if it has only one."""
        async with self._get(f"manifests/{reference}") as response:
            body = await read_document(response, self.what)
        if reference.startswith("sha256:"):
            self._check_digest(reference, hashlib.sha256(body).hexdigest())
        document = parse_object(body, self.what)
        if "manifests" not in document and document.get("mediaType") not in _INDEX_TYPES:
            return document
        listed = _objects(document, "manifests")
        if is_nested or len(listed) != 1:
            raise InvalidContent(f"{self.what} is an index of {len(listed)} manifests: name one by its digest")
        return await self.manifest(blob_digest(listed[0]), is_nested=True)

    async def blob(self, digest: str, size: int | None) -> AsyncIterator[bytes]:
        """Yields the content of a blob. Raises DigestMismatch after its last byte."""
        content, received = hashlib.sha256(), 0
        async with self._get(f"blobs/{digest}") as response:
            async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                content.update(chunk)
                received += len(chunk)
                if size is not None and received > size:
                    raise InvalidContent(f"{self.what}: the blob {digest} is longer than its manifest says")
                yield chunk
        self._check_digest(digest, content.hexdigest())

    @asynccontextmanager
    async def _get(self, path: str) -> AsyncIterator[aiohttp.ClientResponse]:
        url, what = f"{self._url}/{path}", f"{self.what}: {path}"
        async with get_response(self._session, url, what, {"accept": _ACCEPT, **self._login.headers}) as response:
            challenge = response.headers.get("www-authenticate", "")
            if response.status != 401 or (self._login.headers and not challenge):
                check_status(response, what)
                yield response
                return
        await self._login.answer(challenge)  # for the first time, or because a token has expired
        async with get_response(self._session, url, what, {"accept": _ACCEPT, **self._login.headers}) as response:
            check_status(response, what)
            yield response

    def _check_digest(self, wanted: str, found: str) -> None:
        if wanted != f"sha256:{found}":
            raise DigestMismatch(f"{self.what}: {wanted} has the content of sha256:{found}")


async def _write_layer(repository: _Repository, layer: dict[str, Any], writer: FolderWriter) -> None:
    digest, size, title = blob_digest(layer), layer.get("size"), layer_title(layer)
    if not isinstance(size, int) or size < 0:
        raise InvalidContent(f"{repository.what}: a layer has no size")
    if title is not None:
        if not is_hidden(title):
            await writer.write_stream(title, repository.blob(digest, size), size)
        return
    async with writer.scratch_file(repository.blob(digest, size)) as path:
        await unpack_layer(path, writer)


def blob_digest(descriptor: dict[str, Any]) -> str:
    """Returns the digest of a descriptor. Raises InvalidContent."""
    digest = descriptor.get("digest")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise InvalidContent("a manifest names content without a SHA-256 digest")
    return digest


def _objects(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = document.get(name)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise InvalidContent(f"the manifest has no list of {name}")
    return found

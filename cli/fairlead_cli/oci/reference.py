"""Names of artefacts in registries: ``[oci://]HOST[:PORT]/PATH[:TAG][@DIGEST]``."""

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import Final, Self

from fairlead.errors import BadInput

_REPOSITORY: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG: Final = re.compile(r"[\w][\w.-]{0,127}", re.ASCII)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_DEFAULT_HOST: Final = "docker.io"


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository of a registry, and one of its artefacts.

    tag: empty where a digest names the artefact, or none does.
    """

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Returns what ``text`` names. Raises BadInput where it is no such name.

        A name without a registry is one of Docker Hub, as container engines read it.
        """
        rest, _, digest = text.removeprefix("oci://").partition("@")
        first, slash, path = rest.partition("/")
        is_host = bool(slash) and ("." in first or ":" in first or first == "localhost")
        host, path = (first, path) if is_host else (_DEFAULT_HOST, rest)
        if not is_host and not slash:
            path = f"library/{rest}"
        path, colon, tag = path.partition(":")
        if (
            not _REPOSITORY.fullmatch(path)
            or (colon and not _TAG.fullmatch(tag))
            or (digest and not _DIGEST.fullmatch(digest))
        ):
            raise BadInput(f"{text!r} is no name of an artefact", field="reference")
        return cls(host, path, tag, digest)

    @property
    def version(self) -> str:
        """Returns the digest, else the tag, else ``latest``: what a registry is asked for."""
        return self.digest or self.tag or "latest"

    @property
    def endpoint(self) -> str:
        """Returns the host that serves the registry's API."""
        return "registry-1.docker.io" if self.host == _DEFAULT_HOST else self.host

    def with_version(self, *, tag: str = "", digest: str = "") -> "Reference":
        """Returns another artefact of the repository."""
        return replace(self, tag=tag, digest=digest)

    def __str__(self) -> str:
        suffix = f"@{self.digest}" if self.digest else f":{self.tag}" if self.tag else ""
        return f"{self.host}/{self.repository}{suffix}"


def is_artefact_name(text: str) -> bool:
    """Returns True for a repository and a tag without a registry, such as ``gateway:0.2.0``."""
    repository, _, tag = text.partition(":")
    return bool(_REPOSITORY.fullmatch(repository) and _TAG.fullmatch(tag))


def parse_prefix(text: str) -> tuple[str, str]:
    """Returns host and path of a registry's prefix, such as ``ghcr.io/team``; the path may be
    empty.

    Raises BadInput where it is none.
    """
    host, _, path = text.removeprefix("oci://").rstrip("/").partition("/")
    if not re.fullmatch(r"[\w.-]+(:\d+)?|\[[0-9a-f:]+\](:\d+)?", host) or (path and not _REPOSITORY.fullmatch(path)):
        raise BadInput(f"{text!r} is no registry: give HOST[:PORT][/PATH]", field="registry")
    return host, path


def is_loopback(host: str) -> bool:
    """Whether a registry's host is this machine, where plain HTTP is the default."""
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    try:
        return name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False

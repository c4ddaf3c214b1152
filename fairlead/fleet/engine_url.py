"""Parses engine URLs of files into one canonical form, and checks other base URLs."""

import re
from urllib.parse import urlsplit

from fairlead.errors import BadInput

_HINT = "write it like http://127.0.0.1:8000, http://[::1]:8000 or https://engine.example:8443"
_PATH_HINT = "write it like https://api.example.com/v1 or https://api.example.com/openai/v1"
_DEFAULT_PORTS = {"http": 80, "https": 443}


_BASE_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)*")


def normalize_endpoint_url(text: str, *, field: str = "url") -> str:
    """Returns an endpoint's URL with explicit port, and the path before `/v1`. Raises BadInput.

    Why: API clients are given a base URL that ends with `/v1`, the gateway adds paths with it.
    """
    head, mark, rest = text.partition("://")
    authority, slash, path = rest.partition("/")
    path = f"{slash}{path}".rstrip("/")
    path = path.removesuffix("/v1").rstrip("/")
    if path and not _BASE_PATH.fullmatch(path):
        raise BadInput("not an endpoint's URL: its path cannot be used", field=field, hint=_PATH_HINT)
    return normalize_engine_url(f"{head}{mark}{authority}", field=field) + path


def normalize_engine_url(text: str, *, field: str = "url") -> str:
    """Returns `http(s)://host:port` with explicit port, without trailing slash. Raises BadInput."""
    scheme, host, port, reason = _split_url(text)
    if reason:
        raise BadInput(f"not an engine's URL: {reason}", field=field, hint=_HINT)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def endpoint_id(url: str, owner: str = "", rank: int = 0) -> str:
    """Returns the id of the instance at an endpoint.

    owner: namespace of its model, if an older model of another namespace names the endpoint too;
        key of the model at an API that others run, which may serve several.
    """
    parts = urlsplit(url)
    words = (parts.hostname or "", f"{parts.port}", parts.path.strip("/"), owner, f"{rank}")
    return "/".join(word for word in words if word)


def is_http_url(text: str) -> bool:
    """Whether the text is an HTTP URL with a host, and without a query."""
    try:
        parts = urlsplit(text)
        return parts.scheme in _DEFAULT_PORTS and bool(parts.hostname) and parts.port != 0 and not parts.query
    except ValueError:
        return False


def _split_url(text: str) -> tuple[str, str, int, str]:
    """Returns scheme, host, port and, if the URL is invalid, the reason."""
    if not text.isascii() or not text.isprintable() or " " in text:
        return "", "", 0, "it contains characters that a URL cannot contain"
    try:
        parts = urlsplit(text)
        port = _DEFAULT_PORTS.get(parts.scheme, 0) if parts.port is None else parts.port
    except ValueError as error:
        return "", "", 0, str(error)
    checks = (
        (parts.scheme not in _DEFAULT_PORTS, "only http:// and https:// are supported"),
        (parts.username is not None or parts.password is not None, "a user or password is not allowed"),
        (not parts.hostname, "the host is missing"),
        (parts.path not in ("", "/") or "?" in text or "#" in text, "nothing may follow the port"),
        (port == 0, "port 0 is not allowed"),
    )
    return parts.scheme, parts.hostname or "", port, next((reason for failed, reason in checks if failed), "")

"""Engine addresses as they are written in files: checked once, kept in one form."""

from urllib.parse import urlsplit

from fairlead.errors import BadInput

_HINT = "write it like http://127.0.0.1:8000, http://[::1]:8000 or https://engine.example:8443"
_DEFAULT_PORTS = {"http": 80, "https": 443}


def normalize_engine_url(text: str, *, field: str = "url") -> str:
    """``http(s)://host:port`` with the port written out and no trailing slash. Raises BadInput for anything else."""
    scheme, host, port, why = _split_url(text)
    if why:
        raise BadInput(f"not an engine's URL: {why}", field=field, hint=_HINT)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _split_url(text: str) -> tuple[str, str, int, str]:
    """(scheme, host, port, what is wrong with it)."""
    if not text.isascii() or not text.isprintable() or " " in text:
        return "", "", 0, "it holds characters that a URL cannot hold"
    try:
        parts = urlsplit(text)
        port = _DEFAULT_PORTS.get(parts.scheme, 0) if parts.port is None else parts.port
    except ValueError as error:
        return "", "", 0, str(error)
    wrong = (
        (parts.scheme not in _DEFAULT_PORTS, "only http:// and https:// are spoken to engines"),
        (parts.username is not None or parts.password is not None, "no user or password"),
        (not parts.hostname, "the host is missing"),
        (parts.path not in ("", "/") or "?" in text or "#" in text, "nothing may follow the port"),
        (port == 0, "port 0 is no port"),
    )
    return parts.scheme, parts.hostname or "", port, next((why for found, why in wrong if found), "")

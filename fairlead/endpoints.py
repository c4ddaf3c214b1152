"""Engine addresses as they are written in files: checked once, kept in one form."""

from urllib.parse import urlsplit

from fairlead.errors import BadInput

_FIX = "write it like http://127.0.0.1:8000 or http://[::1]:8000"


def engine_url(text: str, *, field: str = "url") -> str:
    """``http://host:port`` with the port written out and no trailing slash. Raises BadInput for anything else."""

    def refuse(why: str) -> BadInput:
        return BadInput(f"not an engine's URL: {why}", field=field, hint=_FIX)

    if not text.isascii() or not text.isprintable() or " " in text:
        raise refuse("it holds characters that a URL cannot hold")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise refuse(str(error)) from error
    if parts.scheme != "http":
        raise refuse("only http:// is spoken to engines")
    if parts.username is not None or parts.password is not None:
        raise refuse("no user or password")
    if not parts.hostname:
        raise refuse("the host is missing")
    if parts.path not in ("", "/") or parts.query or parts.fragment or text.endswith(("?", "#")):
        raise refuse("nothing may follow the port")
    if port == 0:
        raise refuse("port 0 is no port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"http://{host}:{port or 80}"

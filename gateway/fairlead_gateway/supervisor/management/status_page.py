"""The status page: one self-contained HTML document and its Content-Security-Policy."""

import base64
import hashlib


def load_page() -> tuple[bytes, str]:
    """Returns the page and its policy, which allows only its own script and style, and our API."""
    style, script = _read_part("page.css"), _read_part("page.js")
    page = _read_part("page.html").replace("@import page.css", style).replace("import page.js", script)
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; script-src {_csp_hash(script)}; style-src {_csp_hash(style)}"
    )
    return page.encode(), policy


def _read_part(name: str) -> str:
    from importlib.resources import files

    return files("fairlead_gateway.supervisor.management").joinpath("static", name).read_text(encoding="utf-8")


def _csp_hash(block: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'"

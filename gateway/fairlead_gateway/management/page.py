"""The status page: one HTML file without anything from outside, and the policy that lets it run nothing else."""

import base64
import hashlib
import re
from importlib.resources import files


def load_page() -> tuple[bytes, str]:
    """The page and its Content-Security-Policy: only its own script and style, only our own API."""
    text = files("fairlead_gateway.management").joinpath("page.html").read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; script-src {_hashes(scripts)}; style-src {_hashes(styles)}"
    )
    return text.encode(), policy


def _hashes(blocks: list[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
    return " ".join(f"'sha256-{digest}'" for digest in digests)

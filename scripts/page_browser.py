"""Debian's Chromium without a screen, driven through its DevTools pipe: opens a page, waits, and
takes a picture of it.
"""

import base64
import itertools
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.debian_programs import debian_program

_FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{fonts}</dir><cachedir>{home}/fonts</cachedir>
<alias><family>system-ui</family><prefer><family>DejaVu Sans</family></prefer></alias>
<alias><family>sans-serif</family><prefer><family>DejaVu Sans</family></prefer></alias>
<alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
</fontconfig>
"""
_SWITCHES = ("--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb")
_READ_BYTES = 1 << 16


class BrowserError(Exception):
    """Raised when the browser ends or refuses a call."""


class PageBrowser:
    """One page of a browser.

    requests, replies: file descriptors of the pipe; messages end with a zero byte.
    """

    def __init__(self, requests: int, replies: int, width: int) -> None:
        self._requests, self._replies = requests, replies
        self._received = b""
        self._numbers = itertools.count(1)
        self._width = width
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._resize(800)

    def open(self, url: str) -> None:
        self._call("Page.enable")
        self._call("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        return self._call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait(self, script: str, patience_seconds: float) -> None:
        """Waits until an expression in the page is true. Raises BrowserError after the patience."""
        end = time.monotonic() + patience_seconds
        while not self.evaluate(script):
            if time.monotonic() > end:
                raise BrowserError(f"waited {patience_seconds:g} s in vain: {script}")
            time.sleep(0.2)

    def picture(self, max_height: int = 4_000) -> bytes:
        """Returns the page as PNG, from its top."""
        height = int(self.evaluate("document.documentElement.getBoundingClientRect().height")) + 1
        self._resize(min(height, max_height))
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def _resize(self, height: int) -> None:
        self._call(
            "Emulation.setDeviceMetricsOverride", width=self._width, height=height, deviceScaleFactor=1, mobile=False
        )

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._next_message()
            if reply.get("id") == number:
                if "error" in reply:
                    raise BrowserError(f"{method}: {reply['error']}")
                result: dict[str, Any] = reply["result"]
                return result

    def _next_message(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            data = os.read(self._replies, _READ_BYTES)
            if not data:
                raise BrowserError("the browser has ended")
            self._received += data
        text, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


@contextmanager
def page_browser(width: int) -> Iterator[PageBrowser]:
    """Starts a browser with Debian's fonts, and ends it after the block."""
    program = debian_program("chromium-headless-shell")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        fonts = Path(home) / "fonts.conf"
        fonts.write_text(_FONTS.format(fonts=program.root / "usr/share/fonts", home=home))
        theirs_in, requests = os.pipe()
        replies, theirs_out = os.pipe()
        # The browser reads file descriptor 3 and writes 4.
        shell = f'exec 5<&{theirs_in} 6>&{theirs_out}; exec 3<&5 4>&6; exec "$@"'
        process = subprocess.Popen(
            [
                *("bash", "-c", shell, "browser", str(program.path), *_SWITCHES),
                *("--remote-debugging-pipe", f"--user-data-dir={home}/profile"),
            ],
            env={**os.environ, **program.environment, "HOME": home, "FONTCONFIG_FILE": str(fonts)},
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield PageBrowser(requests, replies, width)
        finally:
            os.close(requests)
            os.close(replies)
            process.terminate()
            process.wait()

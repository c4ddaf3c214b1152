"""Pictures of a running stack below ``docs/images``: the terminal as SVG, the status page as PNG.

Starts ``fairlead up`` with eight simulated engines in a pseudo-terminal and replays the recorded
trace. Captures the live view, two commands, and the status page in Debian's Chromium
(``page_browser.py``). Terminal pictures name no font of another host.

With a picture's name and a title, it draws what it reads from its standard input instead.
"""

import contextlib
import os
import pty
import re
import resource
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path

import httpx
import msgspec
from rich.console import Console
from rich.text import Text

from fairlead.management_api import DecisionsOut
from fairlead_sim.workload.traces import BUNDLED_TRACE
from fairlead_testing.local_stack import LocalStack
from fairlead_testing.processes import block_until
from scripts.page_browser import page_browser

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
MODEL = ROOT / "examples" / "02-eight-engines.yaml"
FAIRLEAD = (sys.executable, "-m", "fairlead_cli")
COLUMNS, LINES = 132, 34
PAGE_WIDTH, MAX_PAGE_HEIGHT = 1400, 1000
OPEN_FILES = 20_000
"""With fewer, a gateway warns that it takes fewer connections."""
SAMPLED = "performance.now() > 70000 && document.getElementById('decisions').rows.length > 5"
"""True in the status page once its curves are full."""
MIN_CANDIDATES = 3
"""Instances that the explained request could choose from."""
REQUESTS = 600
SHOWN_AFTER = 60
"""Requests of the last minute, from which on the pictures are taken."""
PATIENCE_SECONDS = 300.0
_REDRAW = re.compile(r"(?:\x1b\[1A|\x1b\[2K|\r)+")


def main() -> None:
    with contextlib.suppress(ValueError, PermissionError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    with (
        tempfile.TemporaryDirectory() as folder,
        Terminal() as terminal,
        LocalStack(
            Path(folder), manifest=MODEL.read_text(), stdout=terminal.child, environment={"TERM": "xterm-256color"}
        ) as up,
    ):
        block_until(lambda: any(Path(folder).glob("fairlead/up-*/stack.json")), "the stack starts", PATIENCE_SECONDS)
        manage = up.state()["manage"]
        block_until(lambda: _is_ready(manage), "the stack is ready", PATIENCE_SECONDS)
        with traffic(up, Path(folder)), page_browser(PAGE_WIDTH) as browser:
            browser.open(f"{manage}/")
            block_until(lambda: _requests(manage) >= SHOWN_AFTER, "a minute of traffic", PATIENCE_SECONDS)
            browser.wait(SAMPLED, PATIENCE_SECONDS)
            (IMAGES / "status-page.png").write_bytes(browser.picture(MAX_PAGE_HEIGHT))
            draw_terminal("terminal-live", "fairlead up", terminal.screen())
            draw_terminal(
                "terminal-status", "fairlead local status", output(up.environment, *FAIRLEAD, "local", "status")
            )
            request = explained_request(manage)
            text = output(up.environment, *FAIRLEAD, "explain", "request", request)
            draw_terminal("terminal-explain", f"fairlead explain request {request}", text)


class Terminal:
    """A pseudo-terminal that keeps what a program writes to it."""

    def __init__(self) -> None:
        self._parent, self.child = pty.openpty()
        ioctl(self.child, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self._written = b""

    def __enter__(self) -> "Terminal":
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self.child)

    def screen(self) -> str:
        return last_redraw(self._written.decode(errors="replace"))

    def _read(self) -> None:
        while True:
            try:
                self._written += os.read(self._parent, 65_536)
            except OSError:  # the other end is closed
                return


def last_redraw(written: str) -> str:
    views = [part for part in _REDRAW.split(written.replace("\r\n", "\n")) if part.strip()]
    return views[-2] if len(views) > 1 else views[-1]


@contextmanager
def traffic(up: LocalStack, folder: Path) -> Iterator[None]:
    """Replays the first requests of the recorded trace until the end of the block."""
    command = [sys.executable, "-m", "fairlead_cli", "replay", "--trace", str(BUNDLED_TRACE)]
    command += ["--limit", str(REQUESTS), "--out", str(folder / "replay")]
    process = subprocess.Popen(command, env=up.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _is_ready(manage: str) -> bool:
    try:
        return httpx.get(f"{manage}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _requests(manage: str) -> int:
    models = httpx.get(f"{manage}/api/stats").json()["models"]
    return sum(model["window"]["requests"] for model in models.values())


def explained_request(manage: str) -> str:
    """Returns the id of the newest request that met the SLO, with cached tokens and candidates."""
    answer = httpx.get(f"{manage}/api/decisions", params={"limit": 200})
    for decision in msgspec.json.decode(answer.content, type=DecisionsOut).decisions:
        outcome, candidates = decision.outcome, decision.choices[-1].candidates
        if outcome and outcome.within_objective and outcome.cached_tokens and len(candidates) >= MIN_CANDIDATES:
            return decision.request_id
    raise SystemExit("no request has ended within the SLO yet")


def output(environment: Mapping[str, str], *command: str) -> str:
    """Returns what a command writes to a terminal with colours."""
    terminal = {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    done = subprocess.run(command, env={**environment, **terminal}, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise SystemExit(done.stderr)
    return done.stdout


def draw_terminal(name: str, title: str, text: str) -> None:
    (IMAGES / f"{name}.svg").write_text(terminal_svg(name, title, [text.rstrip()]), encoding="utf-8")


def terminal_svg(name: str, title: str, texts: Sequence[str], columns: int = COLUMNS, *, crops: bool = False) -> str:
    """Returns the picture of a terminal with texts below each other, without a font of others.

    crops: the end of a long line is left out, so that each text is one line.
    """
    console = Console(record=True, width=columns, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    for text in texts:
        console.print(Text.from_ansi(text), overflow="crop" if crops else None, no_wrap=crops or None)
    svg = console.export_svg(title=title, unique_id=name)
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace("Fira Code", "ui-monospace")


if __name__ == "__main__":
    if sys.argv[1:]:
        draw_terminal(sys.argv[1], sys.argv[2], sys.stdin.read())
    else:
        main()

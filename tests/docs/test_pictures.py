"""The scripts that draw pictures: their programs, and what they take from a terminal."""

import json
import os
import threading
from base64 import b64encode
from pathlib import Path
from urllib.parse import unquote

from scripts.debian_programs import LOCK, PROGRAMS
from scripts.draw_screens import last_redraw
from scripts.page_browser import PageBrowser
from scripts.release.images.debian_packages import lock_path, read_lock

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "gateway" / "fairlead_gateway" / "supervisor" / "management" / "static"


def test_the_lock_of_programs_has_every_package_with_its_hash_and_no_host() -> None:
    locked = read_lock(LOCK)
    assert [package.name for package in locked] == sorted({name for names in PROGRAMS.values() for name in names})
    assert "://" not in lock_path(LOCK).read_text()
    assert all(package.path.endswith(("_amd64.deb", "_all.deb")) for package in locked)


def test_each_picture_is_shown_on_a_page() -> None:
    pages = [ROOT / "mkdocs.yml", ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").rglob("*.md")]
    shown = "".join(page.read_text(encoding="utf-8") for page in pages)
    names = [picture.name for picture in (ROOT / "docs" / "images").iterdir()]
    assert [name for name in names if f"/{name}" not in shown] == []


def test_the_status_page_has_the_logo_of_the_site() -> None:
    logo = (ROOT / "docs" / "images" / "logo.svg").read_text(encoding="utf-8")
    shapes = "".join(line.strip() for line in logo.splitlines()[1:-1])
    page = unquote((STATIC / "page.html").read_text(encoding="utf-8"))
    assert page.count(shapes) == 1, "in the header"
    assert page.count(shapes.replace('"', "'")) == 1, "as the icon"


def test_the_view_of_a_terminal_is_the_last_one_that_was_complete() -> None:
    redraw = "\r\x1b[2K\x1b[1A\x1b[2K"
    written = f"banner\r\nready\r\n{redraw}first\r\nview\r\n{redraw}second\r\nview\r\n{redraw}thi"
    assert last_redraw(written).strip() == "second\nview"
    assert last_redraw("banner\r\n") == "banner\n"


class ScriptedBrowser:
    """The other end of a browser's pipe: answers each call, with an event before each answer."""

    def __init__(self) -> None:
        self.requests, self.replies = os.pipe(), os.pipe()
        self.calls: list[tuple[str, dict[str, object]]] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        received = b""
        while data := os.read(self.requests[0], 4_096):
            *messages, received = (received + data).split(b"\0")
            for message in map(json.loads, messages):
                self.calls.append((message["method"], message["params"]))
                result = {
                    "Target.createTarget": {"targetId": "t"},
                    "Target.attachToTarget": {"sessionId": "s"},
                    "Runtime.evaluate": {"result": {"value": 2_500}},
                    "Page.captureScreenshot": {"data": b64encode(b"picture").decode()},
                }.get(message["method"], {})
                event = json.dumps({"method": "Page.event"}).encode()
                answer = json.dumps({"id": message["id"], "result": result}).encode()
                os.write(self.replies[1], event + b"\0" + answer + b"\0")


def test_a_picture_has_the_height_of_its_page_up_to_a_bound() -> None:
    scripted = ScriptedBrowser()
    browser = PageBrowser(scripted.requests[1], scripted.replies[0], width=640)
    for bound in (4_000, 1_000):
        assert browser.picture(bound) == b"picture"
    sizes = [(call["width"], call["height"]) for method, call in scripted.calls if "DeviceMetrics" in method]
    assert sizes[1:] == [(640, 2_501), (640, 1_000)]

"""Commands of documentation pages: the files that a page shows, and its console blocks."""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^ *```$", re.M | re.S
)


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a console block, and the output that the page shows."""

    line: str
    output: str


def page_files(page: str) -> dict[str, str]:
    """Returns name → text of the code blocks that have a title."""
    return {block["title"]: block["text"] for block in _BLOCK.finditer(page) if block["title"]}


def page_commands(page: str) -> list[Command]:
    """Returns the commands of all console blocks."""
    found = []
    for block in _BLOCK.finditer(page):
        if block["language"] != "console":
            continue
        text = re.sub(rf"(?m)^{block['indent']}", "", block["text"])
        for part in re.split(r"(?m)^\$ ", text)[1:]:
            line, _, output = part.replace("\\\n", " ").partition("\n")
            found.append(Command(" ".join(line.split()), output))
    return found


def run_fairlead(line: str, folder: Path) -> str:
    """Runs a `fairlead` command in a folder. Returns its standard error, then its output.

    `> FILE` writes the output into a file of the folder instead.
    """
    words, _, target = line.partition(" > ")
    command = [sys.executable, "-m", "fairlead_cli", *shlex.split(words)[1:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    if target:
        (folder / target).write_text(done.stdout)
        return done.stderr
    return done.stderr + done.stdout

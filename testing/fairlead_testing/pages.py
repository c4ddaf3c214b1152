"""Pages of the documentation as programs: their commands, manifests and expected output.

HTML comments in the source of a page say how its blocks are treated; readers do not see them.

- ``<!-- commands: SETTING -->`` once per page: where its commands run. SETTING is ``local`` (an
  empty folder with the examples), ``checkout``, ``cluster`` (Fairlead is installed),
  ``installation`` (nothing is installed), or ``none: REASON``. With ``, simulated`` after it,
  engines of written manifests are replaced by simulated ones.
- ``<!-- not run: REASON -->`` above a block: it is left out.
- ``<!-- background: PATTERN -->`` above a block: it runs until the end of the page, and the page
  goes on once a line of its output matches.

``sh`` and ``python`` blocks are run. A ``yaml`` block whose first line is ``# NAME.yaml`` is
written to that file. A ``text`` block is the output of the block above it: each line must appear
in it, in order; ``…`` stands for any text.

Commands of documentation pages: the files that a page shows, and its console blocks.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import yaml

from fairlead_testing.yaml_documents import load_documents

SETTINGS = ("local", "checkout", "cluster", "installation", "none")
_DIRECTIVE = re.compile(r"^<!-- commands: (\w+)(, simulated)?(?:: (.+?))? -->", re.DOTALL | re.MULTILINE)
_BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- (?P<marker>not run|background): (?P<value>[^\n]*) -->\n+ *)?"
    r"```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_FILE = re.compile(r"# ([\w.-]+\.yaml)\n")
_COMMANDS = ("sh", "python")
_BEGIN = "@@ block"

_COMMAND_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^ *```$", re.M | re.S
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page.

    skipped: the reason for which it is not run, else empty.
    background: the pattern for which the page waits; ``None`` for a block that must end.
    """

    language: str
    text: str
    line: int
    skipped: str = ""
    background: str | None = None

    @property
    def is_command(self) -> bool:
        return self.language in _COMMANDS

    @property
    def file(self) -> str | None:
        named = _FILE.match(self.text) if self.language == "yaml" else None
        return named[1] if named else None


@dataclass(frozen=True, slots=True)
class CommandPage:
    """A page with its blocks, and where its commands run.

    setting: empty if the page does not say.
    """

    path: Path
    setting: str
    simulated: bool
    reason: str
    blocks: tuple[Block, ...]


def parse_page(path: Path) -> CommandPage:
    """Returns the blocks of a page. Raises ValueError for an unknown setting."""
    text = path.read_text(encoding="utf-8")
    directive = _DIRECTIVE.search(text)
    setting = directive[1] if directive else ""
    if setting and setting not in SETTINGS:
        raise ValueError(f"{path.name}: no setting is called {setting!r}")
    reason = " ".join((directive[3] or "").split()) if directive else ""
    simulated = bool(directive and directive[2])
    return CommandPage(path, setting, simulated, reason, tuple(_blocks(text)))


def _blocks(text: str) -> Iterator[Block]:
    for found in _BLOCK.finditer(text):
        marker, value = found["marker"], found["value"]
        yield Block(
            found["language"],
            dedent(found["body"]),
            text.count("\n", 0, found.start("language")) + 1,
            skipped=value if marker == "not run" else "",
            background=value if marker == "background" else None,
        )


class PageFailure(AssertionError):
    """A command of a page failed, or wrote something else than the page shows."""


def run_page(page: CommandPage, folder: Path, environment: Mapping[str, str], timeout_seconds: float) -> None:
    """Runs the commands of a page in one shell, and compares its output with the page.

    folder: the working directory of the shell.
    """
    script = "".join(_script(page, folder))
    shell = subprocess.Popen(
        ["bash", "-eu", "-o", "pipefail", "-c", script],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = shell.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(shell.pid, signal.SIGKILL)
        raise PageFailure(f"{page.path.name} takes too long:\n{shell.communicate()[0]}") from None
    if shell.returncode:
        raise PageFailure(f"{page.path.name}: exit code {shell.returncode}\n{output}")
    _compare(page, output)


def _script(page: CommandPage, folder: Path) -> Iterator[str]:
    yield "trap 'for job in $(jobs -p); do kill -INT -$job 2>/dev/null || true; done; wait' EXIT\nset -m\n"
    for number, block in enumerate(page.blocks):
        if block.skipped:
            continue
        if block.file:
            text = simulated_manifest(block.text) if page.simulated else block.text
            yield f"cat >{block.file} <<'END_OF_PAGE'\n{text.rstrip()}\nEND_OF_PAGE\n"
        if not block.is_command:
            continue
        yield f"printf '\\n{_BEGIN} {number}\\n'\n"
        text = f"python3 - <<'END_OF_PAGE'\n{block.text}END_OF_PAGE\n" if block.language == "python" else block.text
        yield text if block.background is None else _in_background(text, block.background, folder, number)


def _in_background(text: str, pattern: str, folder: Path, number: int) -> str:
    log = folder / f".background-{number}"
    return (
        f"( {text.rstrip()}\n) >{log} 2>&1 &\njob=$!\n"
        f"until grep -qE -- '{pattern}' {log}; do kill -0 $job || {{ cat {log}; exit 1; }}; sleep 0.2; done\ncat {log}\n"
    )


def _compare(page: CommandPage, output: str) -> None:
    parts = re.split(rf"^{_BEGIN} (\d+)\n", output, flags=re.MULTILINE)
    written = {int(number): text for number, text in zip(parts[1::2], parts[2::2], strict=True)}
    latest = None
    for number, block in enumerate(page.blocks):
        if block.is_command:
            latest = None if block.skipped else number
        elif block.language == "text" and not block.skipped and latest is not None:
            missing = missing_line(block.text, written.get(latest, ""))
            if missing is not None:
                raise PageFailure(f"{page.path.name}:{block.line}: no line {missing!r} in\n{written.get(latest, '')}")


def missing_line(expected: str, output: str) -> str | None:
    """Returns the first expected line that the output lacks after the ones before, or ``None``."""
    lines = iter(" ".join(line.split()) for line in output.splitlines())
    for line in filter(None, (" ".join(line.split()) for line in expected.splitlines())):
        pattern = re.compile(".*".join(map(re.escape, line.split("…"))))
        if not any(pattern.search(candidate) for candidate in lines):
            return line
    return None


def simulated_manifest(text: str) -> str:
    return yaml.safe_dump_all([_simulated(document) for document in load_documents(text)], sort_keys=False)


def _simulated(document: dict[str, Any]) -> dict[str, Any]:
    spec = document.get("spec", {})
    if document.get("kind") == "AcceleratorClass":
        for name in ("resource", "rdmaResource", "nodeSelector", "tolerations"):
            spec.pop(name, None)
    elif document.get("kind") == "ModelDeployment" and spec.get("engine", {}).get("type") != "External":
        spec["engine"] = {"type": "Sim"}
        spec["model"] = {"uri": spec["model"]["uri"]} | {
            name: spec["model"][name] for name in ("servedNames",) if name in spec["model"]
        }
        for pool in spec["pools"]:
            pool.pop("template", None)
    return document


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a console block, and the output that the page shows."""

    line: str
    output: str


def page_files(page: str) -> dict[str, str]:
    return {block["title"]: block["text"] for block in _COMMAND_BLOCK.finditer(page) if block["title"]}


def page_commands(page: str) -> list[Command]:
    """Returns the commands of all console blocks."""
    found = []
    for block in _COMMAND_BLOCK.finditer(page):
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

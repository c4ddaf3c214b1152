"""What every report of a long run begins with: the machine, the commit, and the bar's lines with what was measured."""

import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ReportLine:
    """One line of the bar."""

    goal: str
    measured: object
    holds: bool


def lines_as_json(lines: Iterable[ReportLine]) -> list[dict[str, object]]:
    """The lines as JSON."""
    return [{"line": one.goal, "measured": one.measured, "holds": one.holds} for one in lines]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def commit(folder: Path, mark: str = "-dirty") -> str:
    """The commit that lies in a folder, with ``mark`` behind it when files differ from it, but for results that were measured."""

    def git(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)

    named = git("describe", "--always").stdout.strip()
    differs = git("diff", "--quiet", "HEAD", "--", ".", ":!bench/results").returncode
    return f"{named}{mark if differs else ''}" if named else "unknown"

"""Common parts of reports of long runs: machine, commit, and goals with measurements."""

import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ReportLine:
    """A goal with its measurement."""

    goal: str
    measured: object
    holds: bool


def lines_as_json(lines: Iterable[ReportLine]) -> list[dict[str, object]]:
    return [{"line": line.goal, "measured": line.measured, "holds": line.holds} for line in lines]


def machine() -> dict[str, Any]:
    """Returns a description of the machine."""
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def commit(folder: Path, mark: str = "-dirty") -> str:
    """Returns the commit of a folder, with `mark` if files differ (except committed results)."""

    def git(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)

    named = git("describe", "--always").stdout.strip()
    differs = git("diff", "--quiet", "HEAD", "--", ".", ":!bench/results").returncode
    return f"{named}{mark if differs else ''}" if named else "unknown"

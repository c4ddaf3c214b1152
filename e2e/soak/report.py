"""Report of the soak: machine, seed, amounts, and a verdict for each goal.

In full (``make soak``) it is bench/results/soak.json, else out/soak.json.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairlead_testing.reports import ReportLine, commit, lines_as_json, machine

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("FAIRLEAD_SOAK_SEED", "7"))
FULL = os.environ.get("FAIRLEAD_SOAK", "") == "full"
REPORT = ROOT / "bench" / "results" / "soak.json" if FULL else ROOT / "out" / "soak.json"


def write(part: str, begun: float, figures: Mapping[str, Any], lines: list[ReportLine]) -> list[ReportLine]:
    """Add one part, begun at that monotonic time, to the report; the lines that do not hold."""
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    report = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    parts = report.get("parts", {}) if report.get("machine") == machine() else {}
    parts[part] = {
        "commit": commit(ROOT),
        "seed": SEED,
        "seconds": round(time.monotonic() - begun, 1),
        **figures,
        "verdict": lines_as_json(lines),
    }
    holds = all(line["holds"] for one in parts.values() for line in one["verdict"])
    text = json.dumps(
        {"machine": machine(), "full": FULL, "holds": holds, "parts": dict(sorted(parts.items()))}, indent=2
    )
    REPORT.write_text(text + "\n")
    return [line for line in lines if not line.holds]


def scaled_count(variable: str, small: int, full: int) -> int:
    """Returns an amount: small in tests, full in ``make soak``, or that of a variable."""
    return int(os.environ.get(variable, full if FULL else small))


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and of everything that it started, in bytes."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = (int(fields[1]), int(fields[21]))
    tree, fresh = {pid}, {pid}
    while fresh := {child for child, (parent, _) in parents.items() if parent in fresh} - tree:
        tree |= fresh
    return sum(parents[one][1] for one in tree if one in parents) * os.sysconf("SC_PAGESIZE")


def is_flat(samples: list[int], share: float = 0.10, least: int = 8 << 20) -> bool:
    """Whether memory stays what it was after the first third, within a tenth or 8 MiB: until then
    bounded tables fill."""
    steady = samples[len(samples) // 3 :]
    return max(steady) - steady[0] <= max(least, share * steady[0])

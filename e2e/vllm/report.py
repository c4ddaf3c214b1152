"""Report of checks, verdicts and numbers: printed as they come, written as JSON at the end."""

import json
import os
import platform
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fairlead_testing.reports import commit

ROOT = Path(__file__).resolve().parents[2]
Numbers = dict[str, Any]


class CheckFailed(AssertionError):
    """Raised by a check that did not hold; ``numbers`` say how far it got."""

    def __init__(self, why: str, numbers: Numbers | None = None) -> None:
        super().__init__(why)
        self.numbers = numbers or {}


def require(holds: object, why: str, numbers: Numbers | None = None) -> None:
    if not holds:
        raise CheckFailed(why, numbers)


class Scenario(Protocol):
    """A part of a run."""

    async def run(self) -> None:
        """Runs all of its checks."""


@dataclass(slots=True)
class ReportPart:
    """One part of a run: its checks in the order in which they were made.

    is_over: False while it runs, and for good if the run was ended meanwhile. Such a part is not
        written.
    note: on the circumstances of this part alone.
    """

    when: str
    revision: str
    note: str = ""
    checks: dict[str, Numbers] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    seconds: int = 0
    is_over: bool = False

    def summary(self) -> Numbers:
        """As JSON."""
        held = self.is_over and bool(self.checks) and all(one["holds"] for one in self.checks.values())
        return {
            "held": held,
            "when": self.when,
            "revision": self.revision,
            **({"note": self.note} if self.note else {}),
            "seconds": self.seconds,
            "checks": self.checks,
        }


@dataclass(slots=True)
class VllmReport:
    """All parts. Parts that a former run wrote into the same file stay, as long as the versions are
    the same.

    versions: of what is under test; a digest of code is one, too.
    note: on the circumstances of all parts of this run.
    """

    versions: Mapping[str, str]
    note: str = ""
    parts: dict[str, ReportPart] = field(default_factory=dict)
    conformance: dict[str, Any] | None = None

    @property
    def all_passed(self) -> bool:
        return all(part.summary()["held"] for part in self.parts.values())

    def begin(self, part: str) -> None:
        when = time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime())
        self.parts[part] = ReportPart(when, commit(ROOT, mark="+"), self.note)

    async def run_part(self, part: str, scenario: Callable[[], "Scenario"]) -> None:
        """Runs all checks of a part. An error that none of them has caught is a check."""
        self.begin(part)
        try:
            await scenario().run()
        except Exception as error:  # noqa: BLE001
            self.add("the whole part", {"holds": False, "why": f"{type(error).__name__}: {error}"[-2_000:]})
        self.end()

    def end(self) -> None:
        next(reversed(self.parts.values())).is_over = True

    async def check(self, name: str, what: Callable[[], Awaitable[Numbers]]) -> bool:
        """Make one check; whatever it raises is its result."""
        began = time.monotonic()
        try:
            found = {"holds": True, **await what()}
        except CheckFailed as error:
            found = {"holds": False, "why": str(error), **error.numbers}
        except Exception as error:  # noqa: BLE001 - one broken check must not hide the others
            found = {"holds": False, "why": f"{type(error).__name__}: {error}"}
        found["seconds"] = round(time.monotonic() - began, 1)
        found["load_average"] = round(os.getloadavg()[0], 1)
        self.add(name, found)
        return bool(found["holds"])

    def add(self, check: str, found: Numbers) -> None:
        """Keep and print the result of a check."""
        name, part = next(reversed(self.parts.items()))
        part.checks[check] = found
        part.seconds = round(time.monotonic() - part.began)
        more = ", ".join(
            f"{key} {value}" for key, value in found.items() if key != "holds" and not isinstance(value, list)
        )
        print(f"{'holds ' if found['holds'] else 'BROKEN'}  {name}: {check}: {more}", flush=True)

    def write(self, path: Path) -> None:
        """Writes the parts as JSON, together with those that the file has already."""
        path.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(path.read_text()) if path.exists() else {}
        if before.get("versions") != dict(self.versions):
            before = {}
        whole: Numbers = {
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
            "python": platform.python_version(),
            "versions": dict(self.versions),
            "parts": {
                **before.get("parts", {}),
                **{name: part.summary() for name, part in self.parts.items() if part.is_over},
            },
        }
        if conformance := self.conformance or before.get("conformance"):
            whole["conformance"] = conformance
        path.write_text(json.dumps(whole, indent=1) + "\n")


def spread(values: list[float]) -> Numbers:
    """Median, 95th percentile and largest, in seconds."""
    known = sorted(values)
    if not known:
        return {}
    return {
        "p50": round(known[len(known) // 2], 4),
        "p95": round(known[int(len(known) * 0.95)], 4),
        "max": round(known[-1], 4),
    }

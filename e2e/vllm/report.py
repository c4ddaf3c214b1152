"""What was checked, whether it held, and the numbers: printed as it happens, written as JSON at the end."""

import json
import os
import platform
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Numbers = dict[str, Any]


class Broken(AssertionError):
    """Raised by a check that did not hold; ``numbers`` say how far it got."""

    def __init__(self, why: str, numbers: Numbers | None = None) -> None:
        super().__init__(why)
        self.numbers = numbers or {}


def demand(holds: object, why: str, numbers: Numbers | None = None) -> None:
    """Raise Broken unless it holds."""
    if not holds:
        raise Broken(why, numbers)


@dataclass(slots=True)
class Report:
    """Checks in the order in which they were made."""

    versions: Mapping[str, str]
    checks: dict[str, Numbers] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    conformance: dict[str, Any] | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def held(self) -> bool:
        """Everything that was checked."""
        return all(one["holds"] for one in self.checks.values())

    async def check(self, name: str, what: Callable[[], Awaitable[Numbers]]) -> bool:
        """Make one check; whatever it raises is its result."""
        began = time.monotonic()
        try:
            found = {"holds": True, **await what()}
        except Broken as error:
            found = {"holds": False, "why": str(error), **error.numbers}
        except Exception as error:  # noqa: BLE001 - one broken check must not hide the others
            found = {"holds": False, "why": f"{type(error).__name__}: {error}"}
        found["seconds"] = round(time.monotonic() - began, 1)
        self.add(name, found)
        return bool(found["holds"])

    def add(self, name: str, found: Numbers) -> None:
        """Keep and print the result of a check."""
        self.checks[name] = found
        more = ", ".join(
            f"{key} {value}" for key, value in found.items() if key != "holds" and not isinstance(value, list)
        )
        print(f"{'holds ' if found['holds'] else 'BROKEN'}  {name}: {more}", flush=True)

    def write(self, path: Path) -> None:
        """The whole as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {
            "held": self.held,
            "machine": f"{platform.machine()}, {_cores()} cores",
            "python": platform.python_version(),
            "versions": dict(self.versions),
            "seconds": round(time.monotonic() - self.began),
            "left_out": self.left_out,
            "checks": self.checks,
            "conformance": self.conformance,
        }
        path.write_text(json.dumps(whole, indent=1) + "\n")


def spread(values: list[float]) -> Numbers:
    """Median and largest, in seconds."""
    known = sorted(values)
    return {"p50": round(known[len(known) // 2], 3), "max": round(known[-1], 3)} if known else {}


def _cores() -> int:
    return len(os.sched_getaffinity(0))

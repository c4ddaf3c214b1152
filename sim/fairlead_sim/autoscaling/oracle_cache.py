"""Schedules that were found before, in a file: a search takes minutes, running its result again seconds.

A schedule belongs to a scenario's name, seed and very load, which a digest names; what it is worth is measured anew by whoever
wants to be sure (``oracle.replayed``), since engines and plant may have changed since.
"""

import json
from array import array
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from fairlead_sim.autoscaling.oracle import OracleSchedule
from fairlead_sim.autoscaling.plant import AutoscalingScenario


class OracleCache:
    """The schedules of one file; one that is not there yet holds none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def get(self, scenario: AutoscalingScenario) -> OracleSchedule | None:
        """What is known of exactly this load."""
        entry = self._entries.get(_scenario_key(scenario))
        if entry is None:
            return None
        steps: tuple[tuple[float, Mapping[str, int]], ...] = tuple([(at, counts) for at, counts in entry["steps"]])
        return OracleSchedule(steps, entry["attainment"], entry["cost"])

    def put(self, scenario: AutoscalingScenario, schedule: OracleSchedule) -> None:
        """Remember, and write the file."""
        self._entries[_scenario_key(scenario)] = {
            "attainment": schedule.attainment,
            "cost": schedule.cost,
            "steps": [[at, counts] for at, counts in schedule.steps],
        }
        lines = [f"{json.dumps(name)}: {json.dumps(kept)}" for name, kept in sorted(self._entries.items())]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _scenario_key(scenario: AutoscalingScenario) -> str:
    load = scenario.load
    digest = sha256(array("d", load.arrivals).tobytes())
    digest.update(array("q", load.prompts).tobytes())
    digest.update(array("q", load.outputs).tobytes())
    return f"{scenario.name}/{scenario.seed}/{digest.hexdigest()[:12]}"

"""A file of the schedules that earlier searches for the offline optimum found.

The key is the scenario's name, its seed and a digest of its load. Engines and plant may have
changed since; ``replay_schedule`` measures a schedule again.

Why: a search takes minutes, a run of its result seconds.
"""

import json
from array import array
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from fairlead_sim.autoscaling.offline_optimum import OptimumSchedule
from fairlead_sim.autoscaling.plant import AutoscalingScenario


class OptimumCache:
    """The schedules of one file, which may be absent."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def get(self, scenario: AutoscalingScenario) -> OptimumSchedule | None:
        """Returns the known schedule for this scenario, seed and load; None if there is none."""
        entry = self._entries.get(_scenario_key(scenario))
        if entry is None:
            return None
        steps: tuple[tuple[float, Mapping[str, int]], ...] = tuple([(at, counts) for at, counts in entry["steps"]])
        return OptimumSchedule(steps, entry["attainment"], entry["cost"])

    def put(self, scenario: AutoscalingScenario, schedule: OptimumSchedule) -> None:
        """Stores a schedule and writes the file."""
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

"""What happens to a fleet while it serves: engines are lost, come, are drained, or become slow. A script is a list of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from fairlead_sim.fleet.simulation import FleetSimulation


class FleetEventKind(StrEnum):
    """Losing takes everything with it; a drained engine ends what it has; a slow one takes so many times as long for a step."""

    LOSE = "lose"
    JOIN = "join"
    DRAIN = "drain"
    SLOW = "slow"


@dataclass(frozen=True, slots=True)
class FleetEvent:
    """At a moment, to one engine by name. ``factor`` is how many times slower it is from then on; 1 is as before."""

    at: float
    kind: FleetEventKind
    engine: str
    factor: float = 1.0


def schedule_events(events: Sequence[FleetEvent], simulation: FleetSimulation) -> None:
    """Let it happen. What cannot (an engine that is not there any more) does not."""
    actions: dict[str, Callable[[FleetEvent, float], None]] = {
        FleetEventKind.LOSE: lambda event, now: simulation.lose_engine(event.engine, now),
        FleetEventKind.JOIN: lambda event, now: simulation.add_engine(event.engine, now),
        FleetEventKind.DRAIN: lambda event, now: simulation.drain_engine(event.engine, now),
        FleetEventKind.SLOW: lambda event, now: simulation.slow_engine(event.engine, event.factor, now),
    }

    def happen(one: FleetEvent, now: float) -> None:
        if (one.engine in simulation.cores) != (one.kind is FleetEventKind.JOIN):
            actions[one.kind](one, now)

    for event in events:
        simulation.schedule(event.at, partial(happen, event))


def scale_out_and_in(first: int, end: int, out_at: float, in_at: float) -> tuple[FleetEvent, ...]:
    """Engines ``sim-<first>`` to before ``sim-<most>`` come at ``up`` and are drained at ``down`` (6 → 8 → 6)."""
    names = [f"sim-{index}/0/0" for index in range(first, end)]
    return (
        *[FleetEvent(out_at, FleetEventKind.JOIN, name) for name in names],
        *[FleetEvent(in_at, FleetEventKind.DRAIN, name) for name in names],
    )

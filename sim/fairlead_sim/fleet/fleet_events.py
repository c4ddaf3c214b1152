"""Events of a fleet under load: engines are lost, join, drain or become slow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from fairlead_sim.fleet.simulation import FleetSimulation


class FleetEventKind(StrEnum):
    """The kind of a fleet event.

    A lost engine takes its requests with it. A drained engine finishes its requests. A slow engine
    takes ``factor`` times as long for a step.
    """

    LOSE = "lose"
    JOIN = "join"
    DRAIN = "drain"
    SLOW = "slow"


@dataclass(frozen=True, slots=True)
class FleetEvent:
    """An event of one engine at a simulated time.

    factor: how many times slower the engine is from then on; 1 restores its speed.
    """

    at: float
    kind: FleetEventKind
    engine: str
    factor: float = 1.0


def schedule_events(events: Sequence[FleetEvent], simulation: FleetSimulation) -> None:
    """Schedules the events. An event that does not apply, such as the loss of a lost engine, is
    skipped.
    """
    actions: dict[str, Callable[[FleetEvent, float], None]] = {
        FleetEventKind.LOSE: lambda event, now: simulation.lose_engine(event.engine, now),
        FleetEventKind.JOIN: lambda event, now: simulation.add_engine(event.engine, now),
        FleetEventKind.DRAIN: lambda event, now: simulation.cordon_engine(event.engine, now),
        FleetEventKind.SLOW: lambda event, now: simulation.slow_engine(event.engine, event.factor, now),
    }

    def happen(one: FleetEvent, now: float) -> None:
        if (one.engine in simulation.engine_cores) != (one.kind is FleetEventKind.JOIN):
            actions[one.kind](one, now)

    for event in events:
        simulation.schedule(event.at, partial(happen, event))


def scale_out_and_in(first: int, end: int, out_at: float, in_at: float) -> tuple[FleetEvent, ...]:
    """Returns joins of ``sim-<first>`` to ``sim-<end - 1>`` at ``out_at``, and their drains at
    ``in_at``.
    """
    names = [f"sim-{index}/0/0" for index in range(first, end)]
    return (
        *[FleetEvent(out_at, FleetEventKind.JOIN, name) for name in names],
        *[FleetEvent(in_at, FleetEventKind.DRAIN, name) for name in names],
    )

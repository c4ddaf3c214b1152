"""One live measurement: replay a plan, then ask every loop that took part how late it ran."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import uvloop

from fairlead.fleet import Instance
from fairlead.units import duration
from fairlead_cli.replaying.client import Client, Planned
from fairlead_cli.replaying.outcome import Outcome
from fairlead_cli.replaying.progress import ProgressView
from fairlead_cli.replaying.prompts import Target
from fairlead_cli.replaying.summary import on_clock
from fairlead_cli.replaying.witness import LIMIT_SECONDS, read_lags, requests_seen


@dataclass(frozen=True, slots=True)
class Measured:
    """Outcomes in simulated seconds; ``lags`` are p99 in wall seconds by process; ``doubts`` say why not to believe it."""

    outcomes: Sequence[Outcome]
    lags: Mapping[str, float | None]
    doubts: Sequence[str]
    wall_seconds: float


def measure(
    target: Target,
    plan: Sequence[Planned],
    *,
    speed: float,
    title: str,
    manage: str | None,
    instances: Sequence[Instance] = (),
    patience_seconds: float = 180.0,
) -> Measured:
    """Replay ``plan`` once. Without ``manage`` the gateway's loop cannot be asked, and the result says so."""
    before = None if manage is None else requests_seen(manage)
    with ProgressView(title) as view:
        client = Client(target.host, target.port, patience_seconds=patience_seconds, progress=view.update)
        run = uvloop.run(client.run(plan))
    asked = {f"engine {one.id}": one.url.rstrip("/") for one in instances}
    if manage is not None:
        asked["gateway"] = manage.rstrip("/")
    answers = read_lags(dict.fromkeys(asked.values()))
    lags: dict[str, float | None] = {
        "replay's loop": run.loop_lag_p99_seconds,
        "replay's sending": run.late_p99_seconds,
        **{name: answers[url] for name, url in sorted(asked.items(), reverse=True)},
    }
    if manage is None:
        lags["gateway"] = None
    after = None if manage is None else requests_seen(manage)
    found = [*doubts(lags), *others(before, after, len(plan))]
    return Measured(on_clock(run.outcomes, speed), lags, found, run.seconds)


def doubts(lags: Mapping[str, float | None]) -> list[str]:
    """Why a run with these latenesses is not to be believed; empty when it is. Engines may keep theirs to themselves."""
    found = []
    for name, lag in lags.items():
        if lag is None:
            if not name.startswith("engine"):
                found.append(f"{name}: how late it ran is not known")
        elif lag > LIMIT_SECONDS:
            found.append(f"{name} ran {duration(lag)} late (p99), more than {duration(LIMIT_SECONDS)}")
    return found


def others(before: int | None, after: int | None, ours: int) -> list[str]:
    """A doubt when the gateway answered more requests than were sent here."""
    if before is None or after is None or after - before <= ours:
        return []
    return [f"the gateway answered {after - before - ours} requests of somebody else meanwhile"]

"""One live measurement: a replay, then the loop lag of every process that took part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import uvloop

from fairlead.fleet.model import Instance
from fairlead_cli.replay.client.open_loop_client import OpenLoopClient, PlannedRequest
from fairlead_cli.replay.client.progress import ProgressView
from fairlead_cli.replay.client.prompts import ReplayTarget
from fairlead_cli.replay.client.replay_result import ReplayResult
from fairlead_cli.replay.report.summary import scale_times
from fairlead_cli.replay.validity import (
    count_finished_requests,
    foreign_request_doubts,
    lag_doubts,
    read_lags,
)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measurement: results in simulated seconds, loop lags and doubts. ``lags``: p99 in wall
    seconds by process. ``doubts``: reasons why the measurement is not valid.
    """

    results: Sequence[ReplayResult]
    lags: Mapping[str, float | None]
    doubts: Sequence[str]
    wall_seconds: float


def measure(
    target: ReplayTarget,
    plan: Sequence[PlannedRequest],
    *,
    speed: float,
    title: str,
    manage: str | None,
    instances: Sequence[Instance] = (),
) -> Measurement:
    """Replays ``plan`` once and returns the measurement.

    manage: management address of the gateway. None: its loop lag is unknown, which is a doubt.
    """
    before = None if manage is None else count_finished_requests(manage)
    with ProgressView(title) as view:
        client = OpenLoopClient(target.host, target.port, on_progress=view.update)
        run = uvloop.run(client.run(plan))
    urls = {f"engine {instance.id}": instance.url.rstrip("/") for instance in instances}
    if manage is not None:
        urls["gateway"] = manage.rstrip("/")
    lag_by_url = read_lags(dict.fromkeys(urls.values()))
    lags: dict[str, float | None] = {
        "replay's loop": run.loop_lag_p99_seconds,
        "replay's sending": run.late_p99_seconds,
        **{name: lag_by_url[url] for name, url in sorted(urls.items(), reverse=True)},
    }
    if manage is None:
        lags["gateway"] = None
    after = None if manage is None else count_finished_requests(manage)
    reasons = [*lag_doubts(lags), *foreign_request_doubts(before, after, len(plan))]
    return Measurement(scale_times(run.results, speed), lags, reasons, run.seconds)

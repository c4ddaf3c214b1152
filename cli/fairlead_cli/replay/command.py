"""``fairlead replay``: recorded traffic against a running gateway."""

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import uvloop
from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fairlead.errors import BadInput, FairleadError
from fairlead.fleet import file
from fairlead.fleet.model import Instance, InstanceState, Model, SloTargets
from fairlead.units import format_duration
from fairlead_cli.local.run_directory import RunningStack, newest_stack, running_stacks
from fairlead_cli.replay.client.open_loop_client import OpenLoopClient, PlannedRequest, ProgressCounts, ReplayResult
from fairlead_cli.replay.fleet_simulation import JITTER_SECONDS, FleetSimulation, timing_doubts, transport_seconds
from fairlead_cli.replay.report.report import (
    PolicyResult,
    ReplayReport,
    RunSummary,
    count_finished_requests,
    foreign_request_doubts,
    lag_doubts,
    max_lag_seconds,
    publish,
    read_lags,
    scale_times,
)
from fairlead_cli.replay.traffic import (
    PromptBuilder,
    ReplayTarget,
    ReplayTraffic,
    load_traffic,
    plan_requests,
    prefix_chains,
)
from fairlead_sim.engine.tokenizer import Tokenizer

UNKNOWN_PRESET = "gateway"
SECRET_VARIABLE = "FAIRLEAD_HASH_SECRET"
KEY_VARIABLE = "FAIRLEAD_API_KEY"

_LINE_SECONDS = 10.0
_SETTLING_SECONDS = 10.0
"""Before this, a loop's lag says little: the first prompts are built and connections opened."""


@dataclass(frozen=True, slots=True)
class ReplayArguments:
    """The arguments as given."""

    trace: Annotated[
        Path | None, Parameter(help="A trace in Mooncake's format. Without: traffic of the same shape from a seed.")
    ] = None
    url: Annotated[str | None, Parameter(help="The gateway. Default: that of the running `fairlead up`.")] = None
    manage: Annotated[str | None, Parameter(help="Its management address; its loop lag is read there.")] = None
    fleet: Annotated[
        Path | None, Parameter(help="Its fleet file. If the file has profiles, the replay is also simulated.")
    ] = None
    model: Annotated[str | None, Parameter(help="The model to query. Default: the only model.")] = None
    rate: Annotated[float | None, Parameter(help="Mean arrivals per simulated second. Default: the trace's own.")] = (
        None
    )
    speed: Annotated[float, Parameter(help="Simulated seconds in one second; the same as for `fairlead up`.")] = 1.0
    limit: Annotated[int | None, Parameter(help="Replay only this number of requests, the first ones.")] = None
    seed: Annotated[int, Parameter(help="Seed of generated traffic.")] = 0
    out: Annotated[Path, Parameter(help="Where the report goes.")] = Path("out/replay")


_DEFAULTS = ReplayArguments()


def replay(*, arguments: Annotated[ReplayArguments, Parameter(name="*")] = _DEFAULTS) -> int:
    """Replay a trace against a running gateway, open loop, and write a report.

    Prompts over 20,480 tokens are left out; requests with one timestamp are spread up to the next.
    Exits 1 when requests failed.
    """
    from fairlead_cli.console import stdout_console

    console = stdout_console()
    gateway = find_gateway(
        url=arguments.url, manage=arguments.manage, fleet_file=arguments.fleet, model=arguments.model
    )
    traffic = load_traffic(arguments.trace, limit=arguments.limit, rate=arguments.rate, seed=arguments.seed)
    console.print(
        f"traffic: {traffic.name}, {len(traffic.requests)} requests at {traffic.rate:.3g} simulated requests/s "
        f"to {gateway.model} at {gateway.url}",
        highlight=False,
    )
    report = replay_once(
        traffic,
        gateway,
        speed=arguments.speed,
        on_progress=lambda line: console.print(line, highlight=False),
    )
    return publish(report, arguments.out, console)


@dataclass(frozen=True, slots=True)
class GatewayTarget:
    """The gateway and model to send requests to.

    fleet_model and instances: in the gateway's wall seconds; None and () when unknown.
    """

    url: str
    model: str
    manage: str | None = None
    fleet_model: Model | None = None
    instances: tuple[Instance, ...] = ()


def find_gateway(*, url: str | None, manage: str | None, fleet_file: Path | None, model: str | None) -> GatewayTarget:
    """Returns the gateway of the options, or of this user's running stack. Raises StackUnreachable
    or BadInput.
    """
    stack = newest_stack() if url is None else _find_stack(url)
    if stack is not None:
        url, manage = stack.url, manage or stack.manage
        fleet_file = fleet_file or (Path(stack.fleet_file) if stack.fleet_file else None)
    assert url is not None
    if fleet_file is None:
        if model is None:
            raise BadInput("the model to query is not known", field="model", hint="give --model, or --fleet FILE")
        return GatewayTarget(url, model, manage)
    try:
        fleet_text = fleet_file.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{fleet_file}: the fleet file cannot be read: {error.strerror}", field="fleet") from error
    fleet = file.parse_fleet_file(fleet_text, file=str(fleet_file))
    key = (
        fleet.resolve_model(model)
        if model is not None
        else (next(iter(fleet.models)) if len(fleet.models) == 1 else None)
    )
    if key is None:
        names = ", ".join(fleet.models)
        raise BadInput(
            f"the fleet has no single model {model or ''}".strip(), field="model", hint=f"models of the fleet: {names}"
        )
    ready = tuple(instance for instance in fleet.instances.get(key, ()) if instance.state is InstanceState.READY)
    return GatewayTarget(url, key, manage, fleet.models[key], ready)


def _find_stack(url: str) -> RunningStack | None:
    return next((stack for stack in running_stacks() if stack.url.rstrip("/") == url.rstrip("/")), None)


def replay_once(
    traffic: ReplayTraffic, gateway: GatewayTarget, *, speed: float, on_progress: Callable[[str], None]
) -> ReplayReport:
    """Replays the traffic live, and simulates it when the profiles are known. The report is in
    simulated seconds.
    """
    builder = PromptBuilder(Tokenizer())
    target = ReplayTarget(gateway.url, model=gateway.model, key=os.environ.get(KEY_VARIABLE))
    planned = plan_requests(traffic.requests, target, speed=speed, builder=builder)
    measurement = measure(target, planned, gateway, speed=speed, title="replay")
    model = gateway.fleet_model
    objectives = SloTargets() if model is None else _simulated_objectives(model.objectives, speed)
    name = UNKNOWN_PRESET if model is None else model.routing.preset
    instance_count = len(gateway.instances)
    live = RunSummary.from_results(measurement.results, objectives=objectives, instances=instance_count)
    policy = PolicyResult(live)
    invalid_reasons = list(measurement.doubts)
    simulation = _simulation(gateway, builder, on_progress)
    if simulation is not None:
        on_progress(f"simulating the same {len(traffic.requests)} requests, once and then in several runs")
        # The fleet file's profiles are in wall seconds, so the simulation is too.
        wall_requests = [replace(request, arrival=request.arrival / speed) for request in traffic.requests]
        rerun = scale_times(simulation.run_on_choices(wall_requests, measurement.results), speed)
        invalid_reasons += timing_doubts(measurement.results, rerun)
        feedback_delay = transport_seconds(measurement.results, rerun) / speed
        median_run = simulation.run_median(
            wall_requests, feedback_delay_seconds=feedback_delay, jitter_seconds=JITTER_SECONDS / speed
        )
        policy = PolicyResult(
            live,
            RunSummary.from_results(scale_times(median_run, speed), objectives=objectives, instances=instance_count),
            RunSummary.from_results(rerun, objectives=objectives, instances=instance_count),
        )
    return ReplayReport(
        trace=traffic.name,
        objectives=objectives,
        speed=speed,
        rate=traffic.rate,
        requests=len(traffic.requests),
        policies={name: policy},
        lags=measurement.lags,
        invalid_reasons=invalid_reasons,
        ideal_reuse=traffic.ideal_reuse,
    )


def _simulation(
    gateway: GatewayTarget, builder: PromptBuilder, on_progress: Callable[[str], None]
) -> FleetSimulation | None:
    """Returns the simulation of the fleet; None, with a message, when too little is known."""
    profiles = {instance.profile for instance in gateway.instances}
    profile = next(iter(profiles)) if len(profiles) == 1 else None
    if gateway.fleet_model is None or profile is None:
        on_progress("not simulated: the instances' profile is not known, or they have different ones")
        return None
    secret = os.environ.get(SECRET_VARIABLE, "")
    if not secret:
        on_progress(
            f"note: {SECRET_VARIABLE} is not set here, so the simulation hashes prompts to other replicas than the gateway"
        )
    return FleetSimulation(
        profile=profile,
        instance_ids=[instance.id for instance in gateway.instances],
        preset=gateway.fleet_model.routing.preset,
        objectives=gateway.fleet_model.objectives,
        secret=secret.encode(),
        chain=prefix_chains(builder, secret=secret.encode(), model_key=gateway.fleet_model.key),
    )


def _simulated_objectives(objectives: SloTargets, speed: float) -> SloTargets:
    """Converts latency targets from wall to simulated seconds."""
    ttft, itl = objectives.ttft_seconds, objectives.itl_seconds
    return replace(
        objectives,
        ttft_seconds=None if ttft is None else ttft * speed,
        ttft_per_kilo_token_seconds=objectives.ttft_per_kilo_token_seconds * speed,
        itl_seconds=None if itl is None else itl * speed,
    )


class TooBusy(FairleadError):
    """Raised when the machine is too busy for a valid measurement."""


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
    gateway: GatewayTarget,
    *,
    speed: float,
    title: str,
    ends_early: float | None = None,
) -> Measurement:
    """Replays ``plan`` once and returns the measurement.

    gateway: without its management address, its loop lag is unknown, which is a doubt.
    ends_early: raises TooBusy when this loop's lag is so many times what is valid.
    """
    manage = gateway.manage
    before = None if manage is None else count_finished_requests(manage)
    most = math.inf if ends_early is None else ends_early * max_lag_seconds(speed)
    with ProgressView(title) as view:

        def update(counts: ProgressCounts) -> None:
            view.update(counts)
            if counts.seconds > _SETTLING_SECONDS and (counts.loop_lag_p99_seconds or 0.0) > most:
                raise TooBusy(f"replay's loop ran {format_duration(counts.loop_lag_p99_seconds or 0.0)} late (p99)")

        client = OpenLoopClient(target.host, target.port, on_progress=update)
        run = uvloop.run(client.run(plan))
    urls = {f"engine {instance.id}": instance.url.rstrip("/") for instance in gateway.instances}
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
    reasons = [*lag_doubts(lags, speed), *foreign_request_doubts(before, after, len(plan))]
    return Measurement(scale_times(run.results, speed), lags, reasons, run.seconds)


class ProgressView:
    """A progress display. Use as a context manager; the client calls ``update`` about twice a
    second.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._printed_at_seconds = 0.0
        self._bar: Progress | None = None
        if sys.stdout.isatty():
            # No refresh thread: it would take the interpreter from the loop that is being measured.
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn(
                    "{task.completed}/{task.total} answered, {task.fields[in_flight]} in flight{task.fields[failed]}"
                ),
                TimeElapsedColumn(),
                console=Console(),
                auto_refresh=False,
            )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task(self._title, total=None, in_flight=0, failed="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, counts: ProgressCounts) -> None:
        """Shows the counts."""
        in_flight = counts.sent - counts.answered
        failed = f", {counts.failed} failed" if counts.failed else ""
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(
                task, total=counts.total, completed=counts.answered, in_flight=in_flight, failed=failed, refresh=True
            )
            return
        is_finished = counts.answered == counts.total
        if is_finished or counts.seconds - self._printed_at_seconds >= _LINE_SECONDS:
            self._printed_at_seconds = counts.seconds
            print(
                f"{self._title}: {counts.seconds:.0f} s, {counts.answered}/{counts.total} answered, {in_flight} in flight{failed}"
            )

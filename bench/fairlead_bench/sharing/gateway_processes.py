"""One gateway, three that share a Redis near or far away, and three that share nothing, over HTTP.

    python -m fairlead_bench gateways [--seeds 5] [--out out/bench/gateways.json]

All get the same requests to simulated engines. The traffic is that of agents: a dozen applications
with long instructions, and sessions whose prompts grow. Each turn goes to a random gateway, as
through a load balancer. Engines are small, so that every duplicate evicts something.

The rows compare the share of prompt tokens found in caches, as engines report it. In the setting
``short`` a request takes less time than gateways need to report it, and the caches are small. The
gateway's own time before an engine has a request comes from ``server-timing``. A wait for a Redis
that is 200 ms away would show there.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import fmean, stdev
from typing import Any

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.file import write_fleet_file
from fairlead_bench.results import Goals, ResultRow, load_goals, parse_options, write_results
from fairlead_testing.engines.disaggregated import engine_processes
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.gateway.running_gateway import fleet_of, with_profile
from fairlead_testing.http.links import slow_link
from fairlead_testing.http.raw_client import request
from fairlead_testing.redis.valkey import running_valkey
from fairlead_testing.waiting import wait_until

ENGINES = 4
CONCURRENT_REQUESTS = 10
BLOCK_TOKENS = 16
APPLICATIONS = 12
TURNS = 5
SECRET = "the secret of all gateways of this benchmark"
Body = dict[str, Any]
"""The body of one request."""
_NAME = "gateways"

REDIS_DELAY_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class FleetSetting:
    """Engines of a profile so many times as fast, with so many blocks each, and how many sessions
    they get."""

    profile: str
    speed: float
    blocks: int
    sessions: int


SETTINGS = {"short": FleetSetting("tiny-cpu", 1.0, 1_500, 20), "agents": FleetSetting("l4-qwen8b", 2.0, 2_500, 40)}


@dataclass(frozen=True, slots=True)
class GatewayTopology:
    """So many gateways, and how far their Redis is away; None: they have none."""

    name: str
    gateways: int
    away_seconds: float | None


TOPOLOGIES = (
    GatewayTopology("one gateway", 1, 0.0),
    GatewayTopology("three that share", 3, 0.0),
    GatewayTopology("three that share, Redis 200 ms away", 3, REDIS_DELAY_SECONDS),
    GatewayTopology("three that share nothing", 3, None),
)


@dataclass(frozen=True, slots=True)
class SharingFigures:
    """Figures of one run: prompt tokens, tokens found in caches, requests, failures, and two times
    of each request: until an engine had it, and until its client had the answer."""

    prompt_tokens: int
    cached_tokens: int
    requests: int
    failures: int
    own_seconds: tuple[float, ...] = ()
    whole_seconds: tuple[float, ...] = ()

    @property
    def cached_share(self) -> float:
        """The share of prompt tokens that was found in caches."""
        return self.cached_tokens / max(1, self.prompt_tokens)


def sessions(count: int, seed: int, *, apps: int = APPLICATIONS, turns: int = TURNS) -> list[list[Body]]:
    """Returns sessions as lists of turns, each the body of one request. The answers in them are
    drawn, so every run sends the same requests."""
    random = Random(seed)
    instructions = [f"application {app}: " + _words(Random(f"{seed} {app}"), 700) for app in range(apps)]
    weights = [1.0 / (1 + app) for app in range(apps)]
    found = []
    for _ in range(count):
        (system,) = random.choices(instructions, weights)
        messages = [{"role": "system", "content": system}]
        session = []
        for _ in range(turns):
            messages = [*messages, {"role": "user", "content": _words(random, 120)}]
            session.append({"model": "tiny", "messages": messages, "max_tokens": 8})
            messages = [*messages, {"role": "assistant", "content": _words(random, 40)}]
        found.append(session)
    return found


def _words(random: Random, count: int) -> str:
    return " ".join(str(random.randrange(100_000)) for _ in range(count))


@dataclass(frozen=True, slots=True)
class AgentTraffic:
    """The sessions of agents and how they are sent.

    seed: of the gateway that each turn goes to.
    in_step: each request waits until all gateways know of the one before.
    engines: those of the URLs that are engines, which report no time of a gateway.
    """

    sessions: Sequence[Sequence[Body]]
    seed: int
    concurrency: int = CONCURRENT_REQUESTS
    in_step: bool = False
    engines: Sequence[str] = ()


async def drive(
    urls: Sequence[str], traffic: AgentTraffic, *, between: Callable[[], Awaitable[None]] | None = None
) -> SharingFigures:
    """Sends all sessions, each turn to one of these URLs, which are gateways or engines.

    between: awaited after every answer.
    """
    slots = asyncio.Semaphore(traffic.concurrency)
    draw = Random(traffic.seed)
    ways = [[draw.random() for _ in session] for session in traffic.sessions]
    totals = [0, 0, 0, 0]
    own: list[float] = []
    whole: list[float] = []

    async def one(session: Sequence[Body], way: list[float]) -> None:
        async with slots:
            for body, drawn in zip(session, way, strict=True):
                begun, url = time.perf_counter(), urls[int(drawn * len(urls))]
                answer = await request(url, body, more="content-type: application/json\r\n")
                whole.append(time.perf_counter() - begun)
                totals[2] += 1
                if answer.status != 200:
                    totals[3] += 1
                    continue
                if url not in traffic.engines:
                    timing = answer.fields["server-timing"].partition("gateway;dur=")[2]
                    own.append(float(timing.partition(",")[0]) / 1e3)
                usage: dict[str, Any] = answer.json["usage"]
                totals[0] += usage["prompt_tokens"]
                totals[1] += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
                if between is not None:
                    await between()

    await asyncio.gather(*[one(session, way) for session, way in zip(traffic.sessions, ways, strict=True)])
    prompt, cached, requests, failures = totals
    return SharingFigures(prompt, cached, requests, failures, own_seconds=tuple(own), whole_seconds=tuple(whole))


async def measure(
    gateways: int, traffic: AgentTraffic, *, redis: str | None, folder: Path, setting: FleetSetting
) -> SharingFigures:
    """Returns the figures of one run with its own engines and gateways."""
    os.environ["FAIRLEAD_HASH_SECRET"] = SECRET
    path = folder / f"fleet-{gateways}.yaml"
    async with AsyncExitStack() as stack:
        # fmt: off
        engines = await stack.enter_async_context(engine_processes(
            ENGINES, "--num-gpu-blocks-override", str(setting.blocks), "--block-size", str(BLOCK_TOKENS),
            "--max-model-len", "16384", "--profile", setting.profile, "--speed", str(setting.speed),
        ))
        # fmt: on
        profile = builtin_profile(setting.profile).sped_up(setting.speed)
        profile = replace(profile, kv_tokens=setting.blocks * BLOCK_TOKENS)
        write_fleet_file(path, with_profile(fleet_of([engine.url for engine in engines]), profile))
        sharing = ["--redis", redis] if redis is not None else []
        running = [await stack.enter_async_context(gateway_process(path, *sharing)) for _ in range(gateways)]
        if redis is not None:
            await _wait_for_beats(running)
        step = _StepGate(running) if traffic.in_step and redis is not None else None
        urls = [one.url for one in running]
        return await drive(urls, traffic, between=step.wait if step else None)


async def _wait_for_beats(gateways: Sequence[GatewayProcess]) -> None:
    async def all_heard() -> bool:
        return all([await gateway.metric("fairlead_gateway_peers") == len(gateways) - 1 for gateway in gateways])

    await wait_until(all_heard)


class _StepGate:
    """A gate that opens when every gateway has received all reports of its peers and has nothing in
    flight."""

    def __init__(self, gateways: Sequence[GatewayProcess]) -> None:
        self._gateways = gateways
        self._sent = 0

    async def wait(self) -> None:
        self._sent += 1

        async def all_heard() -> bool:
            for gateway in self._gateways:
                told = await gateway.metric("fairlead_gateway_peer_sent_total")
                if told + await gateway.metric("fairlead_gateway_peer_heard_total") < self._sent:
                    return False
                if await gateway.metric("fairlead_gateway_peer_in_flight"):
                    return False
            return True

        await wait_until(all_heard)


def rows(found: Mapping[str, Sequence[Sequence[SharingFigures]]]) -> list[ResultRow]:
    """Returns the rows: three gateways that share are within three points of one.

    The input has the figures by setting, seed and topology.
    """
    goal = load_goals(_NAME)
    made: list[ResultRow] = []
    for name, seeds in found.items():
        one, shared, *others = [fmean(run[form].cached_share for run in seeds) for form in range(len(TOPOLOGIES))]
        lost = f"{name}: cached tokens: one gateway − three that share, points"
        made.append(goal.value(lost, "points", 100 * (one - shared)))
        each = [100 * (run[0].cached_share - run[1].cached_share) for run in seeds]
        error = stdev(each) / len(each) ** 0.5 if len(each) > 1 else None
        made.append(goal.value(f"{lost}: standard error over {len(each)} seeds", "points", error))
        made += _latency_row(name, seeds, goal)
        for form, share in zip(TOPOLOGIES[1:], (shared, *others), strict=True):
            made.append(
                goal.ratio(f"{name}: cached tokens: {form.name} ÷ one", "share", share, TOPOLOGIES[0].name, one)
            )
        for seed, run in enumerate(seeds):
            for form, figures in zip(TOPOLOGIES, run, strict=True):
                made.append(
                    goal.value(f"{name}, seed {seed}: cached tokens: {form.name}", "share", figures.cached_share)
                )
    failed = "requests that failed"
    failures = sum(each.failures for seeds in found.values() for run in seeds for each in run)
    return [*made, goal.value(failed, "requests", failures)]


def _latency_row(name: str, seeds: Sequence[Sequence[SharingFigures]], goal: Goals) -> Iterator[ResultRow]:
    """Yields rows on the wait for Redis, with a near one and a far one: the requests of all seeds
    together."""
    for what, read in (("until an engine has it", _gateway_milliseconds), ("whole", _total_milliseconds)):
        near, far = [percentile([value for run in seeds for value in read(run[form])]) for form in (1, 2)]
        metric = f"{name}: p99 of a request, {what}: Redis 200 ms away − near"
        longer = None if near is None or far is None else far - near
        yield goal.value(metric, "s", longer)
        yield goal.ratio(f"{name}: p99 of a request, {what}: Redis 200 ms away ÷ near", "s", far, "near", near)


def _gateway_milliseconds(one: SharingFigures) -> Sequence[float]:
    return one.own_seconds


def _total_milliseconds(one: SharingFigures) -> Sequence[float]:
    return one.whole_seconds


def percentile(values: Sequence[float], share: float = 0.99) -> float | None:
    """Returns a percentile of sorted values; None where there are none."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else None


async def _runs(setting: FleetSetting, seed: int, folder: Path) -> list[SharingFigures]:
    """Returns the figures of each topology."""
    found = []
    for form in TOPOLOGIES:
        async with AsyncExitStack() as stack:
            redis = None if form.away_seconds is None else await _redis(stack, folder, form.away_seconds)
            traffic = AgentTraffic(sessions(setting.sessions, seed), seed)
            found.append(await measure(form.gateways, traffic, redis=redis, folder=folder, setting=setting))
    return found


async def _redis(stack: AsyncExitStack, folder: Path, away_seconds: float) -> str:
    """Starts a server for this run and a link of this delay; returns its URL."""
    server = stack.enter_context(running_valkey(folder))
    if not away_seconds:
        return server.url
    return f"redis://127.0.0.1:{await stack.enter_async_context(slow_link(server.path, away_seconds))}/0"


async def _main(seeds: int, out: Path) -> None:
    found: dict[str, list[list[SharingFigures]]] = {name: [] for name in SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        for name, setting in SETTINGS.items():
            for seed in range(seeds):
                found[name].append(await _runs(setting, seed, Path(folder)))
                print(name, seed, *[f"{one.cached_share:.4f}" for one in found[name][-1]], flush=True)
    write_results(_NAME, rows(found), seed=0, file=out)


def main(arguments: list[str]) -> int:
    """Measures, writes and prints."""
    given = parse_options(_NAME, "Several gateways as one.", arguments, seeds=5)
    asyncio.run(_main(given.seeds, given.out))
    return 0

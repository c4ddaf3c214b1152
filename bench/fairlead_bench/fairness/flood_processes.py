"""A flooding tenant and steady ones, on processes: gateways with one Redis, engines, and a client.

Two steady tenants send less than their shares, by Poisson. A flood keeps 100 requests in flight.
The engines are simulated ones over HTTP that compute eight requests at a time: by their sequences,
or by their memory. They are slow, so that a machine of two cores is less than half busy.

In each run, the same requests go through one ideal queue (`ideal_queue`). It takes the decode
times that this run measured, and the time to a first token that one request alone takes.
"""

import asyncio
import json
import os
import random
import re
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.file import write_fleet_file
from fairlead_bench.fairness.ideal_queue import ClosedLoop, IdealRun, QueuedWork, ideal_run
from fairlead_gateway.worker.api_keys import key_digest
from fairlead_testing.engines.simulated_process import engine_processes
from fairlead_testing.gateway.gateway_process import gateway_process
from fairlead_testing.gateway.running_gateway import MODEL_KEY, fleet_of
from fairlead_testing.http.raw_client import get_request, post_request, send
from fairlead_testing.redis.valkey_cluster import HOST, ValkeyGroup

PEPPER = "the pepper of this benchmark"
FLOOD, STEADY = "flood", ("steady-1", "steady-2")
ENGINES, PER_ENGINE = 2, 8
IN_FLIGHT = 100
STEADY_RATE = 1.5
PROMPT_WORDS = 150
PROMPT_TOKENS = 310
"""As the engines count such a prompt."""
OUTPUT_TOKENS = (24, 36, 48)
WARM_UP_SECONDS = 20.0
"""A flood that begins at once finds gateways that know neither lengths nor one another."""
_STEP_SECONDS, _PREFILL_TOKEN_SECONDS = 0.044, 1e-4
_MEMORY_PER_REQUEST = 23 * 16
"""Tokens of a prompt and the longest answer, in whole blocks."""
BOUNDS = ("sequences", "memory")
_OFFERING = 4
_TOKEN = re.compile(rb'^data: .*"content": ?"(?!")')


def engine_profile(bound: str) -> EngineProfile:
    """Returns the profile of engines that compute eight requests at a time."""
    profile = EngineProfile("flood", _PREFILL_TOKEN_SECONDS, step_seconds=_STEP_SECONDS, step_tokens=2_048)
    if bound == "sequences":
        return replace(profile, max_sequences=PER_ENGINE, kv_tokens=170 * _MEMORY_PER_REQUEST)
    return replace(profile, max_sequences=256, kv_tokens=int((PER_ENGINE + 0.5) * _MEMORY_PER_REQUEST))


@dataclass(slots=True)
class Answer:
    """One request: seconds since the run began."""

    tenant: str
    tokens: int
    sent_at: float
    first_at: float = 0.0
    done_at: float = 0.0
    status: int = 0


@dataclass(slots=True)
class FloodRun:
    """A run: what tenants got, and what an ideal queue would have given them.

    queued: requests in the queues of the engines, at each sample.
    busy: share of the machine that was busy.
    """

    answers: list[Answer]
    ideal: IdealRun
    alone_seconds: float
    seconds: float
    queued: list[float] = field(default_factory=list)
    busy: float = 0.0

    def first_tokens(self, tenants: Sequence[str]) -> list[float]:
        """Returns the seconds to the first token after the warm-up."""
        return [
            one.first_at - one.sent_at
            for one in self.answers
            if one.tenant in tenants and one.status == 200 and WARM_UP_SECONDS <= one.sent_at < self.seconds
        ]

    def ideal_first_tokens(self, tenants: Sequence[str]) -> list[float]:
        """Returns the same of the ideal queue."""
        return [
            wait + self.alone_seconds
            for tenant in tenants
            for arrival, wait in self.ideal.waits.get(tenant, ())
            if WARM_UP_SECONDS <= arrival < self.seconds
        ]

    def throughput(self) -> float:
        """Returns the tokens a second of complete answers after the warm-up."""
        return sum(self.served(tenant) for tenant in {one.tenant for one in self.answers}) / (
            self.seconds - WARM_UP_SECONDS
        )

    def ideal_throughput(self) -> float:
        """Returns the tokens a second if all sequences computed such answers all the time."""
        done = [one for one in self.answers if one.status == 200 and one.done_at]
        taken = sum(self.alone_seconds + one.done_at - one.first_at for one in done)
        return ENGINES * PER_ENGINE * sum(one.tokens for one in done) / taken

    def mean_queue(self) -> float:
        """Returns how many requests waited in the engines, on average."""
        return sum(self.queued) / max(1, len(self.queued))

    def served(self, tenant: str) -> float:
        """Returns the tokens that a tenant got between warm-up and end."""
        found = [one for one in self.answers if one.tenant == tenant and one.status == 200]
        return sum(one.tokens for one in found if WARM_UP_SECONDS <= one.done_at < self.seconds)


@asynccontextmanager
async def _installation(
    profile: EngineProfile, gateways: int, weights: Mapping[str, float]
) -> AsyncIterator[tuple[list[str], list[str]]]:
    """Runs engines and gateways; yields the URLs of both."""
    os.environ["FAIRLEAD_KEY_PEPPER"] = PEPPER
    group = ValkeyGroup()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            redis = group.start(folder)
            async with AsyncExitStack() as stack:
                written = json.dumps({one: getattr(profile, one) for one in profile.__slots__})
                options = (
                    "--profile",
                    written,
                    "--answer-length",
                    "100000",
                    "--num-gpu-blocks-override",
                    str(profile.kv_tokens // 16),
                )
                engines = await stack.enter_async_context(
                    engine_processes(ENGINES, *options, "--block-tokens", "16", "--max-model-len", "2048")
                )
                fleet = fleet_of([engine.url for engine in engines])
                instances = tuple(replace(one, profile=profile) for one in fleet.instances[MODEL_KEY])
                write_fleet_file(folder / "fleet.yaml", replace(fleet, instances={MODEL_KEY: instances}))
                (folder / "tenants.yaml").write_text("---\n".join(_tenant(*one) for one in weights.items()))
                arguments = (
                    "--tenants",
                    str(folder / "tenants.yaml"),
                    "--redis",
                    f"redis://{HOST}:{redis.port}",
                    "--workers",
                    "1",
                )
                running = [
                    await stack.enter_async_context(gateway_process(folder / "fleet.yaml", *arguments))
                    for _ in range(gateways)
                ]
                yield [one.url for one in running], [one.url for one in engines]
        finally:
            group.stop()


def _tenant(name: str, weight: float) -> str:
    digest = key_digest(name.encode(), PEPPER.encode()).hex()
    return (
        "apiVersion: serving.fairlead.io/v1alpha1\nkind: ModelTenant\n"
        f'metadata: {{name: {name}}}\nspec: {{keys: [{{name: k, digest: "{digest}"}}], weight: {weight:g}}}\n'
    )


class _Client:
    """Sends the requests of all tenants to the gateways in turn, over a connection each."""

    def __init__(self, urls: Sequence[str], seed: int) -> None:
        self._urls = [urlsplit(url) for url in urls]
        self._random = random.Random(seed)
        self._number = 0
        self.begun = time.monotonic()
        self.answers: list[Answer] = []

    def now(self) -> float:
        return time.monotonic() - self.begun

    async def send(self, tenant: str) -> Answer:
        """Streams one answer."""
        self._number += 1
        tokens, url = self._random.choice(OUTPUT_TOKENS), self._urls[self._number % len(self._urls)]
        text = f"{tenant} {self._number} " + "word " * PROMPT_WORDS
        body = {"model": "tiny", "stream": True, "max_tokens": tokens, "messages": [{"role": "user", "content": text}]}
        more = f"authorization: Bearer {tenant}\r\ncontent-type: application/json\r\n"
        answer = Answer(tenant, tokens, self.now())
        self.answers.append(answer)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        try:
            writer.write(post_request(body, more=more))
            answer.status = int((await reader.readline()).split()[1])
            while line := await reader.readline():
                if not answer.first_at and _TOKEN.search(line) is not None:
                    answer.first_at = self.now()
        finally:
            writer.close()
        answer.done_at = self.now()
        return answer

    async def steady(self, tenant: str, rate: float, seconds: float) -> None:
        """Sends by Poisson until the end, and waits for the answers."""
        random_, at = random.Random(f"{tenant} {rate}"), 0.0
        tasks = []
        while (at := at + random_.expovariate(rate)) < seconds:
            await asyncio.sleep(max(0.0, at - self.now()))
            tasks.append(asyncio.create_task(self.send(tenant)))
        await asyncio.gather(*tasks)

    async def flood(self, tenant: str, seconds: float) -> None:
        """Sends one request after the other until the end."""
        while self.now() < seconds:
            answer = await self.send(tenant)
            if answer.status != 200:
                await asyncio.sleep(0.2)


async def _sample_queues(engines: Sequence[str], client: _Client, seconds: float, found: list[float]) -> None:
    """Notes how many requests wait in the engines, twice a second."""
    while client.now() < seconds:
        waiting = 0.0
        for engine in engines:
            (page,) = await send(engine, get_request("/metrics"))
            lines = [line for line in page.body.splitlines() if line.startswith(b"vllm:num_requests_waiting{")]
            waiting += sum(float(line.split()[-1]) for line in lines)
        if client.now() >= WARM_UP_SECONDS:
            found.append(waiting)
        await asyncio.sleep(0.5)


async def flood_run(
    bound: str,
    gateways: int,
    seconds: float,
    seed: int,
    weights: Mapping[str, float],
    floods: Mapping[str, int],
) -> FloodRun:
    """Returns a run with the flood and the steady tenants, or with several floods alone.

    floods: how many requests each keeps in flight; other callers of `weights` are steady.
    """
    steady = [tenant for tenant in weights if tenant not in floods]
    async with _installation(engine_profile(bound), gateways, weights) as (urls, engines):
        client = _Client(urls, seed)
        for tenant in [*weights] * 3:  # alone: the time to a first token without others
            await client.send(tenant)
        alone = median(one.first_at - one.sent_at for one in client.answers[len(weights) :])
        client.answers.clear()
        client.begun = time.monotonic()
        queued: list[float] = []
        before = _busy_seconds()
        await asyncio.gather(
            *(client.steady(tenant, STEADY_RATE, seconds) for tenant in steady),
            *(client.flood(tenant, seconds) for tenant, number in floods.items() for _ in range(number)),
            _sample_queues(engines, client, seconds, queued),
        )
        busy = (_busy_seconds() - before) / client.now() / (os.cpu_count() or 1)
    answers = client.answers
    done = [one for one in answers if one.status == 200 and one.done_at]
    return FloodRun(answers, _ideal(done, alone, seconds, weights, floods), alone, seconds, queued, busy)


async def offered_run(bound: str, gateways: int, seconds: float, seed: int, load: float) -> FloodRun:
    """Returns a run in which four equal tenants offer a multiple of what the engines can do."""
    tenants = [f"tenant-{number}" for number in range(_OFFERING)]
    per_second = ENGINES * PER_ENGINE / (_STEP_SECONDS * (1 + sum(OUTPUT_TOKENS) / len(OUTPUT_TOKENS)))
    async with _installation(engine_profile(bound), gateways, dict.fromkeys(tenants, 1.0)) as (urls, _):
        client = _Client(urls, seed)
        sending = [
            asyncio.create_task(client.steady(tenant, load * per_second / _OFFERING, seconds)) for tenant in tenants
        ]
        await asyncio.sleep(seconds)
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
    return FloodRun(client.answers, IdealRun(), 0.0, seconds)


def _ideal(
    done: Sequence[Answer], alone: float, seconds: float, weights: Mapping[str, float], floods: Mapping[str, int]
) -> IdealRun:
    def taken(one: Answer) -> float:
        return alone + one.done_at - one.first_at

    arrivals = [QueuedWork(one.sent_at, one.tenant, taken(one)) for one in done if one.tenant not in floods]
    loops = [
        ClosedLoop(tenant, number, [taken(one) for one in done if one.tenant == tenant] or [1.0], seconds)
        for tenant, number in floods.items()
    ]
    return ideal_run(ENGINES * PER_ENGINE, arrivals, loops, weights)


def _busy_seconds() -> float:
    fields = [int(one) for one in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")

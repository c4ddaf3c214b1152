"""Pairs of requests with one idempotency key at gateways that are killed meanwhile.

Counts how often the engine finished each pair. A pair may be finished twice only if the worker that
owned its key, or the gateway that computed it first, ended between both.
"""

import asyncio
import math
import os
import random
import re
import signal
import ssl
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from fairlead_gateway.caller_key import ANONYMOUS
from fairlead_gateway.idempotency.worker.owner_forwarding import owner_index, rank_gateways
from fairlead_testing.engines.scripted import EngineCall, Script, ScriptedEngine, token
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.gateway.running_gateway import GOOD
from fairlead_testing.http.raw_client import RawConnection, RawResponse, post_request, send
from fairlead_testing.processes import is_alive, unused_ports
from fairlead_testing.waiting import wait_until

_MAX_TRIES = 200
_AT_ONCE = 32


def answers_posts(script: Script) -> Script:
    """Returns the script for requests with a body; others, of the supervisor, get 404."""

    async def answer(call: EngineCall) -> None:
        await (script(call) if call.body else call.respond({}, "404 Not Found"))

    return answer


def count_posts(engine: ScriptedEngine) -> int:
    return sum(bool(call.body) for call in engine.calls)


@dataclass(slots=True)
class PairedEngine:
    """An engine that answers each request with text of its own.

    finished: by the name of a pair, the worker processes that asked, and when it was done.

    seconds: that an answer takes.
    """

    seconds: float = 0.005
    finished: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    count: int = 0

    async def script(self, call: EngineCall) -> None:
        """Answers one request; records it when the whole answer was sent."""
        name = str(call.json["user"])
        self.count += 1
        text = f"answer {self.count}"
        if call.json.get("stream"):
            await call.start_stream()
            await call.event(token(text))
            await asyncio.sleep(self.seconds)
            await call.finish()
        else:
            await asyncio.sleep(self.seconds)
            await call.respond({"object": "chat.completion", "choices": [{"index": 0, "text": text}]})
        worker = str(call.header("x-request-id")).rpartition("-")[0]  # the part that one process has alone
        self.finished.setdefault(name, []).append((worker, time.monotonic()))


@dataclass(slots=True)
class PairCounts:
    """The outcome of all pairs.

    different: pairs whose two answers differ, and which were finished once.
    twice: pairs that were finished more than once.
    unexplained: further times that no kill explains.
    """

    pairs: int = 0
    kills: int = 0
    retries: int = 0
    different: int = 0
    twice: int = 0
    unexplained: int = 0
    statuses: Counter[int] = field(default_factory=Counter)


class Kills:
    """Kills under pairs, and which further finishes they explain."""

    @abstractmethod
    async def strike(self, draw: random.Random) -> int:
        """Kills a process, or starts one again. Returns how many were killed."""

    @abstractmethod
    def explains(self, name: str, before: tuple[str, float], after: tuple[str, float]) -> bool:
        """Whether a pair could be finished again: by which process, and when, both times."""


class WorkerKills(Kills):
    """Kills of single workers of one gateway, which starts them again."""

    def __init__(self, workers: int, worker_pids: Callable[[], set[int]]) -> None:
        self._workers = workers
        self._worker_pids = worker_pids
        self._killed: dict[int, list[float]] = {}

    async def strike(self, draw: random.Random) -> int:
        """Kills a worker."""
        pid = draw.choice(sorted(self._worker_pids()))
        self._killed.setdefault(worker_number(pid) - 1, []).append(time.monotonic())
        os.kill(pid, signal.SIGKILL)
        await wait_until(lambda: not is_alive(pid))
        return 1

    def explains(self, name: str, before: tuple[str, float], after: tuple[str, float]) -> bool:
        ends = self._killed.get(owner_index(ANONYMOUS, name.encode(), self._workers), [])
        return before[0] != after[0] and any(end <= after[1] for end in ends)


class GatewayPair:
    """Two gateways with two workers each, that share idempotency keys.

    tls: for clients of gateways whose options name a certificate.
    """

    def __init__(self, fleet: Path, options: Sequence[str] = ()) -> None:
        self.addresses = [f"127.0.0.1:{port}" for port in unused_ports(2)]
        self.tls: ssl.SSLContext | None = None
        self._fleet = fleet
        self._options = options

    @property
    def urls(self) -> list[str]:
        return [f"{'http' if self.tls is None else 'https'}://{address}" for address in self.addresses]

    def start(self, address: str) -> AbstractAsyncContextManager[GatewayProcess]:
        names = ("--workers", "2", "--gateway-addresses", ",".join(self.addresses))
        return gateway_process(self._fleet, *names, *self._options, listen=address)

    def key_of(self, address: str, *, exclude: str = "") -> str:
        names = (f"k-{number}" for number in range(100) if f"k-{number}" != exclude)
        return next(name for name in names if rank_gateways(ANONYMOUS, name.encode(), self.addresses)[0] == address)

    async def post(self, address: str, body: object, key: str, more: str = "") -> RawResponse:
        url = self.urls[self.addresses.index(address)]
        return (await send(url, post_request(body, more=f"idempotency-key: {key}\r\n{more}"), self.tls))[0]


class GatewayKills(Kills):
    """Kills of whole gateways, one at a time; each starts again at its address.

    reruns: of all gateways, by reason, as far as they were read before a kill.
    """

    def __init__(self, pair: GatewayPair) -> None:
        self._pair = pair
        self._running: dict[str, tuple[AsyncExitStack, GatewayProcess, list[str]]] = {}
        self._ended: dict[str, float] = {}
        self.reruns: Counter[str] = Counter()

    async def __aenter__(self) -> "GatewayKills":
        for address in self._pair.addresses:
            await self._run(address)
        return self

    async def __aexit__(self, *_: object) -> None:
        for stack, _gateway, _names in self._running.values():
            await stack.aclose()

    async def strike(self, draw: random.Random) -> int:
        """Starts the gateway again that is down; if all run, kills one."""
        for address in self._pair.addresses:
            if address not in self._running:
                await self._run(address)
                return 0
        stack, gateway, names = self._running.pop(draw.choice(self._pair.addresses))
        await self.count_reruns(gateway)
        pids = gateway.worker_pids()
        self._ended.update(dict.fromkeys(names, time.monotonic()))
        gateway.process.kill()  # first, or it would replace its workers
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await wait_until(lambda: not any(is_alive(pid) for pid in pids))
        await stack.aclose()
        return 1

    def explains(self, name: str, before: tuple[str, float], after: tuple[str, float]) -> bool:
        del name
        return self._ended.get(before[0], math.inf) <= after[1]

    async def finish(self) -> None:
        for _, gateway, _ in self._running.values():
            await self.count_reruns(gateway)

    async def count_reruns(self, gateway: GatewayProcess) -> None:
        """Adds the counters of a gateway."""
        for reason in ("gateway-lost", "worker-lost", "failed", "abandoned"):
            found = await gateway.samples("fairlead_gateway_idempotency_reruns_total", f'"{reason}"')
            self.reruns[reason] += int(sum(found))

    async def _run(self, address: str) -> None:
        stack = AsyncExitStack()
        gateway = await stack.enter_async_context(self._pair.start(address))
        names = []
        for line in await gateway.connections(2):
            names.append(await line.worker_name())
            await line.connection.close()
        self._running[address] = stack, gateway, names


async def run_pairs(
    urls: Sequence[str], engine: PairedEngine, pairs: int, kills: Kills, *, strike_every: int
) -> PairCounts:
    """Sends pairs of equal requests, the halves to different URLs, and strikes after every
    `strike_every` pairs.
    """
    counts, draw = PairCounts(pairs=pairs), random.Random(pairs)
    room, striking = asyncio.Semaphore(_AT_ONCE), asyncio.Lock()

    async def strike() -> None:
        async with striking:
            counts.kills += await kills.strike(draw)

    async def pair(number: int) -> None:
        async with room:
            name = f"pair-{number}"
            body = GOOD | {"user": name, "stream": number % 2 == 1}
            delay = draw.random() * 4 * engine.seconds
            first, second = await asyncio.gather(
                _send_until_answered(urls, body, name, 0.0, counts),
                _send_until_answered(urls[::-1], body, name, delay, counts),
            )
            if first != second and len(engine.finished.get(name, ())) < 2:
                counts.different += 1

    async with asyncio.TaskGroup() as group:
        for number in range(pairs):
            if number % strike_every == strike_every - 1:
                group.create_task(strike())
            async with room:  # no more pairs than run at once
                pass
            group.create_task(pair(number))
            await asyncio.sleep(0)
    for name, times in engine.finished.items():
        counts.twice += len(times) > 1
        counts.unexplained += sum(not kills.explains(name, before, after) for before, after in pairwise(times))
    return counts


async def _send_until_answered(urls: Sequence[str], body: object, name: str, delay: float, counts: PairCounts) -> bytes:
    """Sends a request as an SDK does: again after a lost connection and after 5xx."""
    await asyncio.sleep(delay)
    for attempt in range(_MAX_TRIES):
        try:
            connection = await RawConnection.connect(urls[attempt % len(urls)])
        except OSError:
            counts.retries += 1
            await asyncio.sleep(0.05)
            continue
        try:
            await connection.send(post_request(body, more=f"idempotency-key: {name}\r\n"))
            answer = await connection.read_response()
            if answer.complete:
                counts.statuses[answer.status] += 1
            if answer.complete and answer.status < 500:
                return answer.body
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            await connection.close()
        counts.retries += 1
        await asyncio.sleep(0.05)
    raise AssertionError(f"{name} has no answer")


def worker_number(pid: int) -> int:
    """Returns the number of a worker process."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    found = re.search(rb"--number (\d+)", command)
    assert found is not None, command
    return int(found[1])

"""Pairs of requests with one idempotency key at a gateway whose workers are killed meanwhile.

Counts how often the engine finished each pair. A pair may be finished twice only if the worker that
owned its key ended between both.
"""

import asyncio
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from fairlead_gateway.caller_key import ANONYMOUS
from fairlead_gateway.idempotency.worker.owner_forwarding import owner_index
from fairlead_testing.engines.scripted import EngineCall, Script, ScriptedEngine, token
from fairlead_testing.gateway.running_gateway import GOOD
from fairlead_testing.http.raw_client import RawConnection, post_request
from fairlead_testing.processes import is_alive
from fairlead_testing.waiting import wait_until

_MAX_TRIES = 200
_AT_ONCE = 32


def answers_posts(script: Script) -> Script:
    """Returns the script for requests with a body; others, of the supervisor, get 404."""

    async def answer(call: EngineCall) -> None:
        await (script(call) if call.body else call.respond({}, "404 Not Found"))

    return answer


def count_posts(engine: ScriptedEngine) -> int:
    """Returns the number of requests with a body that an engine got."""
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

    different: pairs whose two answers differ, and whose owner was not killed.
    twice: pairs that were finished twice.
    unexplained: those of them that one process asked for twice, or whose owner was not killed.
    """

    pairs: int = 0
    kills: int = 0
    retries: int = 0
    different: int = 0
    twice: int = 0
    unexplained: int = 0
    statuses: Counter[int] = field(default_factory=Counter)


async def run_pairs(
    url: str,
    engine: PairedEngine,
    pairs: int,
    *,
    workers: int,
    worker_pids: Callable[[], set[int]],
    kill_every: int,
) -> PairCounts:
    """Sends pairs of equal requests, and kills a worker after every `kill_every` pairs."""
    counts, draw = PairCounts(pairs=pairs), random.Random(pairs)
    killed: dict[int, list[float]] = {}
    room = asyncio.Semaphore(_AT_ONCE)

    async def kill() -> None:
        pid = draw.choice(sorted(worker_pids()))
        killed.setdefault(worker_number(pid) - 1, []).append(time.monotonic())
        os.kill(pid, signal.SIGKILL)
        await wait_until(lambda: not is_alive(pid))
        counts.kills += 1

    async def pair(number: int) -> None:
        async with room:
            name = f"pair-{number}"
            body = GOOD | {"user": name, "stream": number % 2 == 1}
            first, second = await asyncio.gather(
                _send_until_answered(url, body, name, 0.0, counts),
                _send_until_answered(url, body, name, draw.random() * 4 * engine.seconds, counts),
            )
            if first != second and len(engine.finished.get(name, ())) < 2:
                counts.different += 1

    async with asyncio.TaskGroup() as group:
        for number in range(pairs):
            if number % kill_every == kill_every - 1:
                await kill()
            async with room:  # no more pairs than run at once
                pass
            group.create_task(pair(number))
            await asyncio.sleep(0)
    for name, times in engine.finished.items():
        if len(times) > 1:
            counts.twice += 1
            ends = killed.get(owner_index(ANONYMOUS, name.encode(), workers), [])
            for (before, _), (after, finished) in pairwise(times):
                counts.unexplained += before == after or not any(end <= finished for end in ends)
    return counts


async def _send_until_answered(url: str, body: object, name: str, delay: float, counts: PairCounts) -> bytes:
    """Sends a request as an SDK does: again after a lost connection and after 5xx."""
    await asyncio.sleep(delay)
    for _ in range(_MAX_TRIES):
        try:
            connection = await RawConnection.connect(url)
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

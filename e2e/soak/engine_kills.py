"""Engines that die under load: each time one that has just answered, so that it has work.

Half of the requests are greedy streams, which another engine can continue. A quarter are streams
that none can continue, and a quarter are plain. A request that had not begun must be answered
whole. Engines come back at once on the same port.

The next engine dies when all requests of the last death are over. A request that meets two deaths
counts as their cause and is refused (row 24 of docs/reference/faults.md), as it should be.
"""

import asyncio
import random
import time
from collections import Counter
from pathlib import Path

from e2e.soak.gateway_processes import (
    SEED,
    ForkedEngines,
    chat_body,
    metric,
    running_gateway,
    scaled_count,
    send_request,
    start_engines,
    write,
    write_fleet,
)
from fairlead_testing.reports import ReportLine

ENGINES = 8
TOKENS = 40
PER_SECOND = 100.0
KILL_SECONDS = 0.45
_KNOWN = ("complete", "ended with an error event")
KILLS = ("FAIRLEAD_SOAK_KILLS", 12, 1_000)


class RequestLoad:
    """Open-loop requests, and what came of them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._begun = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        self.outcomes: Counter[str] = Counter()
        self.texts: dict[int, set[str]] = {}
        self.busy: list[str] = []
        self.strange: list[dict[str, object]] = []
        self.kills = 0
        self.sent = 0

    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._begun

    def under_way(self) -> "list[asyncio.Task[None]]":
        """The requests that wait for their answers now."""
        return list(self._tasks)

    async def run(self, done: asyncio.Event) -> None:
        """Send until ``done``, then wait for all answers."""
        begun = self._begun
        while not done.is_set():
            while self.sent < (time.monotonic() - begun) * PER_SECOND:
                task = asyncio.create_task(self._one(self.sent))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                self.sent += 1
            await asyncio.sleep(0.005)
        await asyncio.gather(*self._tasks)

    async def _one(self, number: int) -> None:
        greedy = number % 4 < 2
        body = chat_body(number, stream=number % 4 != 3, tokens=TOKENS, greedy=greedy)
        outcome, text, instance = await send_request(self._url, body)
        self.outcomes[outcome] += 1
        if outcome == "complete" and greedy:
            self.texts.setdefault(number % 40, set()).add(text)
        if outcome not in _KNOWN and len(self.strange) < 20:
            self.strange.append(
                {"outcome": outcome, "request": number, "kills": self.kills, "seconds": round(self.seconds(), 2)}
            )
        if instance.startswith("e-"):
            self.busy.append(instance)
            del self.busy[:-20]


async def kill_engines(load: RequestLoad, found: ForkedEngines, kills: int, draw: random.Random) -> None:
    """Kill one that has just answered, bring it back, and so on."""
    met: list[asyncio.Task[None]] = []
    for _ in range(kills):
        await asyncio.sleep(KILL_SECONDS)
        await asyncio.gather(*met)
        met = load.under_way()
        names = [name for name in load.busy if int(name[2]) in found.running]
        number = int(draw.choice(names)[2]) if names else draw.choice(list(found.running))
        found.kill(number)
        load.kills = found.kills
        await found.start(number)


async def run(folder: Path) -> list[ReportLine]:
    """The part; the lines that do not hold."""
    begun, kills = time.monotonic(), scaled_count(*KILLS)
    async with start_engines(ENGINES, "--model", "tiny", "--served-model-name", "tiny", "--speed", "1") as found:
        write_fleet(folder / "fleet.yaml", found.urls)
        async with running_gateway(folder / "fleet.yaml") as running:
            load, done = RequestLoad(running.url), asyncio.Event()
            loading = asyncio.create_task(load.run(done))
            await kill_engines(load, found, kills, random.Random(SEED))
            done.set()
            await loading
            continued = {
                how: int(sum(await metric(running, "fairlead_gateway_continued_total", f'result="{how}"')))
                for how in ("whole", "broken")
            }
    seen = load.outcomes
    lost = {name: number for name, number in seen.items() if name not in _KNOWN}
    untrue = seen["looks complete and is not"] + seen["cut silently"]
    different = sum(len(texts) > 1 for texts in load.texts.values())
    lines = [
        ReportLine(f"{kills} engine kills under load", found.kills, found.kills == kills),
        ReportLine(
            "0 lost requests that had not started",
            lost,
            not any(name.startswith(("status", "no answer")) for name in lost),
        ),
        ReportLine("0 hangs", seen["hangs"], not seen["hangs"]),
        ReportLine("0 streams that look complete and are not", untrue, not untrue),
        ReportLine("greedy answers of one conversation are one text, continued or not", different, not different),
    ]
    figures = {
        "kills": found.kills,
        "requests": seen.total(),
        "outcomes": dict(sorted(seen.items())),
        "continued": continued,
        "details": load.strange,
    }
    return write("engine_kills", begun, figures, lines)

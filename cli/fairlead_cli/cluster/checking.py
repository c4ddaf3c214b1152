"""``fairlead check``, from its arguments to its exit code."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from fairlead.clock import Clock, SystemClock
from fairlead.units import seconds
from fairlead_cli.cluster.checks import judge, problem
from fairlead_cli.cluster.gathering import DEFAULT_PLACE, gather
from fairlead_cli.cluster.printing import as_json, lines, summary
from fairlead_cli.cluster.verdict import Result
from fairlead_cli.cluster.way import Way, find, opened
from fairlead_cli.errors import NoCluster
from fairlead_cli.paper import paper

OK, PROBLEM, UNREACHABLE = 0, 1, 3
AGAIN_SECONDS: Final = 2.0
Pause = Callable[[float], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Asked:
    """What was typed."""

    way: Way
    pre: bool = False
    wait: str | None = None
    output: str = "table"


def run(asked: Asked) -> int:
    """Gather, judge, print. Raises BadInput for a ``--wait`` that is no duration."""
    limit = None if asked.wait is None else seconds(asked.wait, field="--wait")
    clock = SystemClock()
    try:
        results = asyncio.run(_until_well(asked, limit, clock, asyncio.sleep))
    except NoCluster as error:
        print(f"fairlead check: {error}", file=sys.stderr)
        return UNREACHABLE
    if asked.output == "json":
        print(as_json(results, before=asked.pre))
    else:
        show(results)
    return PROBLEM if problem(results) else OK


async def _until_well(asked: Asked, limit: float | None, clock: Clock, pause: Pause) -> tuple[Result, ...]:
    """Once; or again until nothing fails or the time is over. What was found last is what counts."""
    start = clock.now()
    while True:
        try:
            results = await looked(asked, clock)
        except NoCluster:
            if limit is None or clock.now() - start >= limit:
                raise
            results = ()
        if limit is None or (results and not problem(results)) or clock.now() - start >= limit:
            return results
        if results and sys.stderr.isatty():
            print(f"fairlead check: {summary(results)}; looking again", file=sys.stderr)
        await pause(min(AGAIN_SECONDS, limit - (clock.now() - start)))


async def looked(asked: Asked, clock: Clock) -> tuple[Result, ...]:
    """One look. Raises NoCluster."""
    place = asked.way.namespace or (DEFAULT_PLACE if asked.pre else None)
    async with opened(find(asked.way)) as (api, version):
        return judge(await gather(api, version, clock, place=place, before=asked.pre), before=asked.pre)


def show(results: tuple[Result, ...]) -> None:
    """For people."""
    console = paper()
    for line in lines(results):
        console.print(line, soft_wrap=True)

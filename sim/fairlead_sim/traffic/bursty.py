"""Bursty chat over 12 prefixes (Zipf 1) of 0 to 6 blocks: about every 90 s there is five times as much of it for about 15 s."""

import random
from typing import Final

from fairlead_sim.traces import TraceRequest
from fairlead_sim.traffic.chat import TURNS, chat
from fairlead_sim.traffic.prompt import (
    HOUR_REQUESTS,
    HOUR_SECONDS,
    Blocks,
    Collected,
    Prompt,
    Zipf,
    arrivals,
    is_high,
    two_states,
)

PREFIXES: Final = 12
PREFIX_BLOCKS: Final = (0, 6)
BURST: Final = 5.0
BURST_SECONDS: Final = 15.0
EVERY_SECONDS: Final = 90.0


def bursty(requests: int, *, seed: int) -> list[TraceRequest]:
    """The first so many requests; equal arguments give equal traffic."""
    random_, fresh, into = random.Random(f"bursty {seed}"), Blocks(), Collected(requests)
    prefixes = [fresh.run(random_.randint(*PREFIX_BLOCKS)) for _ in range(PREFIXES)]
    popular = Zipf(PREFIXES, 1.0)
    bursts = two_states(random_, EVERY_SECONDS - BURST_SECONDS, BURST_SECONDS, into.until)
    mean = 1.0 + (BURST - 1.0) * BURST_SECONDS / EVERY_SECONDS
    rate = HOUR_REQUESTS / HOUR_SECONDS / TURNS / mean
    times = arrivals(random_, lambda at: rate * (BURST if is_high(bursts, at) else 1.0), rate * BURST, into.until)
    for number, at in enumerate(times):
        chat(into, random_, at, Prompt(fresh, prefixes[popular.draw(random_)]), f"b{number}")
    return into.first()

"""Bursty chat: sessions over 12 prefixes (Zipf 1) of 0 to 6 blocks.

About every 90 s, five times as many sessions arrive for about 15 s.
"""

import random
from typing import Final

from fairlead_sim.workload.generators.building_blocks import (
    HOUR_REQUESTS,
    HOUR_SECONDS,
    BlockIds,
    GrowingPrompt,
    TrafficBuilder,
    ZipfDistribution,
    is_high,
    poisson_process,
    state_changes,
)
from fairlead_sim.workload.generators.chat import TURNS, add_chat_session
from fairlead_sim.workload.traces import TraceRequest

PREFIXES: Final = 12
PREFIX_BLOCKS: Final = (0, 6)
BURST: Final = 5.0
BURST_SECONDS: Final = 15.0
CYCLE_SECONDS: Final = 90.0


def bursty_chat(requests: int, *, seed: int) -> list[TraceRequest]:
    """Returns the first ``requests`` requests, by arrival; equal arguments give equal traffic."""
    random_, fresh, into = random.Random(f"bursty {seed}"), BlockIds(), TrafficBuilder(requests)
    prefixes = [fresh.take(random_.randint(*PREFIX_BLOCKS)) for _ in range(PREFIXES)]
    popular = ZipfDistribution(PREFIXES, 1.0)
    bursts = state_changes(random_, CYCLE_SECONDS - BURST_SECONDS, BURST_SECONDS, into.until)
    mean = 1.0 + (BURST - 1.0) * BURST_SECONDS / CYCLE_SECONDS
    rate = HOUR_REQUESTS / HOUR_SECONDS / TURNS / mean
    times = poisson_process(
        random_, lambda at: rate * (BURST if is_high(bursts, at) else 1.0), rate * BURST, into.until
    )
    for number, at in enumerate(times):
        add_chat_session(into, random_, at, GrowingPrompt(fresh, prefixes[popular.draw(random_)]), f"b{number}")
    return into.build()

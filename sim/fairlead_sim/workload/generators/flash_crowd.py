"""A flash crowd: chat over 8 prefixes, and three new prefixes with half of the traffic for 150 s
each.
"""

import random
from typing import Final

from fairlead_sim.workload.generators.building_blocks import (
    HOUR_REQUESTS,
    HOUR_SECONDS,
    BlockIds,
    GrowingPrompt,
    TrafficBuilder,
    poisson_process,
)
from fairlead_sim.workload.generators.chat import TURNS, add_chat_session
from fairlead_sim.workload.traces import TraceRequest

PREFIXES: Final = 8
PREFIX_BLOCKS: Final = (0, 3)
CROWDS: Final = 3
CROWD_BLOCKS: Final = 20
CROWD_SECONDS: Final = 150.0


def flash_crowd_traffic(requests: int, *, seed: int) -> list[TraceRequest]:
    """Returns the first ``requests`` requests, by arrival; equal arguments give equal traffic."""
    random_, fresh, into = random.Random(f"flash crowd {seed}"), BlockIds(), TrafficBuilder(requests)
    prefixes = [fresh.take(random_.randint(*PREFIX_BLOCKS)) for _ in range(PREFIXES)]
    crowds = [(into.seconds * (1 + number) / (CROWDS + 1), fresh.take(CROWD_BLOCKS)) for number in range(CROWDS)]
    rate = HOUR_REQUESTS / HOUR_SECONDS / TURNS
    for number, at in enumerate(poisson_process(random_, lambda _: rate, rate, into.until)):
        prefix = random_.choice(prefixes)
        for begin, crowd in crowds:
            if begin <= at < begin + CROWD_SECONDS and random_.random() < 0.5:
                prefix = crowd
        add_chat_session(into, random_, at, GrowingPrompt(fresh, prefix), f"c{number}")
    return into.build()

"""The gateway's choice among ready replicas, by what it counts as their load.

Why: which load a gateway compares decides how well replicas share prompts. With ``PROMPT_WORK`` a
prompt almost never waits while another replica is free; with ``RANDOM_TWO`` it often does.
"""

from collections.abc import Sequence
from enum import Enum, auto
from math import inf
from random import Random

from fairlead_sim.autoscaling.pool import Pool, Replica

REQUEST_TOKENS = 220
"""Prompt tokens that one request in flight counts as, in ``PROMPT_WORK``."""

PoolReplica = tuple[Pool, Replica]


class LoadPolicy(Enum):
    """The load that a gateway compares.

    - RESIDENT_KV: tokens in flight, with uncomputed prompt tokens twice.
    - PROMPT_WORK: uncomputed prompt tokens, and ``REQUEST_TOKENS`` for each request in flight.
    - RANDOM_TWO: requests in flight, of two random replicas.

    The first two are multiplied by the price of a prompt token, so that pools with different
    engines share the load by speed.
    """

    RESIDENT_KV = auto()
    PROMPT_WORK = auto()
    RANDOM_TWO = auto()


class LoadBalancer:
    """The choice of a replica by one policy; ``random_`` draws the two of ``RANDOM_TWO``."""

    def __init__(self, policy: LoadPolicy, random_: Random) -> None:
        self._policy = policy
        self._random = random_

    def pick(self, pools: Sequence[Pool], now: float) -> PoolReplica | None:
        """Returns the least loaded ready replica and its pool; None if no replica is ready."""
        if self._policy is LoadPolicy.RANDOM_TWO:
            return self._pick_of_two(pools, now)
        by_work = self._policy is LoadPolicy.PROMPT_WORK
        least_loaded: PoolReplica | None = None
        least_load = inf
        for pool in pools:
            price = pool.setup.profile.prefill_token_seconds
            for replica in pool.ready:
                engine = replica.engine
                if engine.next_step_at < now:
                    engine.advance(now)
                if by_work:
                    tokens = engine.uncomputed_tokens() + REQUEST_TOKENS * (engine.running() + engine.waiting())
                else:
                    tokens = engine.load_tokens()
                load = tokens * price
                if load < least_load:
                    least_loaded, least_load = (pool, replica), load
        return least_loaded

    def _pick_of_two(self, pools: Sequence[Pool], now: float) -> PoolReplica | None:
        ready = [(pool, replica) for pool in pools for replica in pool.ready]
        if len(ready) < 2:
            return ready[0] if ready else None
        first = int(self._random.random() * len(ready))
        second = int(self._random.random() * (len(ready) - 1))
        second += second >= first
        candidates = ready[first], ready[second]
        for _, replica in candidates:
            if replica.engine.next_step_at < now:
                replica.engine.advance(now)
        return min(candidates, key=_inflight_count)


def _inflight_count(candidate: PoolReplica) -> int:
    engine = candidate[1].engine
    return engine.running() + engine.waiting()

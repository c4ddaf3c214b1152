"""The gateway's routing rules on the plant's load.

They choose the engine that computes a prompt, the accelerator class, and the ready replica. The
plant passes what a gateway would know of both engines, with the true duration of a KV transfer.

Why: which load a gateway compares decides how well replicas share prompts. With ``PROMPT_WORK`` a
prompt almost never waits while another replica is free.
"""

from collections.abc import Callable, Sequence
from enum import Enum, auto
from math import inf

from fairlead.fleet.model import Instance, SloTargets
from fairlead.limits import Limits
from fairlead_autoscaler.core.types import ModelSpec
from fairlead_gateway.routing.accelerator_selection import AcceleratorSelector
from fairlead_gateway.routing.load.inflight import Endpoint, EndpointLoad, InflightTracker, SampledLoads
from fairlead_gateway.routing.load.inter_token_times import InterTokenTimes
from fairlead_gateway.routing.prefill_placement import LOCAL_RULES, PrefillEstimate, place_prefill
from fairlead_gateway.routing.prefix.cache_view import PrefixMatch
from fairlead_sim.autoscaling.pool import Pool, Replica

_MIN_HANDOFF_TOKENS = Limits().handoff_min_tokens

PoolReplica = tuple[Pool, Replica]

REQUEST_TOKENS = 220
"""Prompt tokens that one request in flight counts as, in ``PROMPT_WORK``."""


class PrefillPolicy(Enum):
    """The rule for the engine that computes a prompt.

    - APART: always a prefill engine.
    - BY_LENGTH: the decode engine for prompts below the gateway's limit.
    - SLACK: the gateway's decision by slack.
    """

    APART = auto()
    BY_LENGTH = auto()
    SLACK = auto()


class PrefillPlacement:
    """The prefill placement of one model; it records the prefill work of decode replicas."""

    def __init__(self, policy: PrefillPolicy, model: ModelSpec) -> None:
        self._itl_seconds = model.itl_seconds if policy is PrefillPolicy.SLACK else None
        self._ttft_seconds = model.ttft_seconds
        self._gaps = InterTokenTimes()

    def stays_at_decode(
        self,
        decoder: tuple[Pool, Replica],
        prefiller: tuple[Pool, Replica] | None,
        prompt_tokens: int,
        transfer_seconds: float,
        now: float,
    ) -> bool:
        """Returns whether the decode replica computes the prompt, and records that it does."""
        decode_side = _engine_side(*decoder, prompt_tokens, self._gaps.prefill_share(decoder[1].name, now))
        decision = place_prefill(
            decode_side,
            None if prefiller is None else _engine_side(*prefiller, prompt_tokens, 0.0),
            itl_seconds=self._itl_seconds,
            ttft_seconds=self._ttft_seconds,
            transfer_seconds=transfer_seconds,
            min_remote_tokens=_MIN_HANDOFF_TOKENS,
        )
        stays = decision.rule in LOCAL_RULES
        if stays:
            self._gaps.add_prefill(decode_side.id, decode_side.prefill_seconds, now)
        return stays


def _engine_side(pool: Pool, replica: Replica, prompt_tokens: int, prefill_share: float) -> PrefillEstimate:
    engine, profile = replica.engine, pool.setup.facts.profile
    return PrefillEstimate(
        replica.name,
        profile,
        engine.backlog_seconds,
        (profile or pool.setup.profile).prefill_time(prompt_tokens),
        prompt_tokens,
        0.0,
        engine.running() + engine.waiting(),
        engine.inflight_tokens,
        prefill_share,
    )


class ShapeRouter:
    """The shape routing of one scenario; it learns prices and answer lengths as a gateway does."""

    def __init__(self, model: ModelSpec) -> None:
        self._objectives = SloTargets(
            model.target, model.ttft_seconds, model.ttft_per_kilo_token_seconds, model.itl_seconds
        )
        self._accelerator_kinds = AcceleratorSelector(b"plant")
        self._load_snapshots = SampledLoads(InflightTracker())
        self._ready: tuple[str, ...] = ()
        self._tallies: dict[str, EndpointLoad] = {}

    def on_finished(self, prompt: int, output: int) -> None:
        self._accelerator_kinds.observe_answer(prompt, output)

    def pick(
        self, prompt: int, pools: Sequence[Pool], least_loaded: Callable[[Sequence[Pool]], PoolReplica | None]
    ) -> PoolReplica | None:
        """Returns a replica of the first ranked accelerator class that meets the TTFT target.

        If none does, returns the least loaded replica; None if no replica is ready.

        least_loaded: returns the least loaded replica of the given pools.
        """
        self._refresh(pools)
        if not self._accelerator_kinds.has_choice:
            return least_loaded(pools)
        ranked = self._accelerator_kinds.rank(prompt, None, PrefixMatch(), 1.0, self._load_snapshots)
        self._accelerator_kinds.charge(ranked)
        for kind in ranked.kinds:
            names = {place.id.partition("/")[0] for place in kind.endpoints}
            candidate = least_loaded([pool for pool in pools if pool.name in names])
            if candidate is None:
                continue
            pool, replica = candidate
            ttft_seconds = _backlog_seconds(pool, replica) + pool.setup.profile.prefill_time(prompt)
            if ttft_seconds <= ranked.objective_seconds:
                return candidate
        return least_loaded(pools)

    def _refresh(self, pools: Sequence[Pool]) -> None:
        """Updates the ready replicas and their loads."""
        replicas = [(f"{pool.name}/{replica.name}", pool, replica) for pool in pools for replica in pool.ready]
        ready = tuple([name for name, _, _ in replicas])
        if ready != self._ready:
            self._ready = ready
            self._tallies = {name: EndpointLoad(name) for name in ready}
            profiles = {name: pool.setup.profile for name, pool, _ in replicas}
            instances = [
                Instance(name, "plant", "model", pool.name, "", role=pool.setup.facts.role, profile=profiles[name])
                for name, pool, _ in replicas
            ]
            endpoints = {name: Endpoint(name, profiles[name], self._tallies[name], None) for name in ready}
            self._accelerator_kinds.update(instances, endpoints, self._objectives)
        for name, pool, replica in replicas:
            tally, engine = self._tallies[name], replica.engine
            tally.inflight = engine.running() + engine.waiting()
            tally.inflight_tokens = float(engine.load_tokens())
            tally.backlog_seconds = _backlog_seconds(pool, replica)


def _backlog_seconds(pool: Pool, replica: Replica) -> float:
    """Returns the prefill seconds of uncomputed prompts, which count twice in the load."""
    engine, profile = replica.engine, pool.setup.profile
    resident_tokens = engine.kv_share() * profile.kv_tokens
    return profile.prefill_token_seconds * max(0.0, engine.load_tokens() - resident_tokens) / 2.0


class LoadPolicy(Enum):
    """The load that a gateway compares.

    - RESIDENT_KV: tokens in flight, with uncomputed prompt tokens twice.
    - PROMPT_WORK: uncomputed prompt tokens, and ``REQUEST_TOKENS`` for each request in flight.

    Both are multiplied by the price of a prompt token, so that pools with different engines share
    the load by speed.
    """

    RESIDENT_KV = auto()
    PROMPT_WORK = auto()


class LoadBalancer:
    """The choice of a replica by one policy."""

    def __init__(self, policy: LoadPolicy) -> None:
        self._policy = policy

    def pick(self, pools: Sequence[Pool], now: float) -> PoolReplica | None:
        """Returns the least loaded ready replica and its pool; None if no replica is ready."""
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

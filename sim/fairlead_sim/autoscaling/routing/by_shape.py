"""The gateway's choice among accelerator classes, on the loads of the plant."""

from collections.abc import Callable, Sequence

from fairlead.fleet.model import Instance, SloTargets
from fairlead_autoscaler.core.types import ModelSpec
from fairlead_gateway.routing.accelerator_selection import AcceleratorSelector
from fairlead_gateway.routing.load.inflight import Endpoint, EndpointLoad, InflightTracker, SampledLoads
from fairlead_gateway.routing.prefix.cache_view import PrefixMatch
from fairlead_sim.autoscaling.pool import Pool, Replica

PoolReplica = tuple[Pool, Replica]


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
        """Learns the answer length of one request."""
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
            endpoints = {name: Endpoint(name, profiles[name], self._tallies[name], 0, 0, None) for name in ready}
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

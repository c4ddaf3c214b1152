"""Room 4, route: one router for each model, replaced fleets, and what to say when nothing can be chosen.

The deciding itself is the pure core in ``routing``; here the present fleet meets it. From the moment that ``apply``
returns, no new request goes to an instance that the new fleet does not call ready.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

from fairlead.decision import Decision, RejectedCandidate
from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Fleet, Instance, InstanceState, Role
from fairlead.limits import Limits
from fairlead_gateway.errors import NoReadyInstance
from fairlead_gateway.routing import InstanceLoad, ModelRouter, PrefixChain, RouteRequest
from fairlead_gateway.routing.hooks import DispatchHooks, SiblingWorkers
from fairlead_gateway.worker.resilience.outlier_detection import OutlierDetector
from fairlead_gateway.worker.resilience.retry_after import StartupTimes, retry_after_for_backlog


class RouterRegistry:
    """The routers of all models and the instances that are ready for them: those that answer, or those that only ``prefill``."""

    def __init__(
        self,
        *,
        secret: bytes,
        limits: Limits,
        outlier_detector: OutlierDetector,
        prefill: bool = False,
        siblings: SiblingWorkers | None = None,
        dispatch_hooks: DispatchHooks | None = None,
    ) -> None:
        self.secret = secret
        self._dispatch_hooks = dispatch_hooks
        self._siblings = siblings
        self._prefill = prefill
        self._limits = limits
        self._outlier_detector = outlier_detector
        self._startup_times = StartupTimes(limits)
        self._routers: dict[str, ModelRouter] = {}
        self._ready_instances: dict[str, dict[str, Instance]] = {}
        self._has_instances: dict[str, bool] = {}
        self._learned_profiles: dict[str, EngineProfile] = {}
        self.fleet = Fleet()

    def update_fleet(self, fleet: Fleet, now: float) -> None:
        """Take over a snapshot, whole."""
        self._startup_times.observe_fleet(fleet, now)
        for gone in self._routers.keys() - fleet.models.keys():
            del self._routers[gone]
        self._ready_instances, self._has_instances = {}, {}
        for number, (key, model) in enumerate(fleet.models.items()):
            instances = [one for one in fleet.instances.get(key, ()) if (one.role is Role.PREFILL) is self._prefill]
            self._has_instances[key] = bool(instances)
            router = self._routers.get(key)
            if router is None:
                router = self._routers[key] = ModelRouter(
                    secret=self.secret,
                    seed=number,
                    limits=self._limits,
                    siblings=self._siblings,
                    hooks=self._dispatch_hooks,
                )
            router.update(model, [self._with_learned_profile(one) for one in instances], fleet.membership_epoch)
            self._ready_instances[key] = {one.id: one for one in instances if one.state is InstanceState.READY}
        self._outlier_detector.retain([one.id for ones in fleet.instances.values() for one in ones])
        self.fleet = fleet

    def set_learned_profiles(self, profiles: Mapping[str, EngineProfile], now: float) -> None:
        """What was learned of engines, by instance; it holds in place of what the fleet says of them."""
        present = {one.id for ones in self.fleet.instances.values() for one in ones}
        self._learned_profiles = {
            name: one for name, one in (self._learned_profiles | dict(profiles)).items() if name in present
        }
        self.update_fleet(self.fleet, now)

    def _with_learned_profile(self, instance: Instance) -> Instance:
        learned = self._learned_profiles.get(instance.id)
        return instance if learned is None else replace(instance, profile=learned)

    def router(self, key: str) -> ModelRouter | None:
        """The router of a model; None when the model has left the fleet."""
        return self._routers.get(key)

    def ready_instance(self, key: str, instance_id: str) -> Instance | None:
        """The instance, if it may get a request right now."""
        return self._ready_instances.get(key, {}).get(instance_id)

    def has_instances(self, key: str) -> bool:
        """Whether the model has any instance of this kind, ready or not."""
        return self._has_instances.get(key, False)

    def ready_instances(self, key: str) -> Mapping[str, Instance]:
        """The ready instances of a model by id."""
        return self._ready_instances.get(key, {})

    def addresses(self) -> frozenset[str]:
        """The URLs of all instances, in whatever state."""
        return frozenset(one.url for instances in self.fleet.instances.values() for one in instances)

    def choose(
        self, key: str, route_request: RouteRequest, now: float, excluded: frozenset[str], *, preview: bool = False
    ) -> Decision:
        """Ask the model's router, past those that sit out. Raises NoInstance when no instance is ready at all. ``asking``: somebody
        wants to know, and nothing is remembered of it."""
        router = self._routers.get(key)
        out: Mapping[str, str] = {}
        if self._outlier_detector.has_unhealthy:
            out = self._outlier_detector.ejected(
                [item for item in self._ready_instances.get(key, ()) if item not in excluded], now
            )
        decision: Decision | None = None
        if router is not None:
            request = router.preview if preview else router.decide
            decision = request(route_request, now, excluded=excluded.union(out) if out else excluded)
        if decision is not None and out:
            sitting = tuple(RejectedCandidate(item, why) for item, why in out.items())
            decision = decision.with_text(rejected=decision.rejected + sitting)
        if decision is None or (decision.chosen is None and not excluded):
            raise self.no_ready_instance(key, now)
        return decision

    def prompt_tokens(self, key: str, request: RouteRequest) -> float:
        """The prompt's length in tokens, as far as it can be known before an engine says it."""
        router = self._routers.get(key)
        return request.prompt_tokens if router is None else router.prompt_tokens(request)

    def no_ready_instance(self, key: str, now: float) -> NoReadyInstance:
        """Why nobody can take a request for this model."""
        states = Counter(one.state for one in self.fleet.instances.get(key, ()))
        counted = ", ".join(f"{count} {state.value.lower()}" for state, count in sorted(states.items()))
        return NoReadyInstance(
            f"no instance of the model is ready ({counted or 'it has none'})",
            hint="try again in a moment",
            headers=(("retry-after", str(self._startup_times.retry_after(self.fleet, key, now))),),
        )

    def drain_seconds(self, key: str) -> int:
        """When the least busy ready instance of a model should have done what it was sent."""
        router = self._routers.get(key)
        return retry_after_for_backlog(router.least_backlog_seconds() if router is not None else 0.0, self._limits)

    def on_peer_dispatch(self, key: str, instance_id: str, chain: PrefixChain, now: float, pin: Hashable) -> None:
        """A sibling or another gateway sent a prompt there."""
        router = self._routers.get(key)
        if router is not None:
            router.on_peer_dispatch(instance_id, chain, now, pin)

    def set_hot_prefixes(self, key: str, epoch: int, table: frozenset[Hashable]) -> None:
        """The hot prefixes of a model as all gateways see them; epoch 0: nobody tells them any more."""
        router = self._routers.get(key)
        if router is not None:
            router.set_hot_prefixes(epoch, table)

    def apply_corrections(
        self, key: str, instance_id: str, forget: str, gone: Sequence[Hashable], held: Sequence[tuple[Hashable, ...]]
    ) -> None:
        """What the index says of an instance."""
        router = self._routers.get(key)
        if router is not None:
            router.apply_correction(instance_id, forget, gone, held)

    def republish_loads(self) -> None:
        """The slots of the shared rows have been given out anew."""
        for router in self._routers.values():
            router.republish_loads()

    def loads(self) -> Mapping[str, InstanceLoad]:
        """This gateway's own load by instance id."""
        return {name: load for router in self._routers.values() for name, load in router.loads().items()}


def as_retry_decision(decision: Decision, retries: int, cause: str) -> Decision:
    """The decision of a further attempt: its rule says which, its reason why."""
    return decision.with_text(rule=f"retry-{retries}", reason=f"{cause}; then {decision.rule}: {decision.reason}")

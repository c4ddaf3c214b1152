"""Room 4, route: one router for each model, replaced fleets, and what to say when nothing can be chosen.

The deciding itself is the pure core in ``routing``; here the present fleet meets it. From the moment that ``apply``
returns, no new request goes to an instance that the new fleet does not call ready.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

from fairlead.decision import Decision, Rejected
from fairlead.fleet import Fleet, Instance, InstanceState, Role
from fairlead.limits import Limits
from fairlead.profile import EngineProfile
from fairlead_gateway.breaker import Breaker
from fairlead_gateway.comeback import Starts, drained
from fairlead_gateway.errors import NoInstance
from fairlead_gateway.routing import InstanceLoad, ModelRouter, PrefixChain, RouteRequest
from fairlead_gateway.routing.index import Told
from fairlead_gateway.routing.shared import Siblings


class Routes:
    """The routers of all models and the instances that are ready for them: those that answer, or those that only ``prefill``."""

    def __init__(
        self,
        *,
        secret: bytes,
        limits: Limits,
        breaker: Breaker,
        prefill: bool = False,
        siblings: Siblings | None = None,
        told: Told | None = None,
    ) -> None:
        self.secret = secret
        self._told = told
        self._siblings = siblings
        self._prefill = prefill
        self._limits = limits
        self._breaker = breaker
        self._starts = Starts(limits)
        self._routers: dict[str, ModelRouter] = {}
        self._ready: dict[str, dict[str, Instance]] = {}
        self._any: dict[str, bool] = {}
        self._learned: dict[str, EngineProfile] = {}
        self.fleet = Fleet()

    def apply(self, fleet: Fleet, now: float) -> None:
        """Take over a snapshot, whole."""
        self._starts.seen(fleet, now)
        for gone in self._routers.keys() - fleet.models.keys():
            del self._routers[gone]
        self._ready, self._any = {}, {}
        for number, (key, model) in enumerate(fleet.models.items()):
            instances = [one for one in fleet.instances.get(key, ()) if (one.role is Role.PREFILL) is self._prefill]
            self._any[key] = bool(instances)
            router = self._routers.get(key)
            if router is None:
                router = self._routers[key] = ModelRouter(
                    secret=self.secret, seed=number, limits=self._limits, siblings=self._siblings, told=self._told
                )
            router.update(model, [self._as_learned(one) for one in instances], fleet.membership_epoch)
            self._ready[key] = {one.id: one for one in instances if one.state is InstanceState.READY}
        self._breaker.keep_only([one.id for ones in fleet.instances.values() for one in ones])
        self.fleet = fleet

    def profiled(self, profiles: Mapping[str, EngineProfile], now: float) -> None:
        """What was learned of engines, by instance; it holds in place of what the fleet says of them."""
        present = {one.id for ones in self.fleet.instances.values() for one in ones}
        self._learned = {name: one for name, one in (self._learned | dict(profiles)).items() if name in present}
        self.apply(self.fleet, now)

    def _as_learned(self, instance: Instance) -> Instance:
        learned = self._learned.get(instance.id)
        return instance if learned is None else replace(instance, profile=learned)

    def router(self, key: str) -> ModelRouter | None:
        """The router of a model; None when the model has left the fleet."""
        return self._routers.get(key)

    def ready(self, key: str, instance_id: str) -> Instance | None:
        """The instance, if it may get a request right now."""
        return self._ready.get(key, {}).get(instance_id)

    def has(self, key: str) -> bool:
        """Whether the model has any instance of this kind, ready or not."""
        return self._any.get(key, False)

    def ready_ids(self, key: str) -> Mapping[str, Instance]:
        """The ready instances of a model by id."""
        return self._ready.get(key, {})

    def addresses(self) -> frozenset[str]:
        """The URLs of all instances, in whatever state."""
        return frozenset(one.url for instances in self.fleet.instances.values() for one in instances)

    def choose(
        self, key: str, request: RouteRequest, now: float, excluded: frozenset[str], *, asking: bool = False
    ) -> Decision:
        """Ask the model's router, past those that sit out. Raises NoInstance when no instance is ready at all. ``asking``: somebody
        wants to know, and nothing is remembered of it."""
        router = self._routers.get(key)
        out: Mapping[str, str] = {}
        if self._breaker.watching:
            out = self._breaker.sitting_out([item for item in self._ready.get(key, ()) if item not in excluded], now)
        decision: Decision | None = None
        if router is not None:
            ask = router.would if asking else router.decide
            decision = ask(request, now, excluded=excluded.union(out) if out else excluded)
        if decision is not None and out:
            sitting = tuple(Rejected(item, why) for item, why in out.items())
            decision = decision.told(rejected=decision.rejected + sitting)
        if decision is None or (decision.chosen is None and not excluded):
            raise self.none_ready(key, now)
        return decision

    def prompt_tokens(self, key: str, request: RouteRequest) -> float:
        """The prompt's length in tokens, as far as it can be known before an engine says it."""
        router = self._routers.get(key)
        return request.prompt_tokens if router is None else router.prompt_tokens(request)

    def none_ready(self, key: str, now: float) -> NoInstance:
        """Why nobody can take a request for this model."""
        states = Counter(one.state for one in self.fleet.instances.get(key, ()))
        counted = ", ".join(f"{count} {state.value.lower()}" for state, count in sorted(states.items()))
        return NoInstance(
            f"no instance of the model is ready ({counted or 'it has none'})",
            hint="try again in a moment",
            fields=(("retry-after", str(self._starts.retry_after(self.fleet, key, now))),),
        )

    def drain_seconds(self, key: str) -> int:
        """When the least busy ready instance of a model should have done what it was sent."""
        router = self._routers.get(key)
        return drained(router.least_backlog() if router is not None else 0.0, self._limits)

    def heard(self, key: str, instance_id: str, chain: PrefixChain, now: float, pin: Hashable) -> None:
        """A sibling or another gateway sent a prompt there."""
        router = self._routers.get(key)
        if router is not None:
            router.heard(instance_id, chain, now, pin)

    def hot(self, key: str, epoch: int, table: frozenset[Hashable]) -> None:
        """The hot prefixes of a model as all gateways see them; epoch 0: nobody tells them any more."""
        router = self._routers.get(key)
        if router is not None:
            router.hot(epoch, table)

    def corrected(
        self, key: str, instance_id: str, forget: str, gone: Sequence[Hashable], held: Sequence[tuple[Hashable, ...]]
    ) -> None:
        """What the index says of an instance."""
        router = self._routers.get(key)
        if router is not None:
            router.corrected(instance_id, forget, gone, held)

    def show_again(self) -> None:
        """The slots of the shared rows have been given out anew."""
        for router in self._routers.values():
            router.show_again()

    def loads(self) -> Mapping[str, InstanceLoad]:
        """This gateway's own load by instance id."""
        return {name: load for router in self._routers.values() for name, load in router.loads().items()}


def as_retry(decision: Decision, retries: int, why: str) -> Decision:
    """The decision of a further attempt: its rule says which, its reason why."""
    return decision.told(rule=f"retry-{retries}", reason=f"{why}; then {decision.rule}: {decision.reason}")

"""The routers of all models, one per model and role, and the fleet that they route over.

Routing itself is the pure core in `routing`; this module gives it the current fleet. As soon as
`update_fleet` returns, no request goes to an instance that is not ready in the new fleet.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Final

from fairlead.decision import Decision, RejectedCandidate
from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Fleet, Instance, InstanceState, Role
from fairlead.limits import Limits
from fairlead_gateway.errors import NoReadyInstance
from fairlead_gateway.journal import Reporters
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.resilience.outlier_detection import MAX_REASONS, OutlierDetector
from fairlead_gateway.resilience.worker.retry import StartupTimes, retry_after_seconds
from fairlead_gateway.routing import InstanceLoad, ModelRouter, RouteRequest
from fairlead_gateway.routing.load.inflight import NOTHING_DEFERRED
from fairlead_gateway.routing.load.prompt_sizes import PromptSizes
from fairlead_gateway.routing.request import NO_INSTANCES

_NO_INSTANCES: Final[dict[str, Instance]] = {}
_NONE_EJECTED: Final[Mapping[str, str]] = {}
_CANARY_REASON: Final = "of the canary"


class RevisionSplit:
    """The ready instances of a model by revision, while a rollout has a canary."""

    __slots__ = ("canary", "running")

    def __init__(self, running: frozenset[str], canary: frozenset[str]) -> None:
        self.running = running
        self.canary = canary

    def rejected_for(self, request: RouteRequest, rejected: frozenset[str]) -> frozenset[str]:
        """Returns the instances that may not serve a request: `rejected` and those of the other
        revision.

        If none of its own revision is left, the other one serves it.
        """
        own, others = (self.canary, self.running) if request.takes_canary else (self.running, self.canary)
        return rejected if own <= rejected else rejected | others


def split_revisions(ready: Iterable[Instance]) -> RevisionSplit | None:
    """Returns the instances by revision; None without a canary."""
    instances = list(ready)
    canary = frozenset([instance.id for instance in instances if instance.is_canary])
    if not canary:
        return None
    return RevisionSplit(frozenset([instance.id for instance in instances if not instance.is_canary]), canary)


class RoleRouters:
    """The routers of all models for one role, and the instances of that role.

    is_prefill: routes to instances that only prefill; otherwise to those that answer.
    sequence_bounds: how many requests an instance computes at a time, where something says it. What
        was learned goes before what the fleet states. Other profiles do not count.
    memory_shares: learned shares of an instance's memory that may be planned for.
    """

    def __init__(
        self,
        secret: bytes,
        limits: Limits,
        outlier_detector: OutlierDetector,
        startup_times: StartupTimes,
        reporters: Reporters,
        *,
        is_prefill: bool = False,
    ) -> None:
        self.secret = secret
        self.fleet = Fleet()
        self._limits = limits
        self._outlier_detector = outlier_detector
        self._startup_times = startup_times
        self._reporters = reporters
        self._hooks = reporters.dispatch_hooks()
        self._is_prefill = is_prefill
        self._routers: dict[str, ModelRouter] = {}
        self._indexed_models: frozenset[str] = frozenset()
        self._ready_instances: dict[str, dict[str, Instance]] = {}
        self._has_instances: dict[str, bool] = {}
        self._canaries: dict[str, RevisionSplit] = {}
        self.sizes = PromptSizes()
        self._learned_bounds: dict[str, int] = {}
        self.sequence_bounds: dict[str, int] = {}
        self.memory_shares: dict[str, float] = {}

    def update_fleet(self, fleet: Fleet, profiles: Mapping[str, EngineProfile]) -> None:
        """Replaces the fleet.

        profiles: learned ones by instance; they take the place of those in the fleet.
        """
        for departed in self._routers.keys() - fleet.models.keys():
            del self._routers[departed]
        self._ready_instances, self._has_instances, self._canaries = {}, {}, {}
        for number, key in enumerate(fleet.models):
            if key not in self._routers:
                self._routers[key] = ModelRouter(
                    secret=self.secret,
                    seed=number,
                    limits=self._limits,
                    shared_loads=self._reporters.shared_loads,
                    hooks=self._hooks,
                )
            instances = self._update_router(fleet, key, profiles)
            self._has_instances[key] = bool(instances)
            self._ready_instances[key] = {
                instance.id: instance for instance in instances if instance.state is InstanceState.READY
            }
            split = split_revisions(self._ready_instances[key].values())
            if split is not None:
                self._canaries[key] = split
        self.fleet = fleet
        present = _instances(fleet)
        self._learned_bounds = {name: bound for name, bound in self._learned_bounds.items() if name in present}
        self.sequence_bounds = stated_sequence_bounds(present.values()) | self._learned_bounds
        self.memory_shares = {name: share for name, share in self.memory_shares.items() if name in present}

    def set_sequence_bounds(self, bounds: Mapping[str, int]) -> None:
        self._learned_bounds.update(bounds)
        self.sequence_bounds.update(bounds)

    def update_profiles(self, key: str, profiles: Mapping[str, EngineProfile]) -> None:
        self._update_router(self.fleet, key, profiles)

    def _update_router(self, fleet: Fleet, key: str, profiles: Mapping[str, EngineProfile]) -> list[Instance]:
        """Updates the router of a model, and returns the instances of this role."""
        instances = [
            instance for instance in fleet.instances.get(key, ()) if (instance.role is Role.PREFILL) is self._is_prefill
        ]
        router = self._routers[key]
        router.update(fleet.models[key], [_with_profile(instance, profiles) for instance in instances])
        router.is_indexed = key in self._indexed_models
        return instances

    def set_indexed_models(self, models: frozenset[str]) -> None:
        """Sets the models whose prompts are reported to the KV-cache index."""
        self._indexed_models = models
        for key, router in self._routers.items():
            router.is_indexed = key in models

    def router(self, key: str) -> ModelRouter | None:
        """Returns the router of a model; None if the model has left the fleet."""
        return self._routers.get(key)

    def ready_instance(self, key: str, instance_id: str) -> Instance | None:
        """Returns the instance if it is ready for requests, else None."""
        return self._ready_instances.get(key, _NO_INSTANCES).get(instance_id)

    def ready_instances(self, key: str) -> Mapping[str, Instance]:
        return self._ready_instances.get(key, _NO_INSTANCES)

    def has_instances(self, key: str) -> bool:
        return self._has_instances.get(key, False)

    def choose(
        self,
        key: str,
        request: RouteRequest,
        now: float,
        excluded: frozenset[str],
        *,
        preview: bool = False,
        deferred: Mapping[str, float] = NOTHING_DEFERRED,
    ) -> Decision:
        """Returns the router's decision among the instances that are not ejected.

        preview: the router remembers nothing.
        deferred: prefill in seconds by instance that waits behind this request.
        Raises NoReadyInstance if the model has no usable instance. If some are `excluded` and no
        other one is usable, the decision's `chosen` is None.
        """
        router = self._routers.get(key)
        ejected = _NONE_EJECTED
        if self._outlier_detector.unhealthy or self._outlier_detector.full:
            candidates = [name for name in self.ready_instances(key) if name not in excluded]
            ejected = self._outlier_detector.ejected(candidates, now)
        decision: Decision | None = None
        if router is not None:
            rejected_ids = excluded.union(ejected) if ejected else excluded
            split = self._canaries.get(key)
            if split is not None:
                rejected_ids = split.rejected_for(request, rejected_ids)
            if preview:
                decision = router.preview(request, now, excluded=rejected_ids)
            else:
                decision = router.choose_instance(request, now, excluded=rejected_ids, deferred=deferred)
        if decision is not None and ejected:
            rejected = tuple([RejectedCandidate(name, reason) for name, reason in islice(ejected.items(), MAX_REASONS)])
            decision = decision.with_text(rejected=decision.rejected + rejected)
        if decision is not None and request.takes_canary and self._is_canary(key, decision.chosen):
            decision = decision.with_text(reason=f"{_CANARY_REASON}: {decision.reason}")
        if decision is None or (decision.chosen is None and not excluded):
            raise self.no_ready_instance(key, now)
        return decision

    def choose_for(
        self,
        context: RequestContext,
        excluded: frozenset[str],
        now: float,
        deferred: Mapping[str, float] = NOTHING_DEFERRED,
        *,
        preview: bool = False,
    ) -> Decision:
        """Returns the decision for a request; a full instance is chosen only if no other can be.

        See `choose`.
        """
        key, request = context.request.model_key, context.route_request
        full = context.full_instances if not context.failures else NO_INSTANCES
        if full:
            decision = self.choose(key, request, now, excluded | full, preview=preview, deferred=deferred)
            if decision.chosen is not None:
                return decision
        return self.choose(key, request, now, excluded, preview=preview, deferred=deferred)

    def _is_canary(self, key: str, instance_id: str | None) -> bool:
        split = self._canaries.get(key)
        return split is not None and instance_id in split.canary

    def prompt_tokens(self, key: str, request: RouteRequest) -> float:
        """Returns the estimated prompt length in the tokens of the model's engines."""
        router = self._routers.get(key)
        return request.prompt_tokens if router is None else router.prompt_tokens(request)

    def caller_tokens(self, key: str, caller: str, request: RouteRequest) -> float:
        return self.sizes.prompt_tokens(caller, key, request, self.prompt_tokens(key, request))

    def learn_prompt(self, key: str, caller: str, request: RouteRequest, reported: int) -> None:
        """Learns from the prompt tokens that an engine has reported."""
        if self.sizes.is_due(request):
            self.sizes.learn(caller, key, request, self.prompt_tokens(key, request), reported)

    def no_ready_instance(self, key: str, now: float) -> NoReadyInstance:
        """Returns the error of a model without a ready instance."""
        states = Counter(instance.state for instance in self.fleet.instances.get(key, ()))
        counts = ", ".join(f"{count} {state.value.lower()}" for state, count in sorted(states.items()))
        return NoReadyInstance(
            f"no instance of the model is ready ({counts or 'it has none'})",
            hint="try again in a moment",
            retry_after=self._startup_times.retry_after(self.fleet, key, now),
        )

    def drain_seconds(self, key: str) -> int:
        """Returns `Retry-After` in whole seconds: until the least busy instance should be idle.

        The result is from 1 to `MAX_RETRY_AFTER_SECONDS`.
        """
        router = self._routers.get(key)
        return retry_after_seconds(router.least_backlog_seconds() if router is not None else 0.0)

    def all_routers(self) -> Iterator[ModelRouter]:
        yield from self._routers.values()


class RouterRegistry:
    """The routers of both roles: `serving` for instances that answer, `prefilling` for instances
    that only prefill.
    """

    def __init__(
        self, *, secret: bytes, limits: Limits, outlier_detector: OutlierDetector, reporters: Reporters
    ) -> None:
        self.secret = secret
        self._outlier_detector = outlier_detector
        self._startup_times = StartupTimes()
        self._learned_profiles: dict[str, EngineProfile] = {}
        self.serving = RoleRouters(secret, limits, outlier_detector, self._startup_times, reporters)
        self.prefilling = RoleRouters(secret, limits, outlier_detector, self._startup_times, reporters, is_prefill=True)

    @property
    def fleet(self) -> Fleet:
        return self.serving.fleet

    def update_fleet(self, fleet: Fleet, now: float) -> None:
        """Replaces the fleet."""
        self._startup_times.observe_fleet(fleet, now)
        for routers in (self.serving, self.prefilling):
            routers.update_fleet(fleet, self._learned_profiles)
        instances = _instances(fleet)
        self._outlier_detector.retain(instances.keys())
        if self._outlier_detector.ejection_records.by_instance:
            ready = [name for name, instance in instances.items() if instance.state is InstanceState.READY]
            self._outlier_detector.retain_ready(ready)

    def set_indexed_models(self, models: Iterable[str]) -> None:
        """Sets the models whose prompts are reported to the KV-cache index."""
        known = frozenset(models)
        for routers in (self.serving, self.prefilling):
            routers.set_indexed_models(known)

    def set_learned_profiles(self, profiles: Mapping[str, EngineProfile]) -> None:
        """Adds learned engine profiles by instance; they take the place of those in the fleet.

        Only the routers of their models change.
        """
        present = _instances(self.fleet)
        merged = self._learned_profiles | dict(profiles)
        self._learned_profiles = {name: profile for name, profile in merged.items() if name in present}
        for key, instances in self.fleet.instances.items():
            if key in self.fleet.models and any(instance.id in profiles for instance in instances):
                for routers in (self.serving, self.prefilling):
                    routers.update_profiles(key, self._learned_profiles)

    def routers(self, key: str) -> Iterator[ModelRouter]:
        """Yields the routers of a model, of both roles."""
        for routers in (self.serving, self.prefilling):
            router = routers.router(key)
            if router is not None:
                yield router

    def addresses(self) -> frozenset[str]:
        return frozenset(instance.address for instance in _instances(self.fleet).values())

    def republish_loads(self) -> None:
        """Writes all loads to the shared load table again, after its slots were reassigned."""
        for routers in (self.serving, self.prefilling):
            for router in routers.all_routers():
                router.republish_loads()

    def loads(self) -> Mapping[str, InstanceLoad]:
        """Returns this worker's own load by instance id."""
        return {
            name: load
            for routers in (self.serving, self.prefilling)
            for router in routers.all_routers()
            for name, load in router.loads().items()
        }


def stated_sequence_bounds(instances: Iterable[Instance]) -> dict[str, int]:
    """Returns how many requests each instance computes at a time, where its profile says it."""
    return {
        instance.id: instance.profile.max_sequences
        for instance in instances
        if instance.profile is not None and instance.profile.max_sequences is not None
    }


def as_retry_decision(decision: Decision, retries: int, cause: str) -> Decision:
    return decision.with_text(rule=f"retry-{retries}", reason=f"{cause}; then {decision.rule}: {decision.reason}")


def _with_profile(instance: Instance, profiles: Mapping[str, EngineProfile]) -> Instance:
    profile = profiles.get(instance.id)
    return instance if profile is None else replace(instance, profile=profile)


def _instances(fleet: Fleet) -> dict[str, Instance]:
    return {instance.id: instance for instances in fleet.instances.values() for instance in instances}

"""Builds the fleet from the objects of a cluster.

Pure: the same objects and the same previous fleet give the same fleet on every gateway.

Instances stay in the fleet when information is missing. An unreadable spec keeps its previous
values. Its pods are still found by their labels, which contain all that routing needs. Pods of an
external pool stay until the pool has been listed.

The shares of namespaces in the limits of the fleet. Pure.

A limit is shared max-min: no namespace loses below its fair share to one that has more. What a
namespace does not need of its share goes to the others.
"""

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar
from urllib.parse import urlsplit

from fairlead.adapters.model import DEFAULT_ADAPTER_SLOTS, LoraAdapter
from fairlead.api.spec.engine import EngineType
from fairlead.api.spec.kv_cache import Transfer
from fairlead.api.spec.pools import EndpointSecretKey, ExternalEndpoint, Pool
from fairlead.api.v1alpha1 import ModelDeploymentSpec
from fairlead.engine_profile import EngineProfile, builtin_profiles
from fairlead.fleet.client_names import GrantedNames, NameClaim, NameHistory, grant_names, name_owners, object_key
from fairlead.fleet.endpoint_address import ENDPOINT_SECRETS_FOLDER, address_refusal, canonical_address
from fairlead.fleet.engine_url import endpoint_id
from fairlead.fleet.kubernetes.claimant_objects import (
    ParsedAdapter,
    ParsedClaimant,
    ParsedRoute,
    granted_adapters,
    granted_routes,
)
from fairlead.fleet.kubernetes.pod_instances import (
    ExternalPool,
    PodInstances,
    external_instances,
    group_addresses,
    managed_instances,
    pod_address,
)
from fairlead.fleet.kubernetes.spec_cache import KnownAccelerator, ParsedModel
from fairlead.fleet.labels import CANARY_POOL_SUFFIX, MODEL_LABEL, POOL_LABEL
from fairlead.fleet.model import (
    EXTERNAL_API,
    EngineAuth,
    Fleet,
    Instance,
    Model,
    next_fleet,
    served_name_override,
)
from fairlead.kube.resources import Manifest, key_of, label_selector, labels_of, metadata_of, namespace_of, uid_of
from fairlead.limits import Limits
from fairlead.routes.model import Route, visible_route

_Item = TypeVar("_Item", ParsedModel, Instance)

_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_BEYOND_SHARE = "its namespace has more instances than its share"
PodSelection = tuple[str, str | None]
"""The pods that external pools of a namespace select: the namespace and the label selector that all
of its pools have in common. None stands for all pods of the namespace.
"""


def fair_shares(demands: Mapping[str, int], capacity: int) -> dict[str, int]:
    """Returns the max-min fair share of each key: at most its demand, at most `capacity` in all.

    A remainder that cannot be divided goes to the largest demands, among equals to the last names.
    """
    shares: dict[str, int] = {}
    left = capacity
    smallest_first = sorted(demands, key=lambda key: (demands[key], key))
    for done, key in enumerate(smallest_first):
        shares[key] = min(demands[key], left // (len(smallest_first) - done))
        left -= shares[key]
    return shares


def take_fair_shares(items: Iterable[_Item], capacity: int) -> tuple[list[_Item], list[_Item], dict[str, str]]:
    """Divides `items`, in order of preference, into those within the share of their namespace and
    the others.

    Returns both in the given order, and `SERVED of WANTED` by each namespace that loses some.
    """
    by_namespace: dict[str, int] = {}
    listed = list(items)
    for item in listed:
        by_namespace[item.namespace] = by_namespace.get(item.namespace, 0) + 1
    shares = fair_shares(by_namespace, capacity)
    left = dict(shares)
    taken: list[_Item] = []
    refused: list[_Item] = []
    for item in listed:
        left[item.namespace] -= 1
        (taken if left[item.namespace] >= 0 else refused).append(item)
    losses = {
        namespace: f"{shares[namespace]:,} of {wanted:,}"
        for namespace, wanted in sorted(by_namespace.items())
        if shares[namespace] < wanted
    }
    return taken, refused, losses


_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class ClusterObjects:
    """The known objects of a cluster.

    models: oldest first.
    pods: pods that Fairlead runs.
    selected_pods: pods of each selection that has been listed.
    name_history: the owners of client names so far.
    endpoint_namespaces: namespaces whose models may name endpoints.
    endpoint_secrets: folder of the Secrets of endpoints, `NAMESPACE/SECRET/KEY`.
    services: Services that lead to pods of models.
    routes, adapters: oldest first.
    """

    models: Sequence[ParsedModel] = ()
    accelerators: Mapping[str, KnownAccelerator] = field(default_factory=dict)
    pods: Mapping[str, Manifest] = field(default_factory=dict)
    selected_pods: Mapping[PodSelection, Mapping[str, Manifest]] = field(default_factory=dict)
    name_history: NameHistory = field(default_factory=NameHistory)
    endpoint_namespaces: Container[str] = frozenset()
    endpoint_secrets: str = ENDPOINT_SECRETS_FOLDER
    services: Mapping[str, Manifest] = field(default_factory=dict)
    routes: Sequence[ParsedRoute] = ()
    adapters: Sequence[ParsedAdapter] = ()


@dataclass(frozen=True, slots=True)
class FleetResult:
    """A fleet, and what was found while building it.

    problems: problems for people to fix.
    excluded: pods and addresses that are not in the fleet, with the reason.
    name_owners: the owner of each client name, for the history of the next fleet.
    """

    fleet: Fleet
    problems: tuple[str, ...] = ()
    excluded: Mapping[str, str] = field(default_factory=dict)
    name_owners: Mapping[str, str] = field(default_factory=dict)


def build_fleet(objects: ClusterObjects, previous: Fleet | None, limits: Limits) -> FleetResult:
    """Returns the fleet of these objects, with the problems and exclusions.

    The fleet is `previous` itself if nothing changed.
    """
    builder = _FleetBuilder(objects, previous or Fleet(), limits)
    models, instances = builder.build_models(), builder.build_instances()
    is_checked = any(instance.checks_address for group in instances.values() for instance in group)
    addresses = builder.service_addresses if is_checked else frozenset()
    placed = {key: instances.get(key, ()) for key in models}
    fleet = next_fleet(previous, models, placed, addresses, builder.routes)
    return FleetResult(fleet, tuple(dict.fromkeys(builder.problems)), builder.excluded, builder.name_owners)


def _adapter_slots(spec: ModelDeploymentSpec | None, before: Model | None) -> int:
    """Returns the slots of each engine of a model; as before if its spec cannot be read."""
    if spec is None:
        return DEFAULT_ADAPTER_SLOTS if before is None else before.adapter_slots
    return DEFAULT_ADAPTER_SLOTS if spec.adapters is None else spec.adapters.slots


def trim_service(service: Manifest) -> Manifest:
    """Returns a Service with what `cluster_addresses` reads."""
    metadata = {name: metadata_of(service).get(name) for name in ("name", "namespace", "uid", "resourceVersion")}
    addresses = (service.get("spec") or {}).get("clusterIPs")
    return {"kind": service.get("kind"), "metadata": metadata, "spec": {"clusterIPs": addresses}}


def cluster_addresses(service: Manifest) -> frozenset[str]:
    """Returns the addresses that the cluster gave to a Service; none for a headless one.

    Why no others: `spec.externalIPs` may be anyone's addresses, whose endpoints would be refused.
    """
    found = (service.get("spec") or {}).get("clusterIPs") or []
    return frozenset(filter(None, (canonical_address(str(address)) for address in found)))


def pod_selections(models: Sequence[ParsedModel], limits: Limits) -> set[PodSelection]:
    """Returns the pods to watch for external pools: one selection per namespace.

    Models beyond the limit select nothing.
    """
    return set(_selectors_by_namespace(take_fair_shares(models, limits.models)[0]).items())


def _selectors_by_namespace(models: Sequence[ParsedModel]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for model in models:
        for pool in model.spec.pools if model.spec is not None else ():
            if pool.selector is not None:
                labels = label_selector(pool.selector.match_labels)
                found[model.namespace] = labels if found.get(model.namespace, labels) == labels else None
    return found


class _FleetBuilder:
    """The builder of one fleet, and the collector of its problems and exclusions."""

    def __init__(self, objects: ClusterObjects, previous: Fleet, limits: Limits) -> None:
        self.problems: list[str] = [model.problem for model in objects.models if model.problem]
        self.excluded: dict[str, str] = {}
        self.name_owners: dict[str, str] = {}
        self._objects = objects
        self._previous = previous
        self._limits = limits
        self._served = self._limit_models()
        self.routes: dict[str, Route] = {}
        self._adapters: dict[str, tuple[LoraAdapter, ...]] = {}
        self.service_addresses = frozenset(
            address for service in objects.services.values() for address in cluster_addresses(service)
        )
        self._model_addresses: dict[str, frozenset[str]] = {}
        self._selectors = _selectors_by_namespace(self._served)
        self._known_ids = {instance.id for group in previous.instances.values() for instance in group}
        self._listed = Counter[str]()
        self._selected_by_label: dict[PodSelection, dict[tuple[str, str], list[Manifest]]] = {}

    def _limit_models(self) -> list[ParsedModel]:
        """Returns at most the allowed number of models: the oldest ones of each namespace."""
        most = self._limits.models
        served, _, losses = take_fair_shares(self._objects.models, most)
        for namespace, share in losses.items():
            self.problems.append(
                f"the namespace {namespace} has too many models: only its oldest {share} are served; "
                f"namespaces share {most:,} models"
            )
        return served

    def build_models(self) -> dict[str, Model]:
        """Returns the models by key.

        `client_names` has the rule of who owns a name; `status.clientName` follows the same rule.
        """
        found: dict[str, Model] = {}
        names = self._granted_names()
        for served in self._served:
            before = self._previous.models.get(served.key)
            if served.spec is not None:
                model = served.spec.to_model(served.namespace, served.name)
            else:
                model = before or Model(served.namespace, served.name)
            granted = names[served.key]
            found[served.key] = replace(
                model,
                shadowed=not granted.has_own_name,
                served_names=granted.served_names,
                canary_weight=served.canary_weight,
                adapters=self._adapters.get(served.key, ()),
                adapter_slots=_adapter_slots(served.spec, before),
            )
        self._limit_routes(found)
        return dict(sorted(found.items()))

    def _limit_routes(self, models: Mapping[str, Model]) -> None:
        """Takes from routes what leads to models that do not allow it."""
        for key, route in list(self.routes.items()):

            def is_allowed(model: str, namespace: str = route.namespace) -> bool:
                return model not in models or models[model].takes_routes_of(namespace)

            refused = [model for _, model in route.model_paths() if not is_allowed(model)]
            if refused:
                names = ", ".join(dict.fromkeys(refused))
                self.problems.append(f"the route {key}: spec.allowedRoutes of {names} does not list its namespace")
                limited = visible_route(route, is_allowed)
                self.routes = {name: one for name, one in self.routes.items() if name != key}
                if limited is not None:
                    self.routes[key] = limited
        self.routes = dict(sorted(self.routes.items()))

    def _granted_names(self) -> dict[str, GrantedNames]:
        claims = []
        for one in self._served:
            before = self._previous.models.get(one.key)
            served = tuple(one.spec.model.served_names) if one.spec else before.served_names if before else ()
            claims.append(NameClaim(one.namespace, one.name, served, one.recorded_names, one.releases_names))
        routes = self._limit_claimants(self._objects.routes, self._limits.routes, "routes")
        adapters = self._limit_claimants(self._objects.adapters, self._limits.adapters, "adapters")
        if routes or adapters:
            aged = [(one.created, claim.key, claim) for one, claim in zip(self._served, claims, strict=True)]
            aged += [(one.created, one.claim.key, one.claim) for one in routes]
            aged += [(one.created, one.claim.key, one.claim) for one in adapters]
            claims = [claim for _, _, claim in sorted(aged, key=lambda one: one[:2])]
        keys = [*self._objects.name_history.remembered.values(), *[claim.key for claim in claims]]
        namespaces = {object_key(key).partition("/")[0] for key in keys}
        self.name_owners = name_owners(claims, namespaces, self._objects.name_history)
        granted = grant_names(claims, namespaces, self.name_owners)
        self.routes = granted_routes(routes, granted, self._previous.routes)
        bases = {served.key: served for served in self._served}
        self._adapters = granted_adapters(adapters, bases, granted, self._previous.models)
        return granted

    def _limit_claimants(
        self, items: Sequence[ParsedClaimant[_Value]], most: int, noun: str
    ) -> Sequence[ParsedClaimant[_Value]]:
        """Returns at most the allowed number of routes or adapters, the oldest ones."""
        self.problems += [one.problem for one in items if one.problem]
        if len(items) > most:
            self.problems.append(f"there are {len(items):,} {noun}: only the oldest {most:,} are served")
        return items[:most]

    def build_instances(self) -> dict[str, tuple[Instance, ...]]:
        """Returns the instances by the key of their model.

        An instance that two models select belongs to the older model. Of an endpoint, that holds
        within a namespace: models of several namespaces may name it, and each has its instance.
        """
        found: dict[str, Instance] = {}
        for instance in self._all_instances():
            there = found.setdefault(instance.id, instance)
            if instance.checks_address and there.namespace != instance.namespace:
                instance = replace(instance, id=endpoint_id(instance.url, instance.namespace))
                there = found.setdefault(instance.id, instance)
            if there is not instance and (there.namespace, there.model) != (instance.namespace, instance.model):
                self.excluded[f"{instance.namespace}/{instance.model}: {instance.id}"] = (
                    f"it already belongs to the model {there.namespace}/{there.model}"
                )
                self.problems.append(
                    f"the models {there.namespace}/{there.model} and {instance.namespace}/{instance.model} "
                    f"both name the engine {instance.url}; only the older model uses it"
                )
        grouped: dict[str, list[Instance]] = {}
        for instance in sorted(self._limit_instances(found), key=lambda instance: instance.id):
            grouped.setdefault(f"{instance.namespace}/{instance.model}", []).append(instance)
        return {key: tuple(group) for key, group in grouped.items()}

    def _limit_instances(self, found: Mapping[str, Instance]) -> list[Instance]:
        """Returns at most the allowed number of instances.

        Namespaces share the limit. Within a namespace, those already served come first.
        """
        most = self._limits.instances
        if len(found) <= most:
            return list(found.values())
        ordered = sorted(found.values(), key=lambda instance: (instance.id not in self._known_ids, instance.id))
        served, refused, losses = take_fair_shares(ordered, most)
        for namespace, share in losses.items():
            self.problems.append(
                f"the namespace {namespace} has too many instances: {share} are served; namespaces "
                f"share {most:,} instances, and each rank and each endpoint is one"
            )
        self.excluded |= {instance.id: _BEYOND_SHARE for instance in refused}
        return served

    def _all_instances(self) -> Iterator[Instance]:
        managed = self._managed_instances()
        for model in self._served:
            yield from managed.get(model.key, ())
            if model.spec is not None and model.spec.is_external:
                for pool in model.spec.pools:
                    yield from self._listed_external_instances(model, model.spec, pool)
            elif model.spec is None and not managed.get(model.key):
                yield from self._previous.instances.get(model.key, ())

    def _managed_instances(self) -> dict[str, list[Instance]]:
        """Returns the instances in pods that Fairlead runs, by the key of their model."""
        served = {model.key: model for model in self._served}
        spans = group_addresses(self._objects.pods)
        found: dict[str, list[Instance]] = {}
        for pod in self._known_first(self._objects.pods):
            labels = labels_of(pod)
            key = f"{namespace_of(pod)}/{labels.get(MODEL_LABEL, '')}"
            model = served.get(key)
            if model is None:
                self.excluded[key_of(pod)] = f"there is no model {key}"
                continue
            if not self._has_room(model.namespace):
                self.excluded[key_of(pod)] = _BEYOND_SHARE
                continue
            pool = str(labels.get(POOL_LABEL, "")).removesuffix(CANARY_POOL_SUFFIX)
            profile, price = self._engine_profile(model, pool), self._replica_price(model, pool)
            peers = None if model.spec is None else model.spec.peers
            instances = self._record_exclusion(pod, managed_instances(pod, profile, spans, peers, price))
            self._listed[model.namespace] += len(instances)
            found.setdefault(key, []).extend(instances)
        return found

    def _known_first(self, pods: Mapping[str, Manifest]) -> list[Manifest]:
        known = {id.partition("/")[0] for id in self._known_ids}
        return sorted(pods.values(), key=lambda pod: (uid_of(pod) not in known, uid_of(pod)))

    def _has_room(self, namespace: str) -> bool:
        """Returns False once a namespace has listed twice as many instances as a fleet may have.

        Why: the limit holds for what is listed, too. A pod may have 1,024 ranks, and any number of
        pools may select the same pods.
        """
        return self._listed[namespace] < 2 * self._limits.instances

    def _listed_external_instances(
        self, model: ParsedModel, spec: ModelDeploymentSpec, pool: Pool
    ) -> Iterator[Instance]:
        """Yields the instances of an external pool while its namespace has room for them."""
        if self._has_room(model.namespace):
            for instance in self._external_instances(model, spec, pool):
                self._listed[model.namespace] += 1
                yield instance
                if not self._has_room(model.namespace):
                    return

    def _external_instances(self, model: ParsedModel, spec: ModelDeploymentSpec, pool: Pool) -> Iterator[Instance]:
        """Yields the instances of an external pool."""
        transfer = None if spec.kv_cache.transfer is Transfer.NONE else spec.kv_cache.transfer.value.lower()
        profile, role = self._engine_profile(model, pool.name), pool.role
        named = served_name_override(spec.model.engine_name, model.name)
        adopter = ExternalPool(model.namespace, model.name, pool.name, role, transfer, profile, named)
        if spec.engine.type is EngineType.OPENAI:
            adopter = replace(adopter, engine=EXTERNAL_API)
        if pool.endpoints and model.namespace not in self._objects.endpoint_namespaces:
            self.problems.append(
                f"{model.key}: endpoints are not allowed in the namespace {model.namespace}; an administrator "
                f"allows them by the chart value externalEngines.namespaces (FAIRLEAD_ENDPOINT_NAMESPACES)"
            )
            self.excluded[f"{model.key}: endpoints"] = "its namespace may not name endpoints"
        else:
            yield from self._endpoint_instances(model, pool, adopter)
        if pool.selector is None:
            return
        selection = model.namespace, self._selectors[model.namespace]
        if selection not in self._objects.selected_pods:
            before = self._previous.instances.get(model.key, ())
            yield from (instance for instance in before if instance.pool == pool.name)
            return
        wanted = pool.selector.match_labels.items()
        by_label = self._pods_by_label(selection)
        for pod in min((by_label.get(pair, []) for pair in wanted), key=len, default=[]):
            if wanted <= labels_of(pod).items():
                yield from self._record_exclusion(pod, external_instances(pod, pool.selector.port, adopter))

    def _pods_by_label(self, selection: PodSelection) -> Mapping[tuple[str, str], list[Manifest]]:
        """Returns the selected pods by each of their labels, known ones first.

        Why: many pools may select among many pods.
        """
        found = self._selected_by_label.get(selection)
        if found is None:
            found = self._selected_by_label[selection] = {}
            for pod in self._known_first(self._objects.selected_pods[selection]):
                for pair in labels_of(pod).items():
                    found.setdefault(pair, []).append(pod)
        return found

    def _endpoint_instances(self, model: ParsedModel, pool: Pool, adopter: ExternalPool) -> Iterator[Instance]:
        """Yields the endpoints of a pool, without those whose literal address is refused."""
        for endpoint in pool.endpoints:
            host = urlsplit(endpoint.url).hostname or ""
            refusal = self._endpoint_refusal(host, model.namespace)
            if refusal:
                self.problems.append(f"{model.key}: the endpoint {endpoint.url} is refused: {refusal}")
                self.excluded[f"{model.key}: {endpoint.url}"] = refusal
            else:
                id = endpoint_id(endpoint.url, model.key if adopter.engine == EXTERNAL_API else "")
                yield adopter.make_endpoint(id, endpoint.url, self._endpoint_auth(model, endpoint))

    def _endpoint_auth(self, model: ParsedModel, endpoint: ExternalEndpoint) -> EngineAuth:
        """Returns where the gateway finds the token and the authority of an endpoint.

        Why by namespace: an administrator gives each Secret to namespaces. A model of another one
        could send the token to an address of its own.
        """
        references = endpoint.token_secret_key_ref, endpoint.ca_secret_key_ref
        token, authority = (self._secret_file(model.namespace, reference) for reference in references)
        return EngineAuth(ca_file=authority, token_file=token)

    def _secret_file(self, namespace: str, reference: EndpointSecretKey | None) -> str | None:
        if reference is None:
            return None
        return f"{self._objects.endpoint_secrets}/{namespace}/{reference.name}/{reference.key}"

    def _endpoint_refusal(self, host: str, namespace: str) -> str:
        """Returns why an endpoint may not have this host; empty if it may."""
        if _UID.fullmatch(host):
            return "it has the form of a pod's uid, by which pods are known"
        address = canonical_address(host)
        return "" if address is None else address_refusal(address, self._foreign_addresses(namespace))

    def _foreign_addresses(self, namespace: str) -> frozenset[str]:
        """Returns the addresses of all pods that Fairlead runs or that other namespaces select, and
        of all Services of models.
        """
        found = self._model_addresses.get(namespace)
        if found is None:
            groups = [
                self._objects.pods,
                *(pods for (owner, _), pods in self._objects.selected_pods.items() if owner != namespace),
            ]
            addresses = (pod_address(pod) for group in groups for pod in group.values())
            of_pods = frozenset(filter(None, map(canonical_address, addresses)))
            found = self._model_addresses[namespace] = of_pods | self.service_addresses
        return found

    def _record_exclusion(self, pod: Manifest, found: PodInstances) -> tuple[Instance, ...]:
        if found.exclusion_reason:
            self.excluded[key_of(pod)] = found.exclusion_reason
        return found.instances

    def _engine_profile(self, model: ParsedModel, pool: str) -> EngineProfile | None:
        """Returns the expected profile of the pool's engines; None for the default profile."""
        if model.spec is None:
            before = self._previous.instances.get(model.key, ())
            return next((one.profile for one in before if one.pool == pool), None)
        name = next((one.accelerator_class_name for one in model.spec.pools if one.name == pool), None)
        if name is None:
            return None  # an external pool, or a pool that was removed
        known = self._objects.accelerators.get(name)
        found = None if known is None else known.profile
        if found is None and model.spec.engine.type is EngineType.SIM:
            found = builtin_profiles().get(name)
        if found is None:
            self.problems.append(
                f"{model.key}: there is no AcceleratorClass {name!r}; routing uses the default profile for the pool {pool}"
            )
        return found

    def _replica_price(self, model: ParsedModel, pool: str) -> int | None:
        """Returns the price of a replica of the pool per hour; None if its accelerator has none.

        Instances of a pool that was removed keep their price while they drain.
        """
        spec = None if model.spec is None else next((one for one in model.spec.pools if one.name == pool), None)
        if spec is None or spec.accelerator_class_name is None:
            before = self._previous.instances.get(model.key, ())
            return next((one.replica_nano_usd_per_hour for one in before if one.pool == pool), None)
        known = self._objects.accelerators.get(spec.accelerator_class_name)
        return None if known is None else known.spec.replica_nano_usd_per_hour(spec.parallelism)

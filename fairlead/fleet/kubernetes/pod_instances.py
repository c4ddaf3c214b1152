"""The mapping of one pod to its instances, or to the reason why it has none. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from fairlead import units
from fairlead.api.spec.kv_cache import PeerTransfer
from fairlead.engine_profile import EngineProfile
from fairlead.engines.registry import engine_kinds
from fairlead.fleet.labels import (
    ENDPOINT_LABEL,
    ENGINE_LABEL,
    GROUP_SIZE_ANNOTATION,
    MODEL_LABEL,
    POOL_LABEL,
    ROLE_LABEL,
    PodEngineInfo,
    SleepPhase,
    parse_engine_info,
    parse_sleep_mark,
    used_pod_annotations,
)
from fairlead.fleet.model import (
    KV_TRANSFERS,
    EngineAuth,
    Instance,
    InstanceState,
    KvPullSource,
    Role,
    served_name_override,
)
from fairlead.kube.resources import Manifest, annotations_of, is_deleting, is_ready, labels_of, namespace_of, uid_of

_LWS_PREFIX: Final = "leaderworkerset.sigs.k8s.io/"
DEFAULT_ENGINE_KIND: Final = "vllm"
"""The engine kind assumed for unknown engines, as in local mode: compatible APIs copy vLLM's."""
_METADATA_FIELDS: Final = (
    *("name", "namespace", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp"),
    "labels",
)
_STATUS_FIELDS: Final = ("phase", "reason", "podIP", "conditions")
_NO_AUTH: Final = EngineAuth()
GroupKey = tuple[str, str, str]
"""Namespace, LeaderWorkerSet and group index of a multi-node instance."""


@dataclass(frozen=True, slots=True)
class PodInstances:
    """The instances of a pod, or the reason why there are none."""

    instances: tuple[Instance, ...] = ()
    exclusion_reason: str = ""


@dataclass(frozen=True, slots=True)
class ExternalPool:
    """A pool whose engines Fairlead does not run."""

    namespace: str
    model: str
    pool: str
    role: Role
    transfer: str | None
    profile: EngineProfile | None
    served_name: str | None = None
    engine: str = DEFAULT_ENGINE_KIND

    def make_endpoint(self, id: str, url: str, access: EngineAuth = _NO_AUTH) -> Instance:
        return replace(self.make_instance(id, url), checks_address=True, access=access)

    def make_instance(self, id: str, url: str, state: InstanceState = InstanceState.READY) -> Instance:
        """Returns an instance that serves at `url`."""
        return Instance(
            id=id,
            namespace=self.namespace,
            model=self.model,
            pool=self.pool,
            url=url,
            engine=self.engine,
            role=self.role,
            state=state,
            profile=self.profile,
            transfer=self.transfer,
            served_name=self.served_name,
        )


def trim_pod(pod: Manifest) -> Manifest:
    """Returns the parts of a pod that a fleet needs: neither its spec nor who wrote its fields.

    Why: a namespace may hold many pods, and specs hold environment variables.
    """
    metadata, status = pod.get("metadata") or {}, pod.get("status") or {}
    annotations = used_pod_annotations(annotations_of(pod))
    return {
        "apiVersion": pod.get("apiVersion"),
        "kind": pod.get("kind"),
        "metadata": {
            **{name: metadata[name] for name in _METADATA_FIELDS if name in metadata},
            **({"annotations": annotations} if annotations else {}),
        },
        "status": {name: status[name] for name in _STATUS_FIELDS if name in status},
    }


def managed_instances(
    pod: Manifest,
    profile: EngineProfile | None,
    group_hosts: Mapping[GroupKey, Mapping[int, str]],
    peers: PeerTransfer | None = None,
    replica_price: int | None = None,
) -> PodInstances:
    """Returns the instances of a pod that Fairlead runs, one per data-parallel rank.

    group_hosts: addresses of multi-node instances, by group and pod index.
    peers: how instances copy KV. Pods that were created without peer transfer take no part.
    replica_price: in billionths of a US dollar per hour; None if it is not known.
    """
    labels = labels_of(pod)
    if labels.get(ENDPOINT_LABEL) != "true":
        return PodInstances(exclusion_reason="it serves no HTTP")
    if not labels.get(MODEL_LABEL) or not labels.get(POOL_LABEL):
        return PodInstances(
            exclusion_reason=f"it lacks the label {MODEL_LABEL if not labels.get(MODEL_LABEL) else POOL_LABEL}"
        )
    role = labels.get(ROLE_LABEL, Role.SERVE.value)
    if role not in tuple(Role):
        return PodInstances(exclusion_reason=f"its role {role!r} is not known")
    host, why = _address_or_reason(pod)
    if host is None:
        return PodInstances(exclusion_reason=why)
    notes = parse_engine_info(annotations_of(pod))
    transfer = notes.transfer if notes.transfer in KV_TRANSFERS else None
    if transfer is None and role == Role.PREFILL:
        return PodInstances(exclusion_reason="its role is Prefill, and it has no known KV transfer protocol")
    engine = labels.get(ENGINE_LABEL, DEFAULT_ENGINE_KIND)
    if engine not in engine_kinds():
        engine = DEFAULT_ENGINE_KIND
    nodes = _rank_hosts(pod, host, notes, group_hosts)
    return PodInstances(
        tuple(
            Instance(
                id=f"{uid_of(pod)}/{notes.port}/{rank}",
                namespace=namespace_of(pod) or "default",
                model=labels[MODEL_LABEL],
                pool=labels[POOL_LABEL],
                url=f"http://{host}:{notes.port}",
                engine=engine,
                role=Role(role),
                state=_instance_state(pod),
                profile=profile,
                dp_rank=rank if notes.data_parallel > 1 else None,
                kv_events=_zmq_endpoint(nodes[rank], notes.kv_events_port, rank),
                kv_replay=_zmq_endpoint(nodes[rank], notes.kv_replay_port, rank),
                transfer=transfer,
                bootstrap=f"http://{host}:{notes.bootstrap_port}" if notes.bootstrap_port else None,
                served_name=served_name_override(notes.served_name, labels[MODEL_LABEL]),
                pull=_kv_pull(nodes[rank], notes.kv_peers_port, rank, peers),
                replica_nano_usd_per_hour=replica_price,
            )
            for rank in range(notes.data_parallel)
        )
    )


def external_instances(pod: Manifest, port: int, pool: ExternalPool) -> PodInstances:
    """Returns the instance of a pod that Fairlead does not run, or the reason why it has none."""
    host, why = _address_or_reason(pod)
    if host is None:
        return PodInstances(exclusion_reason=why)
    return PodInstances((pool.make_instance(f"{uid_of(pod)}/{port}/0", f"http://{host}:{port}", _instance_state(pod)),))


def group_addresses(pods: Mapping[str, Manifest]) -> dict[GroupKey, dict[int, str]]:
    """Returns the addresses of multi-node instances, by group and pod index."""
    found: dict[GroupKey, dict[int, str]] = {}
    for pod in pods.values():
        labels, host = labels_of(pod), _host(pod)
        index = labels.get(f"{_LWS_PREFIX}worker-index", "")
        if host is not None and index.isascii() and index.isdecimal():
            found.setdefault(_group_key(pod), {})[int(index)] = host
    return found


def _address_or_reason(pod: Manifest) -> tuple[str | None, str]:
    """Returns the pod's address for URLs, or None and the reason."""
    phase = (pod.get("status") or {}).get("phase")
    if phase in ("Succeeded", "Failed"):
        return None, f"it has ended ({(pod.get('status') or {}).get('reason') or phase})"
    host = _host(pod)
    return host, "" if host is not None else "it has no address yet"


def pod_address(pod: Manifest) -> str:
    """Returns the IP address of a pod; empty if it has none yet."""
    return str((pod.get("status") or {}).get("podIP") or "")


def _host(pod: Manifest) -> str | None:
    address = pod_address(pod)
    return (f"[{address}]" if ":" in address else address) or None


def _instance_state(pod: Manifest) -> InstanceState:
    """Returns the state of the pod's instances.

    A pod that is being deleted, or whose engine is put to sleep, gets no new requests, even while
    it is ready. The drain relies on that.
    """
    if is_deleting(pod):
        return InstanceState.DRAINING
    if not is_ready(pod):
        return InstanceState.STARTING
    mark = parse_sleep_mark(annotations_of(pod))
    if mark is None:
        return InstanceState.READY
    return InstanceState.STARTING if mark.phase is SleepPhase.WAKING else InstanceState.SLEEPING


def _rank_hosts(
    pod: Manifest, host: str, notes: PodEngineInfo, group_hosts: Mapping[GroupKey, Mapping[int, str]]
) -> list[str | None]:
    """Returns the pod address where each rank publishes its KV events; None if it is unknown."""
    size = str(annotations_of(pod).get(GROUP_SIZE_ANNOTATION) or "")
    count = int(size) if size.isascii() and size.isdecimal() and len(size) < 4 else 1
    if count <= 1 or notes.data_parallel <= 1:
        return [host] * notes.data_parallel
    each = max(1, notes.data_parallel // count)
    known = {**group_hosts.get(_group_key(pod), {}), 0: host}
    return [known.get(rank // each) for rank in range(notes.data_parallel)]


def _group_key(pod: Manifest) -> GroupKey:
    labels = labels_of(pod)
    return namespace_of(pod) or "", labels.get(f"{_LWS_PREFIX}name", ""), labels.get(f"{_LWS_PREFIX}group-index", "")


def _kv_pull(host: str | None, port: int | None, rank: int, peers: PeerTransfer | None) -> KvPullSource | None:
    if host is None or port is None or peers is None:
        return None
    bandwidth, latency = units.parse_size(peers.bandwidth), units.parse_duration(peers.latency)
    return KvPullSource(f"{host}:{port + rank}", peers.bytes_per_token, bandwidth, latency)


def _zmq_endpoint(host: str | None, port: int | None, rank: int) -> str | None:
    return f"tcp://{host}:{port + rank}" if host is not None and port is not None else None

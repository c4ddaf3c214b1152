"""One pod → the instances behind its address, or the reason why there are none. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fairlead import units
from fairlead.api import Peers
from fairlead.cluster_labels import (
    ENDPOINT,
    ENGINE,
    MODEL,
    POOL,
    ROLE,
    EngineNotes,
    SleepPhase,
    engine_notes,
    sleep_mark,
)
from fairlead.fleet import TRANSFERS, Instance, InstanceState, Pull, Role, served_as
from fairlead.kube.resource import Manifest, annotations_of, labels_of, leaving, namespace_of, says_ready, uid_of
from fairlead.profile import EngineProfile

_LWS: Final = "leaderworkerset.sigs.k8s.io/"
PLAIN: Final = "vllm"
"""What engines of kinds without metrics of their own are read as, as in local mode: whoever copies an API copies vLLM's."""
_KNOWN: Final = ("vllm", "sglang", "sim")
Group = tuple[str, str, str]
"""Namespace, LeaderWorkerSet and number of an instance that spans nodes."""


@dataclass(frozen=True, slots=True)
class Found:
    """Instances, or ``why`` there are none."""

    instances: tuple[Instance, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class Adopter:
    """The pool that takes in what Fairlead does not run."""

    namespace: str
    model: str
    pool: str
    role: Role
    transfer: str | None
    profile: EngineProfile | None
    served_name: str | None = None

    def instance(self, id: str, url: str, state: InstanceState = InstanceState.READY) -> Instance:
        """One that answers at ``url``."""
        return Instance(
            id=id,
            namespace=self.namespace,
            model=self.model,
            pool=self.pool,
            url=url,
            engine=PLAIN,
            role=self.role,
            state=state,
            profile=self.profile,
            transfer=self.transfer,
            served_name=self.served_name,
        )


def own(
    pod: Manifest,
    profile: EngineProfile | None,
    others: Mapping[Group, Mapping[int, str]],
    peers: Peers | None = None,
) -> Found:
    """The instances of a pod that Fairlead runs, one for each data-parallel rank. ``others``: addresses of groups, by index.
    ``peers``: what it takes to get KV from one; a pod from before the model had them lends to nobody, and borrows nothing."""
    labels = labels_of(pod)
    if labels.get(ENDPOINT) != "true":
        return Found(why="it answers no HTTP")
    if not labels.get(MODEL) or not labels.get(POOL):
        return Found(why=f"it lacks the label {MODEL if not labels.get(MODEL) else POOL}")
    role = labels.get(ROLE, Role.SERVE.value)
    if role not in tuple(Role):
        return Found(why=f"its role {role!r} is none")
    host, why = _reached(pod)
    if host is None:
        return Found(why=why)
    notes = engine_notes(annotations_of(pod))
    transfer = notes.transfer if notes.transfer in TRANSFERS else None
    if transfer is None and role == Role.PREFILL:
        return Found(why="it prefills for others, and nothing that is known says how it hands over")
    engine = labels.get(ENGINE, PLAIN)
    nodes = _nodes(pod, host, notes, others)
    return Found(
        tuple(
            Instance(
                id=f"{uid_of(pod)}/{notes.port}/{rank}",
                namespace=namespace_of(pod) or "default",
                model=labels[MODEL],
                pool=labels[POOL],
                url=f"http://{host}:{notes.port}",
                engine=engine if engine in _KNOWN else PLAIN,
                role=Role(role),
                state=_state(pod),
                profile=profile,
                dp_rank=rank if notes.data_parallel > 1 else None,
                kv_events=_tcp(nodes[rank], notes.kv_events_port, rank),
                kv_replay=_tcp(nodes[rank], notes.kv_replay_port, rank),
                transfer=transfer,
                bootstrap=f"http://{host}:{notes.bootstrap_port}" if notes.bootstrap_port else None,
                served_name=served_as(notes.served_name, labels[MODEL]),
                pull=_pull(nodes[rank], notes.kv_peers_port, rank, peers),
            )
            for rank in range(notes.data_parallel)
        )
    )


def adopted(pod: Manifest, port: int, adopter: Adopter) -> Found:
    """The instance of a pod that somebody else runs."""
    host, why = _reached(pod)
    if host is None:
        return Found(why=why)
    return Found((adopter.instance(f"{uid_of(pod)}/{port}/0", f"http://{host}:{port}", _state(pod)),))


def groups(pods: Mapping[str, Manifest]) -> dict[Group, dict[int, str]]:
    """The addresses of instances that span nodes, by group and the pod's index in it."""
    found: dict[Group, dict[int, str]] = {}
    for pod in pods.values():
        labels, host = labels_of(pod), _host(pod)
        index = labels.get(f"{_LWS}worker-index", "")
        if host is not None and index.isascii() and index.isdecimal():
            found.setdefault(_group(pod), {})[int(index)] = host
    return found


def _reached(pod: Manifest) -> tuple[str | None, str]:
    """Where it answers, as a part of a URL; or None and why it cannot."""
    phase = (pod.get("status") or {}).get("phase")
    if phase in ("Succeeded", "Failed"):
        return None, f"it has ended ({(pod.get('status') or {}).get('reason') or phase})"
    host = _host(pod)
    return host, "" if host is not None else "it has no address yet"


def _host(pod: Manifest) -> str | None:
    address = str((pod.get("status") or {}).get("podIP") or "")
    return (f"[{address}]" if ":" in address else address) or None


def _state(pod: Manifest) -> InstanceState:
    """A pod that is being deleted gets nothing new from now on, whatever it says of itself: its drain counts on that, and so does
    who puts one to sleep."""
    if leaving(pod):
        return InstanceState.DRAINING
    if not says_ready(pod):
        return InstanceState.STARTING
    mark = sleep_mark(annotations_of(pod))
    if mark is None:
        return InstanceState.READY
    return InstanceState.STARTING if mark.phase is SleepPhase.WAKING else InstanceState.SLEEPING


def _nodes(pod: Manifest, host: str, notes: EngineNotes, others: Mapping[Group, Mapping[int, str]]) -> list[str | None]:
    """On which pod each rank publishes its KV events; None for one that is not known yet."""
    size = str(annotations_of(pod).get(f"{_LWS}size") or "")
    count = int(size) if size.isascii() and size.isdecimal() and len(size) < 4 else 1
    if count <= 1 or notes.data_parallel <= 1:
        return [host] * notes.data_parallel
    each = max(1, notes.data_parallel // count)
    known = {**others.get(_group(pod), {}), 0: host}
    return [known.get(rank // each) for rank in range(notes.data_parallel)]


def _group(pod: Manifest) -> Group:
    labels = labels_of(pod)
    return namespace_of(pod) or "", labels.get(f"{_LWS}name", ""), labels.get(f"{_LWS}group-index", "")


def _pull(host: str | None, port: int | None, rank: int, peers: Peers | None) -> Pull | None:
    if host is None or port is None or peers is None:
        return None
    bandwidth, latency = units.size_bytes(peers.bandwidth), units.seconds(peers.latency)
    return Pull(f"{host}:{port + rank}", peers.bytes_per_token, bandwidth, latency)


def _tcp(host: str | None, port: int | None, rank: int) -> str | None:
    return f"tcp://{host}:{port + rank}" if host is not None and port is not None else None

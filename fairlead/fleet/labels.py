"""Labels and annotations on Fairlead's objects in a cluster.

The operator writes them, and the gateway's fleet source reads them. Labels are used in selectors;
annotations describe how to connect to a pod's engine. The names are a contract between releases: a
name never changes its meaning.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fairlead.errors import SettingsError
from fairlead.names import DNS_SUBDOMAIN_PATTERN, SERVED_NAME_PATTERN, shorten_name

MANAGED_BY_LABEL: Final = "app.kubernetes.io/managed-by"
FIELD_MANAGER: Final = "fairlead"
AUTOSCALER_FIELD_MANAGER: Final = "fairlead-autoscaler"
"""The field manager of replica counts set by the autoscaler, and of its part of a model's status.
"""

INSTALLATION_LABEL: Final = "fairlead.io/installation"
"""On children of models: the installation whose operator manages them."""
MODEL_LABEL: Final = "fairlead.io/model"
POOL_LABEL: Final = "fairlead.io/pool"
ROLE_LABEL: Final = "fairlead.io/role"
"""`Serve`, `Prefill` or `Decode`."""
ENGINE_LABEL: Final = "fairlead.io/engine"
"""The value of `spec.engine.type` in lower case."""
CANARY_POOL_SUFFIX: Final = ".canary"
"""Ends the pool label of canary pods. No pool of a spec has a name with a dot."""
ENDPOINT_LABEL: Final = "fairlead.io/endpoint"
"""`true` on pods that serve HTTP. The worker pods of a multi-node instance do not have it."""
POD_REVISION_LABEL: Final = "fairlead.io/revision"
"""Hash of everything in the spec that affects the pod. During a rollout, pods of one pool differ.
"""

PORT_ANNOTATION: Final = "fairlead.io/port"
DATA_PARALLEL_ANNOTATION: Final = "fairlead.io/data-parallel"
"""Number of ranks behind the address, if more than one. Each rank is an instance, chosen by header.
"""
TRANSFER_ANNOTATION: Final = "fairlead.io/transfer"
"""The KV transfer protocol, one of `fairlead.fleet.model.KV_TRANSFERS`."""
BOOTSTRAP_PORT_ANNOTATION: Final = "fairlead.io/bootstrap-port"
KV_EVENTS_PORT_ANNOTATION: Final = "fairlead.io/kv-events-port"
"""Rank r publishes at this port + r.

For a multi-node instance, that is on the pod with the LeaderWorkerSet index r // (ranks / nodes).
"""
KV_REPLAY_PORT_ANNOTATION: Final = "fairlead.io/kv-replay-port"
KV_PEERS_PORT_ANNOTATION: Final = "fairlead.io/kv-peers-port"
"""Port where other instances copy KV of rank 0. Rank r listens at this port + r."""
SERVED_NAME_ANNOTATION: Final = "fairlead.io/served-model-name"
"""The engine's name for the model, if it is not the model's name."""
RENDER_PIN_ANNOTATION: Final = "fairlead.io/render"
"""On a Deployment or LeaderWorkerSet: the installation's values that its pods were rendered with.

An upgrade keeps them.
"""
RELEASE_NAMES_ANNOTATION: Final = "fairlead.io/release-names"
"""On a model, set by people: `true` gives its names to other models that claim them."""
SURGE_ANNOTATION: Final = "fairlead.io/surge"
"""On a LeaderWorkerSet: how many of its replicas are surge groups of a rollout."""
GROUP_SIZE_ANNOTATION: Final = "leaderworkerset.sigs.k8s.io/size"
"""On a pod of a LeaderWorkerSet: the number of pods of its group."""
DELETION_COST_ANNOTATION: Final = "controller.kubernetes.io/pod-deletion-cost"
"""On a pod: the pods with the lowest numbers are removed first."""
SERVING_CONDITION: Final = "fairlead.io/Serving"
"""The condition of a pod whose engine hangs or has hung: `False` while it answers no request."""


SLEEP_ANNOTATION: Final = "fairlead.io/sleep"
"""On a pod whose engine sleeps or should sleep: `LEVEL-PHASE`, with level `1` or `2`.

Gateways send it no requests.
"""

_POD_ANNOTATIONS: Final = frozenset(
    {
        PORT_ANNOTATION,
        DATA_PARALLEL_ANNOTATION,
        TRANSFER_ANNOTATION,
        BOOTSTRAP_PORT_ANNOTATION,
        KV_EVENTS_PORT_ANNOTATION,
        KV_REPLAY_PORT_ANNOTATION,
        KV_PEERS_PORT_ANNOTATION,
        SERVED_NAME_ANNOTATION,
        SLEEP_ANNOTATION,
        GROUP_SIZE_ANNOTATION,
        DELETION_COST_ANNOTATION,
    }
)
_MAX_ANNOTATION_CHARS: Final = 1_024


class SleepPhase(StrEnum):
    """The phase of a pod with a sleep mark: asleep (or to be put to sleep), waking, or stuck."""

    ASLEEP = "asleep"
    WAKING = "waking"
    STUCK = "stuck"


@dataclass(frozen=True, slots=True)
class SleepMark:
    """The parsed sleep annotation, such as `1-asleep`."""

    level: int
    phase: SleepPhase = SleepPhase.ASLEEP

    def annotation_value(self) -> str:
        return f"{self.level}-{self.phase.value}"


def parse_sleep_mark(annotations: Mapping[str, str]) -> SleepMark | None:
    """Returns the sleep mark of a pod; None if it is absent or invalid."""
    level, _, phase = annotations.get(SLEEP_ANNOTATION, "").partition("-")
    return SleepMark(int(level), SleepPhase(phase)) if level in ("1", "2") and phase in tuple(SleepPhase) else None


@dataclass(frozen=True, slots=True)
class PodEngineInfo:
    """The connection data of a pod's engine. `data_parallel` is 1 for an engine without ranks."""

    port: int = 8000
    data_parallel: int = 1
    transfer: str | None = None
    bootstrap_port: int | None = None
    kv_events_port: int | None = None
    kv_replay_port: int | None = None
    served_name: str | None = None
    kv_peers_port: int | None = None

    def annotations(self) -> dict[str, str]:
        """Returns the annotations for the pod, without unset values."""
        values: dict[str, object] = {
            PORT_ANNOTATION: self.port,
            DATA_PARALLEL_ANNOTATION: self.data_parallel if self.data_parallel > 1 else None,
            TRANSFER_ANNOTATION: self.transfer,
            BOOTSTRAP_PORT_ANNOTATION: self.bootstrap_port,
            KV_EVENTS_PORT_ANNOTATION: self.kv_events_port,
            KV_REPLAY_PORT_ANNOTATION: self.kv_replay_port,
            SERVED_NAME_ANNOTATION: self.served_name,
            KV_PEERS_PORT_ANNOTATION: self.kv_peers_port,
        }
        return {name: str(value) for name, value in values.items() if value is not None}


def parse_engine_info(annotations: Mapping[str, str]) -> PodEngineInfo:
    """Returns the engine data of a pod's annotations. Invalid values count as absent.

    Why: people edit annotations.
    """
    ranks = _parse_number(annotations, DATA_PARALLEL_ANNOTATION, 1024)
    return PodEngineInfo(
        port=_parse_number(annotations, PORT_ANNOTATION, 65_535) or 8000,
        data_parallel=ranks or 1,
        transfer=annotations.get(TRANSFER_ANNOTATION),
        bootstrap_port=_parse_number(annotations, BOOTSTRAP_PORT_ANNOTATION, 65_535),
        kv_events_port=_parse_number(annotations, KV_EVENTS_PORT_ANNOTATION, 65_535),
        kv_replay_port=_parse_number(annotations, KV_REPLAY_PORT_ANNOTATION, 65_535),
        served_name=name
        if SERVED_NAME_PATTERN.fullmatch(name := annotations.get(SERVED_NAME_ANNOTATION, ""))
        else None,
        kv_peers_port=_parse_number(annotations, KV_PEERS_PORT_ANNOTATION, 65_535),
    )


def parse_surge_groups(annotations: Mapping[str, str]) -> int:
    return _parse_number(annotations, SURGE_ANNOTATION, 99_999) or 0


def used_pod_annotations(annotations: Mapping[str, str]) -> dict[str, str]:
    """Returns the annotations of a pod that a component of Fairlead uses.

    Why: a template of 256 KiB gives as much to each of thousands of pods.
    """
    return {
        name: annotations[name]
        for name in _POD_ANNOTATIONS
        if name in annotations and len(annotations[name]) <= _MAX_ANNOTATION_CHARS
    }


def _parse_number(annotations: Mapping[str, str], name: str, maximum: int) -> int | None:
    text = annotations.get(name, "")
    value = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0
    return value if 0 < value <= maximum else None


def parse_installation(text: str) -> str:
    """Returns the id as a label value: longer ones are cut, with a hash."""
    if text and not DNS_SUBDOMAIN_PATTERN.fullmatch(text):
        name, hint = "FAIRLEAD_INSTALLATION", "use lower-case letters, digits, - and ., like NAMESPACE.RELEASE"
        raise SettingsError(f"{name}: {text[:70]!r} is not an id", field=name, hint=hint)
    return shorten_name(text)


def installation_of(labels_of_children: Iterable[Mapping[str, str]]) -> str:
    """Returns the id of the installation that manages a model; empty for none.

    Children of two installations belong to the one whose id comes first, so that both agree.
    """
    return min(filter(None, (labels.get(INSTALLATION_LABEL) for labels in labels_of_children)), default="")

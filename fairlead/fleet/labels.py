"""How Fairlead's objects in a cluster say what they are: written by the operator, read by the gateway's fleet source.

Labels are what is selected by; annotations say how to speak with the engine of a pod. The names are a contract between
releases: one that is written once is never given another meaning.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fairlead.names import SERVED_NAME_PATTERN as _SERVED

MANAGED_BY_LABEL: Final = "app.kubernetes.io/managed-by"
FIELD_MANAGER: Final = "fairlead"
AUTOSCALER_FIELD_MANAGER: Final = "fairlead-autoscaler"
"""The field manager of numbers that the autoscaler set, and of its part of a model's status."""

MODEL_LABEL: Final = "fairlead.io/model"
POOL_LABEL: Final = "fairlead.io/pool"
ROLE_LABEL: Final = "fairlead.io/role"
"""``Serve``, ``Prefill`` or ``Decode``."""
ENGINE_LABEL: Final = "fairlead.io/engine"
"""As in ``spec.engine.kind``."""
ENDPOINT_LABEL: Final = "fairlead.io/endpoint"
"""``true`` on pods that answer HTTP; the workers of an instance that spans nodes do not have it."""
POD_REVISION_LABEL: Final = "fairlead.io/revision"
"""The hash of all of the spec that shapes the pod. Pods of one pool with different ones are a rollout under way."""

PORT_ANNOTATION: Final = "fairlead.io/port"
DATA_PARALLEL_ANNOTATION: Final = "fairlead.io/data-parallel"
"""Ranks behind the address, when there are several: each is an instance of its own, asked for by header."""
TRANSFER_ANNOTATION: Final = "fairlead.io/transfer"
"""How KV is handed over: one of ``fairlead.fleet.model.TRANSFERS``."""
BOOTSTRAP_PORT_ANNOTATION: Final = "fairlead.io/bootstrap-port"
KV_EVENTS_PORT_ANNOTATION: Final = "fairlead.io/kv-events-port"
"""Rank r publishes at this port + r. Where an instance spans nodes, that is on the pod whose index in its LeaderWorkerSet is
r // (ranks / nodes)."""
KV_REPLAY_PORT_ANNOTATION: Final = "fairlead.io/kv-replay-port"
KV_PEERS_PORT_ANNOTATION: Final = "fairlead.io/kv-peers-port"
"""Where other instances get KV of rank 0; rank r listens at this port + r."""
SERVED_NAME_ANNOTATION: Final = "fairlead.io/served-model-name"
"""What the engine calls the model, where that is not the model's name."""
RENDER_PIN_ANNOTATION: Final = "fairlead.io/render"
"""Of a Deployment or LeaderWorkerSet: what of the installation went into its pods, so that an upgrade can keep it."""
SURGE_ANNOTATION: Final = "fairlead.io/surge"
"""Of a LeaderWorkerSet: its number holds so many groups more than are asked, while they are replaced."""


SLEEP_ANNOTATION: Final = "fairlead.io/sleep"
"""On a pod whose engine sleeps or is to: gateways send it nothing. ``1`` and ``2`` are levels, with what becomes of it behind."""


class SleepPhase(StrEnum):
    """What becomes of a pod with a mark: it is to sleep, is being woken, or could not be."""

    ASLEEP = "asleep"
    WAKING = "waking"
    STUCK = "stuck"


@dataclass(frozen=True, slots=True)
class SleepMark:
    """As in ``1-asleep``."""

    level: int
    phase: SleepPhase = SleepPhase.ASLEEP

    def annotation_value(self) -> str:
        """As it stands on the pod."""
        return f"{self.level}-{self.phase.value}"


def parse_sleep_mark(annotations: Mapping[str, str]) -> SleepMark | None:
    """The mark of a pod; None where there is none, or none that can be read."""
    level, _, phase = annotations.get(SLEEP_ANNOTATION, "").partition("-")
    return SleepMark(int(level), SleepPhase(phase)) if level in ("1", "2") and phase in tuple(SleepPhase) else None


@dataclass(frozen=True, slots=True)
class PodEngineInfo:
    """What a pod says of its engine. ``data_parallel`` is 1 for an engine without ranks."""

    port: int = 8000
    data_parallel: int = 1
    transfer: str | None = None
    bootstrap_port: int | None = None
    kv_events_port: int | None = None
    kv_replay_port: int | None = None
    served_name: str | None = None
    kv_peers_port: int | None = None

    def annotations(self) -> dict[str, str]:
        """As they stand on the pod; what has no value is left out."""
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
    """The inverse of ``annotations``; a value that is none counts as left out, since people can edit annotations."""
    ranks = _parse_number(annotations, DATA_PARALLEL_ANNOTATION, 1024)
    return PodEngineInfo(
        port=_parse_number(annotations, PORT_ANNOTATION, 65_535) or 8000,
        data_parallel=ranks or 1,
        transfer=annotations.get(TRANSFER_ANNOTATION),
        bootstrap_port=_parse_number(annotations, BOOTSTRAP_PORT_ANNOTATION, 65_535),
        kv_events_port=_parse_number(annotations, KV_EVENTS_PORT_ANNOTATION, 65_535),
        kv_replay_port=_parse_number(annotations, KV_REPLAY_PORT_ANNOTATION, 65_535),
        served_name=name if _SERVED.fullmatch(name := annotations.get(SERVED_NAME_ANNOTATION, "")) else None,
        kv_peers_port=_parse_number(annotations, KV_PEERS_PORT_ANNOTATION, 65_535),
    )


def _parse_number(annotations: Mapping[str, str], name: str, maximum: int) -> int | None:
    text = annotations.get(name, "")
    value = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0
    return value if 0 < value <= maximum else None

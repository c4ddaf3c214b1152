"""State files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from fairlead.errors import Unavailable
from fairlead.fleet.model import SloTargets
from fairlead.runtime.atomic_write import write_atomic
from fairlead_autoscaler.core import PoolSpec, ReplicaState, WakeTiming


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """An engine's process: when it was last started, and when it was ready (None: it is not); ``woken`` is of its last waking."""

    id: str
    state: ReplicaState
    started: float
    ready: float | None = None
    instances: tuple[str, ...] = ()
    woken: WakeTiming | None = None


@dataclass(frozen=True, slots=True)
class LocalPool:
    """A pool, how many replicas are asked for to serve and how many to sleep, and its processes."""

    facts: PoolSpec
    desired: int
    engines: tuple[LocalEngine, ...] = ()
    asleep: int = 0


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model; ``policy`` is ``spec.autoscaling`` as JSON."""

    objectives: SloTargets
    policy: Mapping[str, Any]
    pools: tuple[LocalPool, ...] = ()


@dataclass(frozen=True, slots=True)
class DesiredPool:
    """The number that a pool should have, who leaves first where that is fewer, and how many are to sleep beside them."""

    replicas: int
    leaving: tuple[str, ...] = ()
    asleep: int = 0


@dataclass(frozen=True, slots=True)
class LocalState:
    """The supervisor's file: models by ``namespace/name``."""

    models: Mapping[str, LocalModel] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DesiredPools:
    """The autoscaler's file: by model and pool."""

    pools: Mapping[str, Mapping[str, DesiredPool]] = field(default_factory=dict)


STATE_FILE: Final = "scaling-there.json"
"""The supervisor's file in the run directory."""


DESIRED_FILE: Final = "scaling-wishes.json"
"""The autoscaler's."""


_Value = TypeVar("_Value")


_state_decoder: Final = msgspec.json.Decoder(LocalState)


_desired_decoder: Final = msgspec.json.Decoder(DesiredPools)


def write_file(path: Path, value: LocalState | DesiredPools) -> None:
    """Replace a file by ``value``, in one step. Raises OSError."""
    write_atomic(path, msgspec.json.encode(value))


def read_state(path: Path) -> LocalState:
    """What the supervisor wrote. Raises Unavailable."""
    return _read(path, _state_decoder)


def read_desired(path: Path) -> DesiredPools:
    """What the autoscaler wrote. Raises Unavailable."""
    return _read(path, _desired_decoder)


def _read(path: Path, decoder: "msgspec.json.Decoder[_Value]") -> _Value:
    try:
        return decoder.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise Unavailable(f"{path} cannot be read ({type(error).__name__})") from error

"""State files of local mode, in the run directory.

The supervisor of `fairlead up` writes its models and engines into one, at every change of an
engine. The autoscaler writes the numbers of replicas that it wants into the other. Both are
replaced as a whole. Either process may be killed and started again, and continues from the files.
Times are monotonic seconds of the machine's clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from fairlead.errors import Unavailable
from fairlead.fleet.model import SloTargets
from fairlead.runtime.atomic_write import write_atomic
from fairlead_autoscaler.core import PoolSpec, ReplicaState, WakeTiming

STATE_FILE: Final = "scaling-there.json"
"""The supervisor's file."""
DESIRED_FILE: Final = "scaling-wishes.json"
"""The autoscaler's file."""


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """The process of one engine.

    started: when it was last started.
    ready: when it became ready; None: it is not.
    woken: its last wake.
    """

    id: str
    state: ReplicaState
    started: float
    ready: float | None = None
    instances: tuple[str, ...] = ()
    woken: WakeTiming | None = None


@dataclass(frozen=True, slots=True)
class LocalPool:
    """A pool and its engines.

    desired, asleep: replicas that should serve, and that should sleep.
    """

    facts: PoolSpec
    desired: int
    engines: tuple[LocalEngine, ...] = ()
    asleep: int = 0


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model: its latency targets, its autoscaling policy and its pools.

    policy: `spec.autoscaling` as JSON.
    """

    objectives: SloTargets
    policy: Mapping[str, Any]
    pools: tuple[LocalPool, ...] = ()


@dataclass(frozen=True, slots=True)
class DesiredPool:
    """The numbers that a pool should have.

    leaving: replicas to stop first, if there are too many.
    asleep: replicas that should sleep.
    """

    replicas: int
    leaving: tuple[str, ...] = ()
    asleep: int = 0


@dataclass(frozen=True, slots=True)
class LocalState:
    """The supervisor's file: models by `namespace/name`."""

    models: Mapping[str, LocalModel] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DesiredPools:
    """The autoscaler's file: numbers by model and pool."""

    pools: Mapping[str, Mapping[str, DesiredPool]] = field(default_factory=dict)


_Value = TypeVar("_Value")
_state_decoder: Final = msgspec.json.Decoder(LocalState)
_desired_decoder: Final = msgspec.json.Decoder(DesiredPools)


def write_file(path: Path, value: LocalState | DesiredPools) -> None:
    """Replaces a file by `value` atomically. Raises OSError."""
    write_atomic(path, msgspec.json.encode(value))


def read_state(path: Path) -> LocalState:
    """Returns the supervisor's file. Raises Unavailable if it cannot be read."""
    return _read(path, _state_decoder)


def read_desired(path: Path) -> DesiredPools:
    """Returns the autoscaler's file. Raises Unavailable if it cannot be read."""
    return _read(path, _desired_decoder)


def _read(path: Path, decoder: "msgspec.json.Decoder[_Value]") -> _Value:
    try:
        return decoder.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise Unavailable(f"{path} cannot be read ({type(error).__name__})") from error

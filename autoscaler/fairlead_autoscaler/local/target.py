"""The autoscaler's side of local mode: two files of the run directory in place of an API server.

The supervisor of ``fairlead up`` writes what there is into one, at every step of an engine; the autoscaler writes the numbers that it
wants into the other. Both are replaced whole. Either side may be killed and started again and goes on from what the files say.
Times are monotonic seconds of the machine's one clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from fairlead.api import Autoscaling
from fairlead.errors import Unavailable
from fairlead.fleet.model import SloTargets
from fairlead.runtime.atomic_write import write_atomic
from fairlead.runtime.clock import Clock
from fairlead_autoscaler.collector.observation import scaled_model
from fairlead_autoscaler.core import PoolSpec, ReplicaState, WakeTiming
from fairlead_autoscaler.target import ModelState, PoolState, Replica


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


class LocalTarget:
    """What the supervisor says there is, on a clock that runs ``speed`` times as fast as the machine's."""

    def __init__(self, path: Path, clock: Clock, interval_seconds: float, speed: float = 1.0) -> None:
        self._path = path
        self._speed = speed
        self._clock = clock
        self._interval = interval_seconds

    async def observe(self) -> Mapping[str, ModelState]:
        """Every model that it scales. Raises Unavailable while its file cannot be read."""
        now = self._clock.now()
        return {key: self._model(key, model, now) for key, model in read_state(self._path).models.items()}

    def _model(self, key: str, model: LocalModel, now: float) -> ModelState:
        facts = [pool.facts for pool in model.pools]
        policy = Autoscaling.model_validate(model.policy)
        scaled = scaled_model(key, model.objectives, facts, interval_seconds=self._interval, replicas_most=policy.max)
        pools = {
            pool.facts.name: PoolState(pool.desired, _replicas(pool.engines, now, self._speed), asleep=pool.asleep)
            for pool in model.pools
        }
        return ModelState(scaled, policy, pools)


def _replicas(engines: Sequence[LocalEngine], now: float, speed: float) -> tuple[Replica, ...]:
    return tuple(
        Replica(
            one.id,
            one.state,
            max(0.0, now - one.started * speed),
            None if one.ready is None else (one.ready - one.started) * speed,
            one.instances,
            last_wake=None if one.woken is None else replace(one.woken, seconds=one.woken.seconds * speed),
        )
        for one in engines
    )


class FileScaler:
    """``fairlead.fleet.model.Scaler`` for local mode: the numbers wanted last, of all pools, in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def scale(self, key: str, pool: str, replicas: int, leaving: Sequence[str] = (), asleep: int = 0) -> None:
        """Ask for ``replicas``. Raises Unavailable when the file cannot be written."""
        try:
            wishes = read_desired(self._path).pools
        except Unavailable:  # nobody has wished for anything yet, or what was wished is no more to be read
            wishes = {}
        pools = {**wishes.get(key, {}), pool: DesiredPool(replicas, tuple(leaving), asleep)}
        try:
            write_file(self._path, DesiredPools({**wishes, key: pools}))
        except OSError as error:
            raise Unavailable(f"{self._path} cannot be written ({error.strerror})") from error

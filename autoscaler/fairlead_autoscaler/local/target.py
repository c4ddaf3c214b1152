"""Scale target of local mode: the files in the run directory."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fairlead.api.spec.autoscaling import Autoscaling
from fairlead.errors import Unavailable
from fairlead.runtime.clock import Clock
from fairlead_autoscaler.local.state_files import (
    DesiredPool,
    DesiredPools,
    LocalEngine,
    LocalModel,
    read_desired,
    read_state,
    write_file,
)
from fairlead_autoscaler.model_spec import scaled_model
from fairlead_autoscaler.target import ModelState, PoolState, Replica


class LocalTarget:
    """The scale target of local mode: the models that the supervisor of `fairlead up` runs.

    speed: how many times as fast as the machine's clock `clock` runs.
    """

    def __init__(self, path: Path, clock: Clock, interval_seconds: float, speed: float = 1.0) -> None:
        self._path = path
        self._speed = speed
        self._clock = clock
        self._interval_seconds = interval_seconds

    async def observe(self) -> Mapping[str, ModelState]:
        """Returns every model that is scaled. Raises Unavailable if the supervisor's file cannot be
        read.
        """
        now = self._clock.now()
        return {key: self._model(key, model, now) for key, model in read_state(self._path).models.items()}

    def _model(self, key: str, model: LocalModel, now: float) -> ModelState:
        specs = [pool.facts for pool in model.pools]
        policy = Autoscaling.model_validate(model.policy)
        scaled = scaled_model(
            key, model.objectives, specs, interval_seconds=self._interval_seconds, replicas_most=policy.max_replicas
        )
        pools = {
            pool.facts.name: PoolState(pool.desired, _replicas(pool.engines, now, self._speed), asleep=pool.asleep)
            for pool in model.pools
        }
        return ModelState(scaled, policy, pools)


def _replicas(engines: Sequence[LocalEngine], now: float, speed: float) -> tuple[Replica, ...]:
    return tuple(
        Replica(
            engine.id,
            engine.state,
            max(0.0, now - engine.started * speed),
            None if engine.ready is None else (engine.ready - engine.started) * speed,
            engine.instances,
            last_wake=None if engine.woken is None else replace(engine.woken, seconds=engine.woken.seconds * speed),
        )
        for engine in engines
    )


class FileScaler:
    """The replica scaler of local mode: writes the last numbers of all pools into one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def scale(self, key: str, pool: str, replicas: int, leaving: Sequence[str] = (), asleep: int = 0) -> None:
        """Writes the numbers of one pool. Raises Unavailable if the file cannot be written."""
        try:
            desired = read_desired(self._path).pools
        except Unavailable:  # there is no file yet, or it is damaged
            desired = {}
        pools = {**desired.get(key, {}), pool: DesiredPool(replicas, tuple(leaving), asleep)}
        try:
            write_file(self._path, DesiredPools({**desired, key: pools}))
        except OSError as error:
            raise Unavailable(f"{self._path} cannot be written ({error.strerror})") from error

"""The autoscaler's side of local mode: two files of the run directory in place of an API server.

The supervisor of ``fairlead up`` writes what there is into one, at every step of an engine; the autoscaler writes the numbers that it
wants into the other. Both are replaced whole. Either side may be killed and started again and goes on from what the files say.
Times are monotonic seconds of the machine's one clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fairlead.api import Autoscaling
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

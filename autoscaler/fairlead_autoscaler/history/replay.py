"""Replay: runs the pure core again over a recording, with other settings. Pure.

Observations stay as recorded: replicas and requests followed the recorded decisions. So a replay
shows the decision at each recorded moment, not its consequences; the simulator shows those
(`bench/fairlead_bench/autoscaler`). A replay begins at the first record with a state, or
else at the first record of all, without any memory.

Two cores run: one with the recorded settings, which shows whether this release decides as the
recorded one did, and one with the changed settings. Queries for an accelerator mix get the recorded
reply if they equal the recorded query. Other queries get the solver's reply at the next tick.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from fairlead.distribution import ADDRESSES
from fairlead.errors import BadInput
from fairlead.names import closest_matches
from fairlead_autoscaler.core import CoreState, MixRequest, MixResult, ModelSpec, PoolPlan, ScalingCore, ScalingSettings
from fairlead_autoscaler.core.settings import DEFAULT_VALUES
from fairlead_autoscaler.history.recorder import TickRecord

_MODEL_FIELDS: Final = {"target": "target", "ttft": "ttft_seconds", "itl": "itl_seconds", "period": "period_seconds"}
"""The model's targets that may be changed, by the names that people use."""
_MIN_PERIOD_SECONDS: Final = 3_600.0
_SHARE_HINT: Final = "write 0.99 for 99 %"
ReplayVariant: TypeAlias = Literal["recorded", "again", "other"]


@dataclass(frozen=True, slots=True)
class SettingChanges:
    """Changed settings of the core, by flat names, and changed targets of the model."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)

    def apply_to(self, record: TickRecord) -> tuple[ModelSpec, ScalingSettings]:
        return replace(record.model, **self.model), record.scaling_settings.with_values(self.settings)


@dataclass(frozen=True, slots=True)
class ReplayMoment:
    """One pool at one tick: the recorded plan, and this release's plans with the recorded settings
    (`reproduced`) and with the changed ones.

    seconds: time until the next record.
    """

    wall: float
    seconds: float
    recorded: PoolPlan
    reproduced: PoolPlan
    changed: PoolPlan

    def plan_of(self, variant: ReplayVariant) -> PoolPlan:
        return {"recorded": self.recorded, "again": self.reproduced, "other": self.changed}[variant]


@dataclass(frozen=True, slots=True)
class PoolReplay:
    """One pool of one model over the whole recording.

    has_state: it began with the recorded state.
    """

    model: str
    pool: str
    moments: tuple[ReplayMoment, ...]
    has_state: bool

    def replica_counts(self, variant: ReplayVariant) -> list[int]:
        return [moment.plan_of(variant).replicas for moment in self.moments]

    def mean_need(self, variant: ReplayVariant) -> float | None:
        """Returns the replicas that the load needed, as a mean over time; None if no record has the
        demand.

        Why: planned numbers start at each record from the recorded replicas. Demand differs as much
        as the settings do.
        """
        known = [
            (needed.value, moment.seconds)
            for moment in self.moments
            if (needed := moment.plan_of(variant).inputs.get("needed_here_replicas")) and needed.value is not None
        ]
        total = sum(seconds for _, seconds in known)
        return sum(needed * seconds for needed, seconds in known) / total if total > 0.0 else None

    @property
    def deviations(self) -> int:
        """The number of moments at which this release's decision differs from the recorded one.

        Both are made with the recorded settings.
        """
        return sum(moment.reproduced.replicas != moment.recorded.replicas for moment in self.moments)

    def differences(self) -> list[ReplayMoment]:
        """Returns the moments at which the changed settings begin to make a new difference."""
        differences: list[ReplayMoment] = []
        last: tuple[int, int] | None = None
        for moment in self.moments:
            pair = (moment.reproduced.replicas, moment.changed.replicas)
            if pair[0] != pair[1] and pair != last:
                differences.append(moment)
            last = pair
        return differences


def parse_changes(texts: Iterable[str]) -> SettingChanges:
    """Returns the changes of `name=value` texts. Raises BadInput for an unknown setting or a wrong
    value.
    """
    settings: dict[str, Any] = {}
    model: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise BadInput(f"--set: {text!r} has no value", field="--set", hint="write it like goal_usual=0.8")
        if name in _MODEL_FIELDS:
            model[_MODEL_FIELDS[name]] = _parse_value(name, value, 0.0)
        elif name in DEFAULT_VALUES:
            settings[name] = _parse_value(name, value, DEFAULT_VALUES[name])
        else:
            close = closest_matches(name, [*_MODEL_FIELDS, *DEFAULT_VALUES], count=1)
            others = (
                "the core's, such as goal_usual or window_seconds: see the documentation, "
                f"{ADDRESSES.documentation_page('reference/autoscaler.html')}"
            )
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_MODEL_FIELDS)} and {others}"
            raise BadInput(f"--set: {name!r} is not a setting", field="--set", hint=hint)
    return SettingChanges(settings, model)


def _parse_value(name: str, text: str, default: Any) -> Any:
    """Returns a value of the type of `default`. Raises BadInput for other types, and for numbers
    that are infinite or negative.
    """
    kind = "true or false" if isinstance(default, bool) else "a number"
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        value = float(text)
    except (ValueError, KeyError):
        raise BadInput(f"--set: {name} is {kind}, not {text!r}", field="--set") from None
    if not 0.0 <= value < math.inf:
        raise BadInput(f"--set: {name} is {kind} that is finite and not negative, not {text!r}", field="--set")
    if name == "period" and value < _MIN_PERIOD_SECONDS:
        raise BadInput(f"--set: period is in seconds and at least an hour, not {text}", field="--set")
    if name == "target" and not 0.0 < value <= 1.0:
        raise BadInput(f"--set: target is a share above 0 and at most 1, not {text}", field="--set", hint=_SHARE_HINT)
    return value


def replay(
    records: Iterable[TickRecord], changes: SettingChanges, solver: Callable[[MixRequest], MixResult] | None = None
) -> list[PoolReplay]:
    """Returns the replay of every pool of every recorded model, by name.

    solver: replies to queries that were not recorded; None: they get no reply.
    """
    by_model: dict[str, list[TickRecord]] = {}
    for record in records:
        by_model.setdefault(record.model.name, []).append(record)
    return [
        pool for _, model_records in sorted(by_model.items()) for pool in _replay_model(model_records, changes, solver)
    ]


def _replay_model(
    records: Sequence[TickRecord], changes: SettingChanges, solver: Callable[[MixRequest], MixResult] | None
) -> list[PoolReplay]:
    first = next((number for number, record in enumerate(records) if record.before is not None), None)
    chosen = records[first or 0 :]
    state = chosen[0].before or CoreState()
    reproduced = _CoreRun(ScalingCore(chosen[0].model, chosen[0].scaling_settings, state), solver)
    changed = _CoreRun(ScalingCore(*changes.apply_to(chosen[0]), state), solver)
    moments: dict[str, list[ReplayMoment]] = {}
    for number, record in enumerate(chosen):
        following = chosen[number + 1].wall if number + 1 < len(chosen) else record.wall
        plans = reproduced.step(record, record.model, record.scaling_settings), _step_changed(changed, record, changes)
        for pool, recorded in record.plan.pools.items():
            if pool in plans[0] and pool in plans[1]:
                seconds = max(0.0, following - record.wall)
                moments.setdefault(pool, []).append(
                    ReplayMoment(record.wall, seconds, recorded, plans[0][pool], plans[1][pool])
                )
    model, has_state = chosen[0].model.name, first is not None
    return [PoolReplay(model, pool, tuple(pool_moments), has_state) for pool, pool_moments in sorted(moments.items())]


class _CoreRun:
    """A core that runs over the records, and its queries that were not recorded."""

    def __init__(self, core: ScalingCore, solver: Callable[[MixRequest], MixResult] | None) -> None:
        self._core = core
        self._solver = solver
        self._own_requests: dict[str, MixRequest] = {}

    def step(self, record: TickRecord, model: ModelSpec, settings: ScalingSettings) -> Mapping[str, PoolPlan]:
        """Returns the plans at one record."""
        core, observation = self._core, record.observation
        core.model, core.settings = model, settings
        if self._solver is not None and self._own_requests:
            own = {role: self._solver(request) for role, request in self._own_requests.items()}
            observation = replace(observation, mixes={**observation.mixes, **own})
        plan = core.step(observation)
        self._own_requests = {
            role: request for role, request in plan.asks.items() if request != record.plan.asks.get(role)
        }
        return plan.pools


def _step_changed(run: _CoreRun, record: TickRecord, changes: SettingChanges) -> Mapping[str, PoolPlan]:
    """Returns the plans with the changed settings. Raises BadInput if these make a decision
    impossible, such as a queue that ends in no time.
    """
    try:
        return run.step(record, *changes.apply_to(record))
    except ArithmeticError as error:
        raise BadInput(f"--set: nothing can be decided with these settings ({error})", field="--set") from error

"""The pure core once more over what was recorded, with other settings. Pure.

What was seen stays as it was: replicas and requests did what the recorded decisions made of them. So a replay says what would have
been decided at each moment in the place that there was, and not what would have come of it; for that there is the simulator
(``bench/autoscaler``). It begins at the first look that carries what the core remembered; without one at the first of all, and
then knows nothing yet.

Both runs go through the same code: one with the recorded settings, which shows whether this release decides as the one that was
recorded, and one with the changed ones. A run that asks for a mix of accelerators what was asked then gets the answer that came then,
when it came; one that asks otherwise is answered at the next look.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from fairlead.errors import BadInput
from fairlead.names import closest_matches
from fairlead_autoscaler.core import CoreState, MixRequest, MixResult, ModelSpec, PoolPlan, ScalingCore, ScalingSettings
from fairlead_autoscaler.core.settings import DEFAULT_VALUES
from fairlead_autoscaler.history.recorder import TickRecord

_MODEL_FIELDS: Final = {"target": "target", "ttft": "ttft_seconds", "itl": "itl_seconds"}
"""What of the model's objectives may be changed, by the name that people use."""
_SHARE_HINT: Final = "write 0.99 for 99 %"
ReplayVariant: TypeAlias = Literal["recorded", "again", "other"]


@dataclass(frozen=True, slots=True)
class SettingChanges:
    """What is set otherwise: of the core's settings, and of the model's objectives."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)

    def apply_to(self, look: TickRecord) -> tuple[ModelSpec, ScalingSettings]:
        """Model and settings of a look with the changes."""
        return replace(look.model, **self.model), look.scaling_settings.with_values(self.settings)


@dataclass(frozen=True, slots=True)
class ReplayMoment:
    """One pool at one tick: what was planned then, what this release plans with the recorded settings (``again``), and what with the
    changed ones (``other``). ``seconds`` is the time until the next look."""

    wall: float
    seconds: float
    recorded: PoolPlan
    reproduced: PoolPlan
    changed: PoolPlan

    def plan_of(self, which: ReplayVariant) -> PoolPlan:
        """One of the three."""
        return {"recorded": self.recorded, "again": self.reproduced, "other": self.changed}[which]


@dataclass(frozen=True, slots=True)
class PoolReplay:
    """One pool of one model over the whole recording. ``remembered``: it began with what the core knew then."""

    model: str
    pool: str
    moments: tuple[ReplayMoment, ...]
    has_state: bool

    def replica_counts(self, which: ReplayVariant) -> list[int]:
        """The replicas planned, moment by moment."""
        return [one.plan_of(which).replicas for one in self.moments]

    def mean_need(self, which: ReplayVariant) -> float | None:
        """The replicas that the load took, on the mean over time: unlike numbers planned, which begin at each look from what there
        was then, these differ as much as the settings do. None where no look knew."""
        known = [
            (value, one.seconds)
            for one in self.moments
            if (told := one.plan_of(which).inputs.get("needed_here_replicas")) and (value := told.value) is not None
        ]
        seconds = sum(each for _, each in known)
        return sum(value * each for value, each in known) / seconds if seconds > 0.0 else None

    @property
    def deviations(self) -> int:
        """Moments at which this release decides otherwise than was recorded, by itself."""
        return sum(one.reproduced.replicas != one.recorded.replicas for one in self.moments)

    def differences(self) -> list[ReplayMoment]:
        """The moments at which the changed settings begin to decide otherwise, or otherwise than just before."""
        found: list[ReplayMoment] = []
        last: tuple[int, int] | None = None
        for one in self.moments:
            pair = (one.reproduced.replicas, one.changed.replicas)
            if pair[0] != pair[1] and pair != last:
                found.append(one)
            last = pair
        return found


def parse_changes(texts: Iterable[str]) -> SettingChanges:
    """``name=value`` each. Raises BadInput naming what is no setting, or no value of it."""
    settings: dict[str, Any] = {}
    model: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise BadInput(f"--set: {text!r} sets nothing", field="--set", hint="write it like spread_sigmas=1.5")
        if name in _MODEL_FIELDS:
            model[_MODEL_FIELDS[name]] = _parse_value(name, value, 0.0)
        elif name in DEFAULT_VALUES:
            settings[name] = _parse_value(name, value, DEFAULT_VALUES[name])
        else:
            close = closest_matches(name, [*_MODEL_FIELDS, *DEFAULT_VALUES], count=1)
            others = "the core's, such as spread_sigmas or window_seconds: see docs/reference/autoscaler.md"
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_MODEL_FIELDS)} and {others}"
            raise BadInput(f"--set: {name!r} is no setting", field="--set", hint=hint)
    return SettingChanges(settings, model)


def _parse_value(name: str, text: str, default: Any) -> Any:
    """Raises BadInput for what is no value of it; numbers are finite and none is negative."""
    kind = (
        "true or false" if isinstance(default, bool) else "a whole number" if isinstance(default, int) else "a number"
    )
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        value = int(text) if isinstance(default, int) else float(text)
    except (ValueError, KeyError):
        raise BadInput(f"--set: {name} is {kind}, not {text!r}", field="--set") from None
    if not 0.0 <= value < math.inf:
        raise BadInput(f"--set: {name} is {kind} that is finite and not negative, not {text!r}", field="--set")
    if name == "target" and not 0.0 < value <= 1.0:
        raise BadInput(f"--set: target is a share above 0 and at most 1, not {text}", field="--set", hint=_SHARE_HINT)
    return value


def replay(
    looks: Iterable[TickRecord], changes: SettingChanges, solver: Callable[[MixRequest], MixResult] | None = None
) -> list[PoolReplay]:
    """Every pool of every model that was recorded, in order of name. ``solver`` answers what was not asked then; without one nobody
    does."""
    by_model: dict[str, list[TickRecord]] = {}
    for look in looks:
        by_model.setdefault(look.model.name, []).append(look)
    return [one for _, found in sorted(by_model.items()) for one in _replay_model(found, changes, solver)]


def _replay_model(
    looks: Sequence[TickRecord], changes: SettingChanges, solver: Callable[[MixRequest], MixResult] | None
) -> list[PoolReplay]:
    begin = next((number for number, look in enumerate(looks) if look.before is not None), None)
    chosen = looks[begin or 0 :]
    state = chosen[0].before or CoreState()
    again = _CoreRun(ScalingCore(chosen[0].model, chosen[0].scaling_settings, state), solver)
    other = _CoreRun(ScalingCore(*changes.apply_to(chosen[0]), state), solver)
    moments: dict[str, list[ReplayMoment]] = {}
    for number, look in enumerate(chosen):
        following = chosen[number + 1].wall if number + 1 < len(chosen) else look.wall
        plans = again.step(look, look.model, look.scaling_settings), _step_changed(other, look, changes)
        for pool, recorded in look.plan.pools.items():
            if pool in plans[0] and pool in plans[1]:
                seconds = max(0.0, following - look.wall)
                moments.setdefault(pool, []).append(
                    ReplayMoment(look.wall, seconds, recorded, plans[0][pool], plans[1][pool])
                )
    model, remembered = chosen[0].model.name, begin is not None
    return [PoolReplay(model, pool, tuple(found), remembered) for pool, found in sorted(moments.items())]


class _CoreRun:
    """A core that goes through the looks, and the questions that it asked and nobody did then."""

    def __init__(self, core: ScalingCore, solver: Callable[[MixRequest], MixResult] | None) -> None:
        self._core = core
        self._solver = solver
        self._own_requests: dict[str, MixRequest] = {}

    def step(self, look: TickRecord, model: ModelSpec, settings: ScalingSettings) -> Mapping[str, PoolPlan]:
        """What it plans at one look."""
        core, seen = self._core, look.observation
        core.model, core.settings = model, settings
        if self._solver is not None and self._own_requests:
            own = {role: self._solver(asked) for role, asked in self._own_requests.items()}
            seen = replace(seen, mixes={**seen.mixes, **own})
        plan = core.step(seen)
        self._own_requests = {role: asked for role, asked in plan.asks.items() if asked != look.plan.asks.get(role)}
        return plan.pools


def _step_changed(run: _CoreRun, look: TickRecord, changes: SettingChanges) -> Mapping[str, PoolPlan]:
    """What the changed settings plan. Raises BadInput where nothing can be decided with them, as with bins of no length."""
    try:
        return run.step(look, *changes.apply_to(look))
    except ArithmeticError as error:
        raise BadInput(f"--set: with these settings nothing can be decided ({error})", field="--set") from error

"""The mixed-integer program as the scaling core asks it."""

from collections.abc import Callable
from dataclasses import replace

from fairlead_autoscaler.mix.plan import plan_mix
from fairlead_autoscaler.mix.values import MixSettings
from fairlead_autoscaler.scaling import MixAsked, MixTold

Solver = Callable[[MixAsked], MixTold]
"""From a question to its answer. It raises nothing."""

_TRUSTED = ("milp", "milp-limit")
"""Only what the program found is followed: where there is no time, or no room, the core's own rule is as good as a greedy mix."""


_UNHURRIED_SECONDS = 120.0


def unhurried() -> Solver:
    """A solver for simulated time. By the wall's clock a busy machine would be answered otherwise than a calm one, and a day in the
    simulator would be another day."""
    return solver(replace(MixSettings(), solve_seconds=_UNHURRIED_SECONDS))


def solver(settings: MixSettings | None = None) -> Solver:
    """A solver with these settings. It raises nothing: a library that fails costs the mix, never a decision."""
    chosen = settings or MixSettings()

    def answer(asked: MixAsked) -> MixTold:
        try:
            mix = plan_mix(asked.rates, asked.candidates, chosen)
        except Exception as error:  # noqa: BLE001 - whatever a solver's library raises
            return MixTold(asked.at, None, f"failed: {type(error).__name__}")
        return MixTold(asked.at, mix.replicas if mix.rule in _TRUSTED else None, mix.rule)

    return answer

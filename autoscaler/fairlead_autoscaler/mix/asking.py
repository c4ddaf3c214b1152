"""The mixed-integer program as the scaling core asks it."""

from collections.abc import Sequence

from fairlead_autoscaler.mix.plan import plan_mix
from fairlead_autoscaler.mix.values import MixSettings
from fairlead_autoscaler.scaling.blend import Answer, Candidate, Solver

_TRUSTED = ("milp", "milp-limit")
"""Only what the program found is followed: where there is no time, or no room, the core's own rule is as good as a greedy mix."""


def solver(settings: MixSettings | None = None) -> Solver:
    """A solver with these settings. It raises nothing: a library that fails costs the mix, never a decision."""
    chosen = settings or MixSettings()

    def ask(rates: Sequence[float], candidates: Sequence[Candidate]) -> Answer:
        try:
            mix = plan_mix(rates, candidates, chosen)
        except Exception as error:  # noqa: BLE001 - whatever a solver's library raises
            return Answer(None, f"failed: {type(error).__name__}")
        return Answer(mix.replicas if mix.rule in _TRUSTED else None, mix.rule)

    return ask

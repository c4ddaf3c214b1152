"""What several workers think of an instance, in one word and one sentence: the worst of them, and how many think so.

Each worker ejects by what it has seen itself.
"""

from collections.abc import Callable, Mapping, Sequence

from fairlead_gateway.worker.resilience.outlier_detection import HealthState

_HEALTHY = (HealthState.HEALTHY.value, "")
_WORST_FIRST = (HealthState.EJECTED.value, HealthState.PROBING.value, HealthState.WARMING.value)


def merge_health_states(reported: Sequence[Mapping[str, tuple[str, str]]]) -> Callable[[str], tuple[str, str]]:
    """From what each worker told of instances that are not healthy to (standing, why) of any instance."""

    def standing(instance: str) -> tuple[str, str]:
        found = [one[instance] for one in reported if instance in one]
        if not found:
            return _HEALTHY
        word, why = min(found, key=lambda one: _WORST_FIRST.index(one[0]))
        same = sum(one[0] == word for one in found)
        return word, why if len(reported) == 1 else f"{why} ({same} of {len(reported)} workers)"

    return standing

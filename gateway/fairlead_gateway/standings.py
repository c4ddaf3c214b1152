"""What several workers think of an instance, in one word and one sentence: the worst of them, and how many think so.

Each worker ejects by what it has seen itself.
"""

from collections.abc import Callable, Mapping, Sequence

from fairlead_gateway.breaker import Standing

_HEALTHY = (Standing.HEALTHY.value, "")
_WORST_FIRST = (Standing.EJECTED.value, Standing.PROBING.value, Standing.WARMING.value)


def standings(told: Sequence[Mapping[str, tuple[str, str]]]) -> Callable[[str], tuple[str, str]]:
    """From what each worker told of instances that are not healthy to (standing, why) of any instance."""

    def standing(instance: str) -> tuple[str, str]:
        found = [one[instance] for one in told if instance in one]
        if not found:
            return _HEALTHY
        word, why = min(found, key=lambda one: _WORST_FIRST.index(one[0]))
        same = sum(one[0] == word for one in found)
        return word, why if len(told) == 1 else f"{why} ({same} of {len(told)} workers)"

    return standing

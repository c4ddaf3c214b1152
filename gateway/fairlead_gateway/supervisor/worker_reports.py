"""What several workers think of an instance, in one word and one sentence: the worst of them, and how many think so.

Each worker ejects by what it has seen itself.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from fairlead.runtime.loop_lag import LoopLag
from fairlead_gateway.ipc import messages as say
from fairlead_gateway.telemetry.snapshot import ModelSnapshot
from fairlead_gateway.telemetry.status_types import HealthState

if TYPE_CHECKING:  # without an engine that tells what it holds neither is loaded
    pass

_HEALTHY = (HealthState.HEALTHY.value, "")
_WORST_FIRST = (HealthState.EJECTED.value, HealthState.PROBING.value, HealthState.WARMING.value)


def merge_health_states(reported: Sequence[Mapping[str, tuple[str, str]]]) -> Callable[[str], tuple[str, str]]:
    """From what each worker told of instances that are not healthy to (standing, why) of any instance."""

    def health_of(instance: str) -> tuple[str, str]:
        found = [one[instance] for one in reported if instance in one]
        if not found:
            return _HEALTHY
        word, why = min(found, key=lambda one: _WORST_FIRST.index(one[0]))
        same = sum(one[0] == word for one in found)
        return word, why if len(reported) == 1 else f"{why} ({same} of {len(reported)} workers)"

    return health_of


def merge_loads(workers: Iterable[Mapping[str, say.EncodedLoad]]) -> dict[str, say.EncodedLoad]:
    """The loads of all workers, added up."""
    found: dict[str, say.EncodedLoad] = {}
    for loads in workers:
        for item, load in loads.items():
            known = found.get(item)
            found[item] = load if known is None else _add_loads(known, load)
    return found


def merge_counts(workers: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts of all workers, added up by name."""
    found: dict[str, int] = {}
    for counts in workers:
        for name, count in counts.items():
            found[name] = found.get(name, 0) + count
    return found


def _add_loads(one: say.EncodedLoad, other: say.EncodedLoad) -> say.EncodedLoad:
    return say.EncodedLoad(
        one.inflight + other.inflight,
        one.waiting + other.waiting,
        one.backlog_seconds + other.backlog_seconds,
        one.inflight_tokens + other.inflight_tokens,
    )


def _without_windows(models: dict[str, ModelSnapshot]) -> dict[str, ModelSnapshot]:
    """The totals alone: a minute that nobody rolled on is no window."""
    for part in models.values():
        part.window = None
        for instance in part.instances.values():
            instance.window = None
    return models


class MaxLoopLag(LoopLag):
    """The lateness of the latest of several loops, by quantile."""

    def __init__(self, reported: Sequence[Sequence[tuple[float, float]]]) -> None:
        super().__init__(max_samples=1)
        self._reported = [dict(quantiles) for quantiles in reported]

    def quantile(self, share: float) -> float | None:
        """Seconds; None where no worker has told it."""
        return max((told[share] for told in self._reported if share in told), default=None)

"""Sleep labels: the pods of a pool that sleep, by their annotations, and those that should. Pure.

A pod with a mark gets nothing from any gateway. The autoscaler writes the mark before an engine is
put to sleep, and removes it after the engine woke and is healthy. So a new leader finds everything
in the marks and in the reports of the engines.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fairlead.fleet.labels import ENDPOINT_LABEL, POD_REVISION_LABEL, SleepPhase, parse_sleep_mark
from fairlead.kube.resources import Manifest, annotations_of, is_deleting, is_ready, labels_of, name_of
from fairlead_autoscaler.core import WakeTiming

_ENDED_PHASES: Final = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class SleepStatus:
    """The state of sleeping pods beyond their marks.

    asleep: uids of the pods whose engines sleep.
    last_wakes: by uid.
    rejecting_pools: model, pool and revision of engines that cannot sleep.
    desired_asleep: the last numbers of replicas that should sleep, by model and pool.
    """

    asleep: frozenset[str] = frozenset()
    last_wakes: Mapping[str, WakeTiming] = field(default_factory=dict)
    rejecting_pools: frozenset[tuple[str, str, str]] = frozenset()
    desired_asleep: Mapping[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PoolSleepState:
    """The pods of a pool that are not being deleted, by name.

    serving: pods that serve or start; starting: those of them that are not ready.
    asleep: pods that should sleep.
    stuck: pods that could not be woken.
    """

    serving: tuple[str, ...]
    starting: tuple[str, ...]
    asleep: tuple[str, ...]
    stuck: tuple[str, ...]


def is_engine_pod(pod: Manifest) -> bool:
    return labels_of(pod).get(ENDPOINT_LABEL) == "true" and (pod.get("status") or {}).get("phase") not in _ENDED_PHASES


def pool_sleep_state(pods: Sequence[Manifest]) -> PoolSleepState:
    """Returns the state of a pool's pods."""
    serving, starting, asleep, stuck = [], [], [], []
    for pod in sorted((pod for pod in pods if not is_deleting(pod)), key=name_of):
        mark = parse_sleep_mark(annotations_of(pod))
        if mark is not None and mark.phase is SleepPhase.STUCK:
            stuck.append(name_of(pod))
        elif mark is not None and mark.phase is SleepPhase.ASLEEP:
            asleep.append(name_of(pod))
        else:
            serving.append(name_of(pod))
            if not is_ready(pod):
                starting.append(name_of(pod))
    return PoolSleepState(tuple(serving), tuple(starting), tuple(asleep), tuple(stuck))


def split_desired(total: int, state: PoolSleepState, desired_asleep: int) -> tuple[int, int]:
    """Returns how many of `total` pods should serve, and how many should sleep; stuck pods do
    neither.

    Pods that start in order to sleep carry no mark until they are ready. So pods that are not ready
    count as sleeping, until `desired_asleep` is reached.
    """
    total = max(0, total - len(state.stuck))
    present = len(state.serving) - len(state.starting) + len(state.asleep)
    reserved = min(max(0, desired_asleep - len(state.asleep)), max(0, total - present))
    asleep = min(total, len(state.asleep) + reserved)
    return total - asleep, asleep


@dataclass(frozen=True, slots=True)
class SleepSteps:
    """The next steps of a pool: pods to wake, pods to put to sleep, and the order of removal."""

    wake: tuple[str, ...]
    sleep: tuple[str, ...]
    removal_order: tuple[str, ...]


def plan_sleep_steps(state: PoolSleepState, replicas: int, asleep: int, removal_order: Sequence[str]) -> SleepSteps:
    """Returns the steps to `replicas` serving and `asleep` sleeping pods.

    Sleeping pods wake before any starts, and serving pods fall asleep before any is removed.

    removal_order: serving pods in the order of their removal.
    """
    ranks = {name: place for place, name in enumerate(removal_order)}

    def ordered(names: Iterable[str]) -> list[str]:
        return sorted(names, key=lambda name: (ranks.get(name, len(ranks)), name))

    starting = set(state.starting)
    ready = ordered(name for name in state.serving if name not in starting)
    wake = state.asleep[: max(0, replicas - len(ready))]
    sleeping = state.asleep[len(wake) :]
    spare = ready[: max(0, len(ready) + len(wake) - replicas)]
    sleep = spare[: max(0, asleep - len(sleeping))]
    serving = ready[len(sleep) :]
    removals = (*state.stuck, *ordered(state.starting), *sleeping[asleep:], *serving)
    return SleepSteps(wake, tuple(sleep), removals)


def pod_revision(pod: Manifest) -> str:
    return labels_of(pod).get(POD_REVISION_LABEL, "")

"""Which pods sleep, as their annotations say it, and who is to: the values that world, scaler and
nurse have in common. Pure.

A pod that carries a mark gets nothing from any gateway. The autoscaler writes it before an engine
is put to sleep and removes it after it was woken and is well, so whoever takes over in between
finds everything in the mark and in what the engine says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fairlead.fleet.labels import ENDPOINT_LABEL, POD_REVISION_LABEL, SleepPhase, parse_sleep_mark
from fairlead.kube.resources import Manifest, annotations_of, is_deleting, is_ready, labels_of, name_of
from fairlead_autoscaler.core import WakeTiming

_ENDED_PHASES: Final = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class SleepStatus:
    """What is known of sleeping pods besides their marks: the uids of those that say that they
    sleep; how the last waking of others went; pools (model, pool, revision) whose engines do not
    sleep; and how many were wanted asleep last, by model and pool."""

    asleep: frozenset[str] = frozenset()
    last_wakes: Mapping[str, WakeTiming] = field(default_factory=dict)
    rejecting_pools: frozenset[tuple[str, str, str]] = frozenset()
    desired_asleep: Mapping[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PoolSleepState:
    """The pods of a pool that are not leaving, by name: those that serve or are about to, those to
    sleep, and those that could not be woken."""

    serving: tuple[str, ...]
    starting: tuple[str, ...]
    asleep: tuple[str, ...]
    stuck: tuple[str, ...]


def is_engine_pod(pod: Manifest) -> bool:
    """It answers HTTP, and has not ended."""
    return labels_of(pod).get(ENDPOINT_LABEL) == "true" and (pod.get("status") or {}).get("phase") not in _ENDED_PHASES


def pool_sleep_state(pods: Sequence[Manifest]) -> PoolSleepState:
    """How the pods of a pool are; ``waits`` of those that serve are those that do not yet."""
    serving, waits, asleep, stuck = [], [], [], []
    for pod in sorted((one for one in pods if not is_deleting(one)), key=name_of):
        mark = parse_sleep_mark(annotations_of(pod))
        if mark is not None and mark.phase is SleepPhase.STUCK:
            stuck.append(name_of(pod))
        elif mark is not None and mark.phase is SleepPhase.ASLEEP:
            asleep.append(name_of(pod))
        else:
            serving.append(name_of(pod))
            if not is_ready(pod):
                waits.append(name_of(pod))
    return PoolSleepState(tuple(serving), tuple(waits), tuple(asleep), tuple(stuck))


def split_desired(total: int, found: PoolSleepState, desired_asleep: int) -> tuple[int, int]:
    """Of ``total`` pods that are asked for: how many to serve and how many to sleep. Pods that are
    started to sleep carry no mark until they are ready, so of those that are not ready yet as many
    count as sleeping as were ``wished``."""
    total = max(0, total - len(found.stuck))
    there = len(found.serving) - len(found.starting) + len(found.asleep)
    reserved = min(max(0, desired_asleep - len(found.asleep)), max(0, total - there))
    asleep = min(total, len(found.asleep) + reserved)
    return total - asleep, asleep


@dataclass(frozen=True, slots=True)
class SleepSteps:
    """What makes a pool as it is wanted: pods to wake and to let sleep, and those that are to go,
    the first of them first.
    """

    wake: tuple[str, ...]
    sleep: tuple[str, ...]
    removal_order: tuple[str, ...]


def plan_sleep_steps(found: PoolSleepState, replicas: int, asleep: int, removal_order: Sequence[str]) -> SleepSteps:
    """Towards ``replicas`` that serve and ``asleep`` that sleep. ``order``: who serves, as they
    should leave. Who sleeps is woken before anybody starts, and who serves sleeps before anybody
    ends."""
    ready = [name for name in found.serving if name not in found.starting]
    wake = found.asleep[: max(0, replicas - len(ready))]
    sleeping = [name for name in found.asleep if name not in wake]
    ranks = {name: place for place, name in enumerate(removal_order)}
    spare = sorted(ready, key=lambda name: (ranks.get(name, len(ranks)), name))
    spare = spare[: max(0, len(ready) + len(wake) - replicas)]
    sleep = spare[: max(0, asleep - len(sleeping))]
    starting = sorted(found.starting, key=lambda name: (ranks.get(name, len(ranks)), name))
    extra = sleeping[asleep:]
    serving = [
        name for name in sorted(ready, key=lambda name: (ranks.get(name, len(ranks)), name)) if name not in sleep
    ]
    return SleepSteps(wake, tuple(sleep), (*found.stuck, *starting, *extra, *serving))


def pod_revision(pod: Manifest) -> str:
    """Of which template it is."""
    return labels_of(pod).get(POD_REVISION_LABEL, "")

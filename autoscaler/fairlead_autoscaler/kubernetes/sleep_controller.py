"""Puts the engines of marked pods to sleep and wakes them, over HTTP, in the replica of the
autoscaler that leads.

A mark says what a pod is to be (``marks``); here it is made so. An engine is put to sleep when
every gateway answers, says that it knows of as many sleeping instances of the model as there are
marked pods, and has nothing in flight there. One that is to serve again is woken, asked whether it
is awake and well, and then its mark is removed, from which gateways see that it serves. Where the
number has become somebody else's, or the mode is no longer Auto, all are woken: nobody else would,
and what is asked for is to serve. Nothing is remembered that a successor needs: whether an engine
sleeps is asked of it. One that refuses to sleep is let be, and its like with it; one that is not
awake after ``engine_wake_seconds`` is marked as stuck: nobody counts on it, and it is the first to
go.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol

from fairlead.engines.sleep_mode import SleepRefused
from fairlead.errors import FairleadError
from fairlead.fleet.labels import POOL_LABEL, SleepMark, SleepPhase, parse_engine_info, parse_sleep_mark
from fairlead.kube.resources import Manifest, annotations_of, is_deleting, is_ready, labels_of, name_of, uid_of
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_autoscaler.collector.observation import GatewaySnapshot
from fairlead_autoscaler.core import WakeTiming
from fairlead_autoscaler.kubernetes.sleep_labels import SleepStatus, pod_revision

RECONCILE_SECONDS: Final = 1.0
_LOG: Final = logging.getLogger("fairlead.autoscaler")


class PodSource(Protocol):
    """Where the pods are."""

    def marked_pods(self) -> Mapping[str, Sequence[Manifest]]:
        """Every pod that carries a mark of sleep, by its model's key."""
        ...

    def is_released(self, key: str, pool: str) -> bool:
        """Does nobody here decide any more how many of this pool serve?"""
        ...


class EngineSleepApi(Protocol):
    """As much of ``fairlead.engines.sleep_mode.Bedside`` as is needed here."""

    async def is_sleeping(self, url: str) -> bool:
        """Does it say that it sleeps? Raises Unavailable when it does not say."""
        ...

    async def sleep(self, url: str, level: int) -> None:
        """Asleep when this returns. Raises Unwilling when it refuses, Unavailable when it does not
        answer.
        """
        ...

    async def wake(self, url: str, level: int) -> None:
        """Awake and well when this returns. Raises Unavailable when it is not."""
        ...


class SleepController:
    """``note`` writes a pod's mark or removes it; ``readings`` are the gateways as they were read
    last; ``wished`` how many are to sleep, by model and pool. ``leads``: this process is the one
    that does anything."""

    def __init__(
        self,
        pods: PodSource,
        engines: EngineSleepApi,
        write_mark: Callable[[Manifest, SleepMark | None], Awaitable[None]],
        gateways: Callable[[], GatewaySnapshot],
        clock: Clock,
        limits: Limits,
        *,
        desired_asleep: Mapping[tuple[str, str], int],
        is_leader: Callable[[], bool],
    ) -> None:
        self._pods = pods
        self._engines = engines
        self._write_mark = write_mark
        self._gateways = gateways
        self._clock = clock
        self._limits = limits
        self._desired_asleep = desired_asleep
        self._is_leader = is_leader
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._asleep: set[str] = set()
        self._last_wakes: dict[str, WakeTiming] = {}
        self._rejecting_pools: set[tuple[str, str, str]] = set()
        self._waking_since: dict[str, float] = {}
        self.problems: dict[str, str] = {}

    def status(self) -> SleepStatus:
        """What is known of them now."""
        return SleepStatus(
            frozenset(self._asleep),
            dict(self._last_wakes),
            frozenset(self._rejecting_pools),
            dict(self._desired_asleep),
        )

    async def run(self) -> None:
        """Look after them until cancelled."""
        try:
            while True:
                self.reconcile()
                await asyncio.sleep(RECONCILE_SECONDS)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def reconcile(self) -> None:
        """Begin what each marked pod needs and is not under way."""
        self._tasks = {uid: task for uid, task in self._tasks.items() if not task.done()}
        marked = self._pods.marked_pods()
        there = {uid_of(pod) for pods in marked.values() for pod in pods}
        self._asleep &= there
        for gone in self.problems.keys() - {name_of(pod) for pods in marked.values() for pod in pods}:
            del self.problems[gone]
        self._waking_since = {uid: at for uid, at in self._waking_since.items() if uid in there}
        if not self._is_leader():
            return
        for key, pods in marked.items():
            for pod in pods:
                mark = parse_sleep_mark(annotations_of(pod))
                if mark is None or is_deleting(pod) or not is_ready(pod) or uid_of(pod) in self._tasks:
                    continue
                if mark.phase is SleepPhase.ASLEEP and self._pods.is_released(key, labels_of(pod).get(POOL_LABEL, "")):
                    done = self._try_write_mark(pod, SleepMark(mark.level, SleepPhase.WAKING))
                else:
                    done = self._step(key, pod, mark, self._is_drained(key, pod, pods))
                self._tasks[uid_of(pod)] = asyncio.get_running_loop().create_task(done, name=f"rest-{name_of(pod)}")

    def _is_drained(self, key: str, pod: Manifest, pods: Sequence[Manifest]) -> bool:
        """Does every gateway know that nothing goes there, and has none anything there?"""
        gateways = self._gateways().gateways
        if not gateways or any(one.error is not None for one in gateways):
            return False
        sleeping = 0
        for other in pods:
            mark = parse_sleep_mark(annotations_of(other))
            known = (
                mark is not None and mark.phase is not SleepPhase.WAKING and is_ready(other) and not is_deleting(other)
            )
            sleeping += parse_engine_info(annotations_of(other)).data_parallel if known else 0
        ids = pod_instances(pod)
        return all(
            one.gauges.get(("instances", key, "Sleeping"), 0.0) >= sleeping
            and not any(one.gauges.get(("in_flight", key, name), 0.0) for name in ids)
            for one in gateways
        )

    async def _step(self, key: str, pod: Manifest, mark: SleepMark, is_drained: bool) -> None:
        """One step of one pod."""
        uid, name, url = uid_of(pod), name_of(pod), pod_url(pod)
        try:
            asleep = await self._engines.is_sleeping(url)
            if mark.phase is SleepPhase.ASLEEP:
                if not asleep and is_drained:
                    await self._engines.sleep(url, mark.level)
                    _LOG.info("%s/%s sleeps", key, name)
                if asleep or is_drained:
                    self._asleep.add(uid)
                else:
                    self._asleep.discard(uid)  # it has begun anew, awake
            else:
                await self._wake(key, pod, mark, url, asleep=asleep)
        except FairleadError as error:
            self._set_problem(name, str(error))
            if mark.phase is SleepPhase.ASLEEP and isinstance(error, SleepRefused):
                self._rejecting_pools.add((key, labels_of(pod).get(POOL_LABEL, ""), pod_revision(pod)))
                await self._try_write_mark(pod, None)
            elif mark.phase is SleepPhase.WAKING and self._is_overdue(uid):
                await self._try_write_mark(pod, SleepMark(mark.level, SleepPhase.STUCK))
        else:
            self.problems.pop(name, None)

    async def _wake(self, key: str, pod: Manifest, mark: SleepMark, url: str, *, asleep: bool) -> None:
        """One that does not say that it sleeps is woken like the others: whoever led before may
        have told it to a moment ago, and until it is asleep it says that it is awake and answers
        nothing."""
        uid = uid_of(pod)
        began = self._clock.now()
        self._waking_since.setdefault(uid, began)
        await self._engines.wake(url, mark.level)
        if asleep:
            before = self._last_wakes.get(uid)
            self._last_wakes[uid] = WakeTiming(
                mark.level, 1 if before is None else before.number + 1, self._clock.now() - began
            )
        self._asleep.discard(uid)
        await self._write_mark(pod, None)
        _LOG.info("%s/%s is awake", key, name_of(pod))

    def _is_overdue(self, uid: str) -> bool:
        since = self._waking_since.setdefault(uid, self._clock.now())
        return self._clock.now() - since >= self._limits.engine_wake_seconds

    def _set_problem(self, name: str, why: str) -> None:
        if self.problems.get(name) != why:
            _LOG.warning("%s: %s", name, why)
        self.problems[name] = why

    async def _try_write_mark(self, pod: Manifest, mark: SleepMark | None) -> None:
        try:
            await self._write_mark(pod, mark)
        except FairleadError as error:
            self._set_problem(name_of(pod), str(error))


def pod_instances(pod: Manifest) -> tuple[str, ...]:
    """The ids of a pod's instances in the fleet."""
    notes = parse_engine_info(annotations_of(pod))
    return tuple(f"{uid_of(pod)}/{notes.port}/{rank}" for rank in range(notes.data_parallel))


def pod_url(pod: Manifest) -> str:
    """Where its engine answers."""
    address = str((pod.get("status") or {}).get("podIP") or "")
    return f"http://{f'[{address}]' if ':' in address else address}:{parse_engine_info(annotations_of(pod)).port}"

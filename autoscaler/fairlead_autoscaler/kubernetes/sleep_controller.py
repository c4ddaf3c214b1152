"""Sleep controller: puts the engines of marked pods to sleep and wakes them over HTTP, in the
leader.

A mark on a pod says whether it should sleep (`sleep_labels`). An engine is put to sleep once no
gateway has a request in flight there. All gateways must answer, and know of as many sleeping
instances of the model as there are marked pods. A pod that should serve again is woken and checked,
then its mark is removed. Without a mark, gateways send it requests.

All engines wake if another owner sets the number, or the mode is no longer Auto. No other process
would wake them, and the number counts serving replicas.

Nothing is remembered that a successor needs: each engine is queried for its state. If an engine
rejects sleep, no engine of its pool and revision sleeps. One that is not awake after
`engine_wake_seconds` is marked as stuck. It then counts as missing, and is removed first.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from fairlead.engines.sleep_mode import ENGINE_WAKE_SECONDS, EngineSleepClient, SleepRefused
from fairlead.errors import FairleadError
from fairlead.fleet.labels import POOL_LABEL, SleepMark, SleepPhase, parse_engine_info, parse_sleep_mark
from fairlead.kube.resources import Manifest, annotations_of, is_deleting, is_ready, labels_of, name_of, uid_of
from fairlead.runtime.clock import Clock
from fairlead_autoscaler.collector.observation import GatewaySnapshot
from fairlead_autoscaler.core import WakeTiming
from fairlead_autoscaler.kubernetes.scale_writer import ScaleWriter
from fairlead_autoscaler.kubernetes.sleep_labels import SleepStatus, pod_revision
from fairlead_autoscaler.kubernetes.target import KubernetesTarget

RECONCILE_SECONDS: Final = 1.0
_STEPS_OF_NAMESPACE: Final = 64
"""Pods of one namespace with a step in progress. Each has a connection, which an engine may delay.
"""
_MAX_REMEMBERED: Final = 4_096
"""Pods whose wake time is remembered, and revisions that reject sleep."""
_LOG: Final = logging.getLogger("fairlead.autoscaler")


class SleepController:
    """The controller that puts the engines of marked pods to sleep and wakes them.

    gateways: returns the last metrics of the gateways.
    is_leader: whether this process acts.
    problems: what failed last, by pod.
    """

    def __init__(
        self,
        pods: KubernetesTarget,
        engines: EngineSleepClient,
        marks: ScaleWriter,
        gateways: Callable[[], GatewaySnapshot],
        clock: Clock,
        *,
        is_leader: Callable[[], bool],
    ) -> None:
        self._pods = pods
        self._engines = engines
        self._marks = marks
        self._gateways = gateways
        self._clock = clock
        self._is_leader = is_leader
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._asleep: set[str] = set()
        self._last_wakes: dict[str, WakeTiming] = {}
        self._rejecting_pools: dict[tuple[str, str, str], None] = {}
        self._waking_since: dict[str, float] = {}
        self._round = 0
        self._last_rounds: dict[str, int] = {}
        """The last round in which a step of a pod began, by its uid."""
        self.problems: dict[str, str] = {}

    def status(self) -> SleepStatus:
        """Returns the current state of sleeping pods."""
        return SleepStatus(
            frozenset(self._asleep),
            dict(self._last_wakes),
            frozenset(self._rejecting_pools),
            dict(self._marks.desired_asleep),
        )

    async def run(self) -> None:
        """Reconciles every `RECONCILE_SECONDS` until it is cancelled, which also cancels the steps
        in progress.
        """
        try:
            while True:
                self.reconcile()
                await asyncio.sleep(RECONCILE_SECONDS)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def reconcile(self) -> None:
        """Starts the next step of each marked pod that has none in progress."""
        self._tasks = {uid: task for uid, task in self._tasks.items() if not task.done()}
        marked = self._pods.marked_pods()
        uids = {uid_of(pod) for pods in marked.values() for pod in pods}
        self._asleep &= uids
        for gone in self.problems.keys() - {name_of(pod) for pods in marked.values() for pod in pods}:
            del self.problems[gone]
        self._waking_since = {uid: at for uid, at in self._waking_since.items() if uid in uids}
        if not self._is_leader():
            return
        released = self._pods.released_pools() if marked else ()
        self._last_rounds = {uid: last for uid, last in self._last_rounds.items() if uid in uids}
        self._round += 1
        chosen = self._choose_pods(marked)
        for key, pods in marked.items():
            sleeping = sleeping_instances(pods)
            for pod in pods:
                mark = parse_sleep_mark(annotations_of(pod))
                if mark is None or uid_of(pod) not in chosen:
                    continue
                self._last_rounds[uid_of(pod)] = self._round
                # No decision would wake an instance once its pool is released.
                if mark.phase is SleepPhase.ASLEEP and (key, labels_of(pod).get(POOL_LABEL, "")) in released:
                    step = self._try_write_mark(pod, SleepMark(mark.level, SleepPhase.WAKING))
                else:
                    step = self._step(key, pod, mark, self._is_drained(key, pod, sleeping))
                self._tasks[uid_of(pod)] = asyncio.get_running_loop().create_task(step, name=f"{key}/{name_of(pod)}")

    def _choose_pods(self, marked: Mapping[str, Sequence[Manifest]]) -> set[str]:
        """Returns the uids of the pods whose next step begins now.

        Of a namespace with too many, those that should wake come first, then those that have waited
        longest.
        """
        running = Counter(task.get_name().partition("/")[0] for task in self._tasks.values())
        ready: dict[str, list[tuple[bool, int, str]]] = {}
        for key, pods in marked.items():
            for pod in pods:
                mark, uid = parse_sleep_mark(annotations_of(pod)), uid_of(pod)
                if mark is not None and not is_deleting(pod) and is_ready(pod) and uid not in self._tasks:
                    entry = (mark.phase is not SleepPhase.WAKING, self._last_rounds.get(uid, 0), uid)
                    ready.setdefault(key.partition("/")[0], []).append(entry)
        return {
            uid
            for namespace, entries in ready.items()
            for *_, uid in sorted(entries)[: max(0, _STEPS_OF_NAMESPACE - running[namespace])]
        }

    def _is_drained(self, key: str, pod: Manifest, sleeping: int) -> bool:
        """Whether all gateways answer, know of every sleeping instance, and have no request in
        flight at the pod.

        sleeping: the number of sleeping instances of the model.
        """
        gateways = self._gateways().gateways
        if not gateways or any(gateway.error is not None for gateway in gateways):
            return False
        if any(gateway.gauges.get(("instances", key, "Sleeping"), 0.0) < sleeping for gateway in gateways):
            return False
        ids = pod_instances(pod)
        return not any(gateway.gauges.get(("in_flight", key, name), 0.0) for gateway in gateways for name in ids)

    async def _step(self, key: str, pod: Manifest, mark: SleepMark, is_drained: bool) -> None:
        """Puts the engine of one pod to sleep, or wakes it, as its mark demands.

        An engine that rejects sleep loses the mark. One that does not wake in time is marked as
        stuck.
        """
        uid, name, url = uid_of(pod), name_of(pod), pod_url(pod)
        try:
            is_asleep = await self._engines.is_sleeping(url)
            if not self._is_leader():
                return  # this process was suspended meanwhile
            if mark.phase is SleepPhase.ASLEEP:
                if not is_asleep and is_drained:
                    await self._engines.sleep(url, mark.level)
                    _LOG.info("%s/%s sleeps", key, name)
                if is_asleep or is_drained:
                    self._asleep.add(uid)
                else:
                    self._asleep.discard(uid)  # it restarted, awake
            else:
                await self._wake(key, pod, mark, url, is_asleep=is_asleep)
        except FairleadError as error:
            self._set_problem(name, str(error))
            if mark.phase is SleepPhase.ASLEEP and isinstance(error, SleepRefused):
                self._rejecting_pools[key, labels_of(pod).get(POOL_LABEL, ""), pod_revision(pod)] = None
                _drop_oldest(self._rejecting_pools)
                await self._try_write_mark(pod, None)
            elif mark.phase is SleepPhase.WAKING and self._is_overdue(uid):
                await self._try_write_mark(pod, SleepMark(mark.level, SleepPhase.STUCK))
        else:
            self.problems.pop(name, None)

    async def _wake(self, key: str, pod: Manifest, mark: SleepMark, url: str, *, is_asleep: bool) -> None:
        """Wakes the engine of a pod, even if it reports that it is awake, and removes the pod's
        mark.

        Why: the former leader may have put the engine to sleep a moment ago. Until the engine
        sleeps, it reports that it is awake and answers no request.
        """
        uid = uid_of(pod)
        began = self._clock.now()
        self._waking_since.setdefault(uid, began)
        await self._engines.wake(url, mark.level)
        if is_asleep:
            before = self._last_wakes.get(uid)
            self._last_wakes[uid] = WakeTiming(
                mark.level, 1 if before is None else before.number + 1, self._clock.now() - began
            )
            _drop_oldest(self._last_wakes)
        self._asleep.discard(uid)
        await self._marks.write_sleep_mark(pod, None)
        _LOG.info("%s/%s is awake", key, name_of(pod))

    def _is_overdue(self, uid: str) -> bool:
        since = self._waking_since.setdefault(uid, self._clock.now())
        return self._clock.now() - since >= ENGINE_WAKE_SECONDS

    def _set_problem(self, name: str, problem: str) -> None:
        if self.problems.get(name) != problem:
            _LOG.warning("%s: %s", name, problem)
        self.problems[name] = problem

    async def _try_write_mark(self, pod: Manifest, mark: SleepMark | None) -> None:
        try:
            await self._marks.write_sleep_mark(pod, mark)
        except FairleadError as error:
            self._set_problem(name_of(pod), str(error))


def _drop_oldest(entries: dict[Any, Any]) -> None:
    while len(entries) > _MAX_REMEMBERED:
        del entries[next(iter(entries))]


def sleeping_instances(pods: Iterable[Manifest]) -> int:
    """Returns how many instances of marked pods sleep, or are to be put to sleep."""
    sleeping = 0
    for pod in pods:
        mark = parse_sleep_mark(annotations_of(pod))
        if mark is not None and mark.phase is not SleepPhase.WAKING and is_ready(pod) and not is_deleting(pod):
            sleeping += parse_engine_info(annotations_of(pod)).data_parallel
    return sleeping


def pod_instances(pod: Manifest) -> tuple[str, ...]:
    engine = parse_engine_info(annotations_of(pod))
    return tuple(f"{uid_of(pod)}/{engine.port}/{rank}" for rank in range(engine.data_parallel))


def pod_url(pod: Manifest) -> str:
    address = str((pod.get("status") or {}).get("podIP") or "")
    return f"http://{f'[{address}]' if ':' in address else address}:{parse_engine_info(annotations_of(pod)).port}"

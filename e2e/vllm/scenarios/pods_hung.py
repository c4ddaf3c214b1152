"""Two real engines in pods, of which one is stopped in its core.

Its server answers ``/health`` with 200 and sends no token.

Streams run all the time and move to the other engine. The operator marks the pod of the stopped
engine and deletes it, and its workload replaces it.
"""

import time

from e2e.kube.cluster_access.kubectl import eventually
from e2e.kube.workloads.client_pods import StreamSession
from e2e.kube.workloads.manifests import Manifest
from e2e.vllm.engine.engine_processes import fetch
from e2e.vllm.pods import pod_environment
from e2e.vllm.pods.pod_stage import HUNG_TIMES, START_SECONDS, PodStage, is_ready, step
from e2e.vllm.report import Numbers, VllmReport, require

_RATE, _TOKENS = 1.0, 8
_MARK = "fairlead.io/Serving"
_HUNG_SECONDS = 300.0
"""Seconds until the pod is marked, and from there until it is deleted, at most.

Gateways miss answers first. Then each of the two times of ``HUNG_TIMES`` passes.
"""


class PodsHung:
    """Two engines, clients, and one SIGSTOP."""

    def __init__(self, stage: PodStage, report: VllmReport) -> None:
        self._stage = stage
        self._report = report

    async def run(self) -> None:
        """Runs everything, in order."""
        with self._stage.namespace("hung") as self._here:
            await step(self._report, "two engines serve", self._apply)
            await step(self._report, "SIGSTOP of the core of one engine, under streams", self._stop_core)
            await step(self._report, "deleted", self._delete)

    def _apply(self) -> Numbers:
        here = self._here
        pool = pod_environment.pool(minReplicas=2)
        here.here.apply(here.manifest(pool, engine=pod_environment.engine(self._stage.installed)))
        here.client.first_token(here.name, seconds=START_SECONDS)
        pods = here.wait_until_ready(pods=2, seconds=START_SECONDS)
        return {"cores": len({(uid, here.core(pod)) for uid, pod in pods.items()})}

    def _stop_core(self) -> Numbers:
        """Stops the core of one engine while streams run, until two engines serve again."""
        here = self._here
        before = here.model.pods()
        uid, pod = next(iter(before.items()))
        seconds: Numbers = {}
        with StreamSession(here.client, here.name, rate=_RATE, tokens=_TOKENS) as streams:
            begun = time.monotonic()
            here.send_signal(pod, here.core(pod), "SIGSTOP")
            health = fetch(f"{here.address(pod)}/health") == b""
            eventually("its pod is marked", lambda: self._mark(uid) == "False", seconds=_HUNG_SECONDS, every=1.0)
            seconds["marked_seconds"] = round(time.monotonic() - begun, 1)
            eventually("its pod is deleted", lambda: uid not in here.model.pods(), seconds=_HUNG_SECONDS, every=1.0)
            seconds["deleted_seconds"] = round(time.monotonic() - begun, 1)
            # Not by the model's status, which is of the time before for a moment.
            ready = lambda: [one for one in here.model.pods().values() if is_ready(one)]  # noqa: E731
            eventually("two engines serve", lambda: len(ready()) == 2, seconds=START_SECONDS, every=1.0)
            seconds["two_serve_seconds"] = round(time.monotonic() - begun, 1)
        numbers = {
            **HUNG_TIMES,
            **seconds,
            **{name: streams.end[name] for name in ("streams", "outcomes", "first_token_seconds")},
        }
        require(health, "the stopped engine's health check fails, so nothing was shown", numbers)
        require(not streams.failures, "a stream failed", {**numbers, "failures": streams.failures[:5]})
        kept = before.keys() - {uid}
        require(kept <= here.model.pods().keys(), "the other engine was replaced too", numbers)
        return numbers

    def _delete(self) -> Numbers:
        self._here.wait_until_gone(seconds=120.0)
        return {}

    def _mark(self, uid: str) -> str:
        pod: Manifest = self._here.model.pods().get(uid, {})
        conditions = pod.get("status", {}).get("conditions", [])
        # A pod that is gone was marked before.
        return next((str(one["status"]) for one in conditions if one["type"] == _MARK), "" if pod else "False")

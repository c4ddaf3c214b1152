"""The worker's own probes of ejected instances: requests for one token.

An ejected instance gets no requests, or one that a client waits for. So the worker itself probes an
instance whose ejection record (`ejection_records`) is old enough: one probe at a time, spaced, each
with a time limit. It also probes an instance whose return the requests of one caller would prevent,
record or not. An answer ends the record, and the instance returns as after the probe of a
client. Silence and 5xx count as failed probes.

These say nothing about the engine: 429, 503, any other 4xx, and failures of the gateway itself. But
a 4xx ends a record of 5xx alone: such an engine fails requests, and does not hang. An engine that
sent bytes to another request meanwhile is slow, and does not hang.

A probe's prompt is shorter than a block of any engine. Where engines have the field, its
`cache_salt` is private to the process. So it changes no cache. An API that others run gets a chat,
which every one of them has.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Final

import msgspec

from fairlead.fleet.model import Fleet, Instance, InstanceState
from fairlead_gateway.resilience.outlier_detection import EjectionRecords, is_hang_cause
from fairlead_gateway.resilience.worker.failure_attribution import FailureAttribution
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.tenants.cache_isolation import SALTED_ENGINES
from fairlead_gateway.upstream.connection import activity_key
from fairlead_gateway.upstream.connection_pool import ConnectionPool, EngineCallFailed, call_engine
from fairlead_gateway.upstream.request_encoder import encode_external_request, request_prefix

_POLL_SECONDS: Final = 1.0
_PATH: Final = "/v1/completions"
_CHAT_PATH: Final = "/v1/chat/completions"
_PROBE_ID: Final = "probe"
_PROMPT: Final = "hi"
_encode = msgspec.json.Encoder().encode


class EjectionProber:
    """The sender of probes to instances that do not answer.

    fleet: returns the fleet that requests are routed over.
    hop_id: this gateway, for the hop header.
    """

    def __init__(
        self,
        runtime: WorkerRuntime,
        failures: FailureAttribution,
        pool: ConnectionPool,
        fleet: Callable[[], Fleet],
        hop_id: str,
    ) -> None:
        self._loop = runtime.loop
        self._now = runtime.now
        self._timeout_seconds: float = runtime.limits.ejection_probe_seconds
        self._failures = failures
        self._detector = failures.outlier_detector
        self._records: EjectionRecords = failures.outlier_detector.ejection_records
        self._pool = pool
        self._fleet = fleet
        self._hop_id = hop_id
        self._salt = os.urandom(16).hex()  # of `cache_salt`, private to this process
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._records.on_begin = self._arm

    def close(self) -> None:
        """Cancels all probes."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    def poll(self) -> None:
        """Sends the probes that are due now."""
        due = set(self._records.due(self._now()))
        if not due:
            return
        for key, instances in self._fleet().instances.items():
            for instance in instances:
                if instance.id in due and instance.state is InstanceState.READY:
                    self._records.on_probe_sent(instance.id, self._now())
                    task = self._loop.create_task(self._probe(key, instance))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)

    def _arm(self) -> None:
        if self._timer is None and not self._is_closed:
            self._timer = self._loop.call_later(_POLL_SECONDS, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.poll()
        if self._records.needs_probes:
            self._arm()

    async def _probe(self, key: str, instance: Instance) -> None:
        """Probes one instance and records the result."""
        has_failed = False
        activity = self._pool.activity(activity_key(instance.address, instance.dp_rank))
        received = activity.receive_count
        self._detector.on_dispatch(instance.id)
        try:
            message, seconds = self._message(instance), self._timeout_seconds
            await call_engine(self._pool, instance.address, message, seconds, instance=instance)
            self._detector.on_success(instance.id, self._now())
        except EngineCallFailed as failure:
            if failure.cause == "timeout" and activity.receive_count != received:
                self._records.restart(instance.id, self._now())
            elif failure.is_suspicious:
                has_failed = is_hang_cause(failure.cause)
                self._failures.on_probe_failed(key, instance.id, failure.cause)
            elif failure.is_final:
                self._records.on_probe_refused(instance.id)
        finally:
            self._records.on_probe_ended(instance.id, has_failed=has_failed)
            self._detector.on_inconclusive(instance.id)

    def _message(self, instance: Instance) -> list[bytes]:
        """Returns the request for one token, as this instance gets it."""
        model = instance.model if instance.served_name is None else instance.served_name
        if instance.leaves_cluster:
            message = {"role": "user", "content": _PROMPT}
            body = _encode({"model": model, "messages": [message], "max_tokens": 1})
            prefix = request_prefix("POST", _CHAT_PATH, instance.url, self._hop_id)
            return encode_external_request(prefix, body, _PROBE_ID)
        fields: dict[str, object] = {"model": model, "prompt": _PROMPT, "max_tokens": 1, "temperature": 0}
        if instance.engine in SALTED_ENGINES:  # TensorRT-LLM refuses a completion with a salt
            fields["cache_salt"] = self._salt
        body = _encode(fields)
        prefix = request_prefix("POST", _PATH, instance.url, self._hop_id)
        # The prefix ends with the name of the length.
        rank = f"x-data-parallel-rank: {instance.dp_rank}\r\n" if instance.dp_rank is not None else ""
        return [f"{prefix.text}{len(body)}\r\n{rank}\r\n".encode("latin-1") + body]

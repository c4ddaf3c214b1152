"""Answers the supervisor's queries to a worker.

Long replies go out in chunks of bounded work and size, so that requests have their turn between
them. A chunk waits until most of the earlier ones are out.

Why: a channel drops messages beyond its bound. Without the end of a reply, the supervisor takes
the worker for hung, and kills it. So an unexpected error is logged, and ends the reply too.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import msgspec

from fairlead_gateway.errors import GatewayError
from fairlead_gateway.ipc import messages
from fairlead_gateway.ipc.decision_codec import encode_logged_request
from fairlead_gateway.telemetry.decision_log import LoggedRequest
from fairlead_gateway.telemetry.snapshot import snapshot_of
from fairlead_gateway.worker.proxy.gateway import Gateway
from fairlead_gateway.worker.route_preview import RoutePreviewer

_LOG: Final = logging.getLogger("fairlead.gateway")
_DECISIONS_PER_CHUNK: Final = 16
_CANDIDATES_PER_CHUNK: Final = 4_096
_UNSENT_POLL_SECONDS: Final = 0.001
_QUANTILES = (0.5, 0.99, 1.0)
_encode = msgspec.msgpack.Encoder().encode


class ReplyChannel(Protocol):
    """The channel to the supervisor, as the handler uses it."""

    @property
    def unsent_bytes(self) -> int:
        """Bytes of sent messages that the system's buffers have not taken yet."""
        ...

    def send(self, message: msgspec.Struct) -> bool:
        """Sends a message. Returns False when it was dropped."""
        ...


class QueryHandler:
    """The handler of queries about one gateway."""

    def __init__(self, gateway: Gateway, channel: ReplyChannel) -> None:
        self._gateway = gateway
        self._previewer = RoutePreviewer(gateway)
        self._channel = channel
        self._max_unsent_bytes = gateway.runtime.limits.channel_pending_bytes // 4

    async def handle(self, query: messages.Query) -> None:
        """Sends the reply to one query, in one chunk or several."""
        try:
            await self._reply(query)
        except Exception:  # noqa: BLE001  # it is logged
            _LOG.exception("a defect ended the reply to %s", type(query).__name__)
            await self._send_chunk(query.query_id, b"", is_last=True, has_failed=True)

    async def _reply(self, query: messages.Query) -> None:
        if isinstance(query, messages.GetState):
            await self._send_chunk(query.query_id, _encode(self._state()), is_last=True)
        elif isinstance(query, messages.GetCounters):
            await self._send_counters(query)
        elif isinstance(query, messages.GetDecisions):
            latest = self._gateway.decisions.latest(query.limit, query.model, query.callers)
            await self._send_decisions(query.query_id, latest)
        elif isinstance(query, messages.PreviewRoute):
            await self._send_chunk(query.query_id, _encode(await self._preview(query)), is_last=True)
        else:
            found = self._gateway.decisions.find(query.request_id, query.callers)[:_DECISIONS_PER_CHUNK]
            await self._send_decisions(query.query_id, found)

    def final_counters(self) -> messages.FinalCounters:
        """Returns the counters of a worker that ends."""
        telemetry = self._gateway.telemetry
        models = [snapshot_of(key, counters, None) for key, counters in telemetry.models.items()]
        return messages.FinalCounters(models, dict(telemetry.non_model_counters))

    async def _send_chunk(self, query_id: int, content: bytes, *, is_last: bool, has_failed: bool = False) -> None:
        while self._channel.unsent_bytes > self._max_unsent_bytes:  # noqa: ASYNC110 - a channel sets no event
            await asyncio.sleep(_UNSENT_POLL_SECONDS)
        self._channel.send(messages.ReplyChunk(query_id, content, is_last, has_failed))

    async def _send_end(self, query_id: int) -> None:
        await self._send_chunk(query_id, b"", is_last=True)

    async def _preview(self, query: messages.PreviewRoute) -> messages.RoutePreview:
        try:
            logged = await self._previewer.preview(query)
            return messages.RoutePreview(encode_logged_request(logged))
        except GatewayError as error:
            return messages.RoutePreview(None, (error.status, str(error), error.param, error.code))

    async def _send_counters(self, query: messages.GetCounters) -> None:
        telemetry = self._gateway.telemetry
        telemetry.remove_departed(self._gateway.stack.routers.fleet, query.now)
        for key in list(telemetry.models):
            if (series := telemetry.models.get(key)) is not None:  # another query may drop it
                snapshot = snapshot_of(key, series, query.now if query.windows else None)
                await self._send_chunk(query.query_id, _encode(snapshot), is_last=False)
                await asyncio.sleep(0)
        await self._send_end(query.query_id)

    async def _send_decisions(self, query_id: int, requests: Sequence[LoggedRequest]) -> None:
        for chunk in _chunks(requests):
            content = _encode([encode_logged_request(logged) for logged in chunk])
            await self._send_chunk(query_id, content, is_last=False)
            await asyncio.sleep(0)
        await self._send_end(query_id)

    def _state(self) -> messages.WorkerState:
        gateway = self._gateway
        is_ready, warnings = gateway.readiness()
        outlier_detector = gateway.stack.failures.outlier_detector
        lags = [(share, gateway.loop_lag.quantile(share)) for share in _QUANTILES]
        return messages.WorkerState(
            is_ready,
            warnings,
            {
                name: messages.EncodedLoad(
                    load.inflight, load.waiting, load.backlog_seconds, load.inflight_tokens, load.queued
                )
                for name, load in gateway.stack.routers.loads().items()
            },
            self._health_states(),
            [(share, lag) for share, lag in lags if lag is not None],
            dict(gateway.telemetry.non_model_counters),
            gateway.inflight_count(),
            gateway.stack.admission.queued(),
            {
                name: messages.EncodedEjection(record.since, record.cause, record.failed_probes)
                for name, record in outlier_detector.ejection_records.by_instance.items()
            },
            outlier_detector.answer_times(),
            gateway.stack.adapter_loader.loaded(),
        )

    def _health_states(self) -> dict[str, tuple[str, str]]:
        """Returns state and reason of the instances that are not healthy, by instance id."""
        fleet = self._gateway.stack.routers.fleet
        described = (
            (instance.id, self._gateway.stack.failures.describe(instance.id))
            for instances in fleet.instances.values()
            for instance in instances
        )
        return {name: (str(state), reason) for name, (state, reason) in described if reason}


def _chunks(requests: Sequence[LoggedRequest]) -> Iterator[list[LoggedRequest]]:
    """Yields the requests in chunks of a few decisions, or of fewer that have many candidates."""
    chunk: list[LoggedRequest] = []
    candidates = 0
    for logged in requests:
        chunk.append(logged)
        candidates += sum(len(record.decision.rejected) for record in logged.records)
        if len(chunk) >= _DECISIONS_PER_CHUNK or candidates >= _CANDIDATES_PER_CHUNK:
            yield chunk
            chunk, candidates = [], 0
    if chunk:
        yield chunk

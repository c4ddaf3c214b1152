"""Answers the supervisor's queries to a worker.

Long replies go out in chunks of bounded work, so that requests have their turn between them.
"""

import asyncio
from collections.abc import Callable

import msgspec

from fairlead_gateway.errors import GatewayError
from fairlead_gateway.ipc import messages
from fairlead_gateway.ipc.decision_codec import encode_logged_request
from fairlead_gateway.telemetry.snapshot import snapshot_of
from fairlead_gateway.worker.proxy.gateway import Gateway
from fairlead_gateway.worker.route_preview import RoutePreviewer

_DECISIONS_PER_CHUNK = 16
_QUANTILES = (0.5, 0.99, 1.0)
_encode = msgspec.msgpack.Encoder().encode


class QueryHandler:
    """The handler of queries about one gateway.

    send: puts a message on the channel.
    """

    def __init__(self, gateway: Gateway, send: Callable[[msgspec.Struct], bool]) -> None:
        self._gateway = gateway
        self._previewer = RoutePreviewer(gateway)
        self._send = send

    async def handle(self, query: messages.Query) -> None:
        """Sends the reply to one query, in one chunk or several."""
        if isinstance(query, messages.GetState):
            self._send_chunk(query.query_id, self._state(), is_last=True)
        elif isinstance(query, messages.GetCounters):
            await self._send_counters(query)
        elif isinstance(query, messages.GetDecisions):
            await self._send_decisions(query)
        elif isinstance(query, messages.PreviewRoute):
            self._send_chunk(query.query_id, self._preview(query), is_last=True)
        else:
            found = self._gateway.decisions.find(query.request_id, query.callers)[:_DECISIONS_PER_CHUNK]
            self._send_chunk(query.query_id, [encode_logged_request(logged) for logged in found], is_last=True)

    def final_counters(self) -> messages.FinalCounters:
        """Returns the counters of a worker that ends."""
        telemetry = self._gateway.telemetry
        models = [snapshot_of(key, counters, None) for key, counters in telemetry.models.items()]
        return messages.FinalCounters(models, dict(telemetry.non_model_counters))

    def _send_chunk(self, query_id: int, content: object, *, is_last: bool) -> None:
        self._send(messages.ReplyChunk(query_id, _encode(content), is_last))

    def _send_end(self, query_id: int) -> None:
        self._send(messages.ReplyChunk(query_id, b"", True))

    def _preview(self, query: messages.PreviewRoute) -> messages.RoutePreview:
        try:
            logged = self._previewer.preview(query)
            return messages.RoutePreview(encode_logged_request(logged))
        except GatewayError as error:
            return messages.RoutePreview(None, (error.status, str(error), error.param, error.code))

    async def _send_counters(self, query: messages.GetCounters) -> None:
        telemetry = self._gateway.telemetry
        telemetry.remove_departed(self._gateway.stack.routers.fleet, query.now)
        for key in list(telemetry.models):
            if (series := telemetry.models.get(key)) is not None:  # another query may drop it
                snapshot = snapshot_of(key, series, query.now if query.windows else None)
                self._send_chunk(query.query_id, snapshot, is_last=False)
                await asyncio.sleep(0)
        self._send_end(query.query_id)

    async def _send_decisions(self, query: messages.GetDecisions) -> None:
        requests = self._gateway.decisions.latest(query.limit, query.model, query.callers)
        for begin in range(0, len(requests), _DECISIONS_PER_CHUNK):
            chunk = [encode_logged_request(logged) for logged in requests[begin : begin + _DECISIONS_PER_CHUNK]]
            self._send_chunk(query.query_id, chunk, is_last=False)
            await asyncio.sleep(0)
        self._send_end(query.query_id)

    def _state(self) -> messages.WorkerState:
        gateway = self._gateway
        is_ready, warnings = gateway.readiness()
        outlier_detector = gateway.stack.failures.outlier_detector
        lags = [(share, gateway.loop_lag.quantile(share)) for share in _QUANTILES]
        return messages.WorkerState(
            is_ready,
            warnings,
            {
                name: messages.EncodedLoad(load.inflight, load.waiting, load.backlog_seconds, load.inflight_tokens)
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

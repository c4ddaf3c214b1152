"""A worker's answers to the helper's questions, in pieces of bounded work, so that the loop has its turn between them."""

import asyncio
from collections.abc import Callable

import msgspec

from fairlead_gateway.errors import GatewayError
from fairlead_gateway.ipc import messages as say
from fairlead_gateway.ipc.decision_codec import encode_logged_request
from fairlead_gateway.telemetry.snapshot import snapshot_of
from fairlead_gateway.worker.proxy.gateway import Gateway

_DECISIONS_PER_CHUNK = 16
_QUANTILES = (0.5, 0.99, 1.0)
_encode = msgspec.msgpack.Encoder().encode


class QueryHandler:
    """What one gateway answers; ``send`` puts a message on the channel."""

    def __init__(self, gateway: Gateway, send: Callable[[msgspec.Struct], bool]) -> None:
        self._gateway = gateway
        self._send = send

    async def handle(self, query: say.Query) -> None:
        """Answer one question."""
        if isinstance(query, say.GetState):
            self._send(say.ReplyChunk(query.ask, _encode(self._state()), True))
        elif isinstance(query, say.GetCounters):
            await self._send_counters(query)
        elif isinstance(query, say.GetDecisions):
            await self._send_decisions(query)
        elif isinstance(query, say.PreviewRoute):
            self._send(say.ReplyChunk(query.ask, _encode(self._preview(query)), True))
        else:
            found = self._gateway.decisions.get(query.request_id)
            data = _encode([] if found is None else [encode_logged_request(found)])
            self._send(say.ReplyChunk(query.ask, data, True))

    def _preview(self, query: say.PreviewRoute) -> say.RoutePreview:
        try:
            return say.RoutePreview(
                encode_logged_request(self._gateway.preview_route(query.path, query.body, query.session))
            )
        except GatewayError as error:
            return say.RoutePreview(None, (error.status, str(error), error.param, error.code))

    def final_counters(self) -> say.FinalCounters:
        """The counters at the end."""
        telemetry = self._gateway.telemetry
        models = [snapshot_of(key, series, None) for key, series in telemetry.models.items()]
        return say.FinalCounters(models, dict(telemetry.process_counters))

    async def _send_counters(self, query: say.GetCounters) -> None:
        telemetry = self._gateway.telemetry
        telemetry.remove_departed(self._gateway.fleet(), query.now)
        for key in list(telemetry.models):
            part = snapshot_of(key, telemetry.models[key], query.now if query.windows else None)
            self._send(say.ReplyChunk(query.ask, _encode(part), False))
            await asyncio.sleep(0)
        self._send(say.ReplyChunk(query.ask, b"", True))

    async def _send_decisions(self, query: say.GetDecisions) -> None:
        found = self._gateway.decisions.latest(query.limit, query.model)
        for begin in range(0, len(found), _DECISIONS_PER_CHUNK):
            wired = [encode_logged_request(logged) for logged in found[begin : begin + _DECISIONS_PER_CHUNK]]
            self._send(say.ReplyChunk(query.ask, _encode(wired), False))
            await asyncio.sleep(0)
        self._send(say.ReplyChunk(query.ask, b"", True))

    def _state(self) -> say.WorkerState:
        gateway = self._gateway
        ready, notes = gateway.readiness()
        lags = [(share, gateway.lag.quantile(share)) for share in _QUANTILES]
        return say.WorkerState(
            ready,
            notes,
            {
                item: say.EncodedLoad(load.inflight, load.waiting, load.backlog_seconds, load.inflight_tokens)
                for item, load in gateway.loads().items()
            },
            self._health_states(),
            [(share, value) for share, value in lags if value is not None],
            dict(gateway.telemetry.process_counters),
            gateway.inflight_count(),
            gateway.admission.queued(),
        )

    def _health_states(self) -> dict[str, tuple[str, str]]:
        standing = self._gateway.telemetry.health_state
        if standing is None:
            return {}
        fleet = self._gateway.fleet()
        found = ((one.id, standing(one.id)) for ones in fleet.instances.values() for one in ones)
        return {item: (str(stands), why) for item, (stands, why) in found if why}

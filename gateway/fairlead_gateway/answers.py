"""A worker's answers to the helper's questions, in pieces of bounded work, so that the loop has its turn between them."""

import asyncio
from collections.abc import Callable

import msgspec

from fairlead_gateway import channel_messages as say
from fairlead_gateway.errors import GatewayError
from fairlead_gateway.gateway import Gateway
from fairlead_gateway.telemetry.parts import part_of
from fairlead_gateway.wired import wire_logged

_DECISIONS_A_PIECE = 16
_QUANTILES = (0.5, 0.99, 1.0)
_encode = msgspec.msgpack.Encoder().encode


class Answers:
    """What one gateway answers; ``send`` puts a message on the channel."""

    def __init__(self, gateway: Gateway, send: Callable[[msgspec.Struct], bool]) -> None:
        self._gateway = gateway
        self._send = send

    async def to(self, question: say.Question) -> None:
        """Answer one question."""
        if isinstance(question, say.AskState):
            self._send(say.Piece(question.ask, _encode(self._state()), True))
        elif isinstance(question, say.AskCounters):
            await self._counters(question)
        elif isinstance(question, say.AskDecisions):
            await self._decisions(question)
        elif isinstance(question, say.AskWhere):
            self._send(say.Piece(question.ask, _encode(self._would(question)), True))
        else:
            found = self._gateway.decisions.get(question.request_id)
            data = _encode([] if found is None else [wire_logged(found)])
            self._send(say.Piece(question.ask, data, True))

    def _would(self, question: say.AskWhere) -> say.Would:
        try:
            return say.Would(wire_logged(self._gateway.would(question.path, question.body, question.session)))
        except GatewayError as error:
            return say.Would(None, (error.status, str(error), error.param, error.code))

    def last(self) -> say.Last:
        """The counters at the end."""
        telemetry = self._gateway.telemetry
        models = [part_of(key, series, None) for key, series in telemetry.models.items()]
        return say.Last(models, dict(telemetry.own))

    async def _counters(self, question: say.AskCounters) -> None:
        telemetry = self._gateway.telemetry
        telemetry.forget(self._gateway.fleet(), question.now)
        for key in list(telemetry.models):
            part = part_of(key, telemetry.models[key], question.now if question.windows else None)
            self._send(say.Piece(question.ask, _encode(part), False))
            await asyncio.sleep(0)
        self._send(say.Piece(question.ask, b"", True))

    async def _decisions(self, question: say.AskDecisions) -> None:
        found = self._gateway.decisions.last(question.limit, question.model)
        for begin in range(0, len(found), _DECISIONS_A_PIECE):
            wired = [wire_logged(logged) for logged in found[begin : begin + _DECISIONS_A_PIECE]]
            self._send(say.Piece(question.ask, _encode(wired), False))
            await asyncio.sleep(0)
        self._send(say.Piece(question.ask, b"", True))

    def _state(self) -> say.State:
        gateway = self._gateway
        ready, notes = gateway.ready()
        lags = [(share, gateway.lag.quantile(share)) for share in _QUANTILES]
        return say.State(
            ready,
            notes,
            {
                item: say.WireLoad(load.inflight, load.waiting, load.backlog_seconds, load.inflight_tokens)
                for item, load in gateway.loads().items()
            },
            self._standings(),
            [(share, value) for share, value in lags if value is not None],
            dict(gateway.telemetry.own),
            gateway.in_flight(),
            gateway.holding.held(),
        )

    def _standings(self) -> dict[str, tuple[str, str]]:
        standing = self._gateway.telemetry.standing
        if standing is None:
            return {}
        fleet = self._gateway.fleet()
        found = ((one.id, standing(one.id)) for ones in fleet.instances.values() for one in ones)
        return {item: (str(stands), why) for item, (stands, why) in found if why}

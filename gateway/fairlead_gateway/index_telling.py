"""What a worker tells the helper for the index: what it sends where, how that ended; and what it is told back.

The request's way only puts things aside; they go out together a twentieth of a second after the first. A worker whose models have no
instance that tells what it holds tells nothing.
"""

import asyncio
from array import array
from typing import Protocol

import msgspec

from fairlead.limits import Limits
from fairlead_gateway.channel_messages import Corrected, EndedRow, Given, Sample, Seen, SentRow, Want
from fairlead_gateway.gateway import Gateway
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.routing.index import Told
from fairlead_gateway.routing.prefix import BYTES_PER_TOKEN
from fairlead_gateway.samples import Samples


class Sink(Protocol):
    """Where it goes: the channel."""

    def send(self, message: msgspec.Struct) -> bool:
        """False when it was dropped."""
        ...


class IndexTeller:
    """One worker's end. ``hooks`` are the routers'."""

    def __init__(self, sink: Sink, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self._sink = sink
        self._loop = loop
        self._most = limits.link_rows
        self._seconds = limits.link_correction_seconds
        self._sent: list[SentRow] = []
        self._ended: list[EndedRow] = []
        self._waiting = False
        self._dropped = 0
        self.samples = Samples(limits)
        self.hooks = Told(self.sent, self.ended)

    def sent(self, model: str, request: RouteRequest, instance: str) -> None:
        """A prompt was sent to an instance."""
        chain = request.chain
        if len(self._sent) >= self._most:
            self._dropped += 1
            return
        hashes = array("Q", chain.hashes).tobytes()
        size = int(request.prompt_tokens * BYTES_PER_TOKEN)
        self._sent.append(SentRow(model, instance, chain.tail, hashes, size))
        self._later()

    def ended(
        self,
        model: str,
        request: RouteRequest,
        instance: str,
        prompt: int | None,
        cached: int | None,
        indexed: float,
        matched: float,
    ) -> None:
        """It is over."""
        if len(self._ended) >= self._most:
            self._dropped += 1
            return
        credited = indexed if indexed >= 0.0 else None
        self._ended.append(EndedRow(model, instance, request.chain.tail, prompt, cached, credited, matched))
        self._later()

    def wanted(self, want: Want) -> None:
        """The helper asks for prompts."""
        found = []
        for tail in want.tails:
            sample = self.samples.take(want.model, tail)
            if sample is not None:
                found.append(Sample(tail, sample[0], sample[1]))
        if found:
            self._sink.send(Given(want.model, found))

    def _later(self) -> None:
        if not self._waiting:
            self._waiting = True
            self._loop.call_later(self._seconds, self._flush)

    def _flush(self) -> None:
        self._waiting = False
        sent, self._sent = self._sent, []
        ended, self._ended = self._ended, []
        if self._sink.send(Seen(sent, ended, self._dropped)):
            self._dropped = 0
        else:
            self._dropped += len(sent) + len(ended)


def correct(gateway: Gateway, told: Corrected) -> None:
    """Do what the helper says of a model's instances."""
    for one in told.corrections:
        gone = tuple(array("Q", one.gone))
        held = [tuple(array("Q", chain)) for chain in one.held]
        gateway.corrected(told.model, one.instance, one.forget, gone, held)

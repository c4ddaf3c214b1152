"""What a worker tells the helper for the index: what it sends where, how that ended; and what it is told back.

The request's way only puts things aside; they go out together a twentieth of a second after the first. A worker whose models have no
instance that tells what it holds tells nothing.
"""

import asyncio
from array import array
from typing import Protocol

import msgspec

from fairlead.limits import Limits
from fairlead_gateway.ipc.messages import (
    IndexCorrections,
    IndexReport,
    PromptDispatched,
    PromptFinished,
    PromptSample,
    PromptSamples,
    SampleRequest,
)
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.routing.hooks import DispatchHooks
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN
from fairlead_gateway.worker.proxy.gateway import Gateway
from fairlead_gateway.worker.reporting.prompt_samples import PromptSampleBuffer


class Sink(Protocol):
    """Where it goes: the channel."""

    def send(self, message: msgspec.Struct) -> bool:
        """False when it was dropped."""
        ...


class IndexReporter:
    """One worker's end. ``hooks`` are the routers'."""

    def __init__(self, sender: Sink, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self._sender = sender
        self._loop = loop
        self._max_rows = limits.prefix_map_reports_pending
        self._seconds = limits.prefix_map_correction_seconds
        self._dispatched: list[PromptDispatched] = []
        self._finished: list[PromptFinished] = []
        self._is_scheduled = False
        self._dropped = 0
        self.samples = PromptSampleBuffer(limits)
        self.hooks = DispatchHooks(self.on_dispatch, self.on_finish)

    def on_dispatch(self, model: str, request: RouteRequest, instance: str) -> None:
        """A prompt was sent to an instance."""
        chain = request.chain
        if len(self._dispatched) >= self._max_rows:
            self._dropped += 1
            return
        hashes = array("Q", chain.hashes).tobytes()
        size = int(request.prompt_tokens * BYTES_PER_TOKEN)
        self._dispatched.append(PromptDispatched(model, instance, chain.tail, hashes, size))
        self._schedule_flush()

    def on_finish(
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
        if len(self._finished) >= self._max_rows:
            self._dropped += 1
            return
        credited = indexed if indexed >= 0.0 else None
        self._finished.append(PromptFinished(model, instance, request.chain.tail, prompt, cached, credited, matched))
        self._schedule_flush()

    def send_samples(self, want: SampleRequest) -> None:
        """The helper asks for prompts."""
        found = []
        for tail in want.tails:
            sample = self.samples.take(want.model, tail)
            if sample is not None:
                found.append(PromptSample(tail, sample[0], sample[1]))
        if found:
            self._sender.send(PromptSamples(want.model, found))

    def _schedule_flush(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_later(self._seconds, self._flush)

    def _flush(self) -> None:
        self._is_scheduled = False
        sent, self._dispatched = self._dispatched, []
        ended, self._finished = self._finished, []
        if self._sender.send(IndexReport(sent, ended, self._dropped)):
            self._dropped = 0
        else:
            self._dropped += len(sent) + len(ended)


def apply_corrections(gateway: Gateway, told: IndexCorrections) -> None:
    """Do what the helper says of a model's instances."""
    for one in told.corrections:
        gone = tuple(array("Q", one.gone))
        held = [tuple(array("Q", chain)) for chain in one.held]
        gateway.apply_corrections(told.model, one.instance, one.forget, gone, held)

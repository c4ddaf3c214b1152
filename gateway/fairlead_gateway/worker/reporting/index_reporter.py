"""Reports dispatched and finished prompts to the KV-cache index, and applies its corrections.

A worker whose models have no instance with KV events reports nothing.
"""

import asyncio
from array import array

from fairlead.limits import Limits
from fairlead_gateway.ipc.batch_sender import BatchSender, MessageSender
from fairlead_gateway.ipc.messages import (
    PREFIX_MAP_CORRECTION_SECONDS,
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
from fairlead_gateway.routing.load.inflight import InflightRequest
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN
from fairlead_gateway.worker.dispatch.router_registry import RouterRegistry
from fairlead_gateway.worker.reporting.prompt_samples import PromptSampleBuffer


class IndexReporter:
    """The collector of one worker's reports to the index.

    hooks: called by the routers at the dispatch and the end of a request.
    """

    def __init__(self, sender: MessageSender, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self._sender = sender
        self._max_rows = limits.prefix_map_reports_pending
        self._dispatched: list[PromptDispatched] = []
        self._finished: list[PromptFinished] = []
        self._batch = BatchSender(sender, loop, PREFIX_MAP_CORRECTION_SECONDS, self._take)
        self.samples = PromptSampleBuffer(limits)
        self.hooks = DispatchHooks(self.on_dispatch, self.on_finish)

    def on_dispatch(self, model: str, request: RouteRequest, instance: str) -> None:
        """Reports a dispatched prompt with the next batch; drops it if too many wait."""
        chain = request.chain
        if len(self._dispatched) >= self._max_rows:
            self._batch.dropped += 1
            return
        hashes = array("Q", chain.hashes).tobytes()
        size = int(request.prompt_tokens * BYTES_PER_TOKEN)
        self._dispatched.append(PromptDispatched(model, instance, chain.tail, hashes, size))
        self._batch.schedule()

    def on_finish(self, model: str, inflight: InflightRequest, prompt: int | None, cached: int | None) -> None:
        """Reports a finished prompt with the next batch; drops it if too many wait.

        See `DispatchHooks.on_finish`.
        """
        if len(self._finished) >= self._max_rows:
            self._batch.dropped += 1
            return
        tail, indexed = inflight.request.chain.tail, inflight.indexed_share
        credited = indexed if indexed >= 0.0 else None
        self._finished.append(
            PromptFinished(model, inflight.load.instance, tail, prompt, cached, credited, inflight.matched_share)
        )
        self._batch.schedule()

    def send_samples(self, request: SampleRequest) -> None:
        """Sends the requested prompts that are still buffered."""
        samples = []
        for tail in request.tails:
            sample = self.samples.take(request.model, tail)
            if sample is not None:
                samples.append(PromptSample(tail, sample[0], sample[1]))
        if samples:
            self._sender.send(PromptSamples(request.model, samples))

    def _take(self, dropped: int) -> tuple[IndexReport, int]:
        dispatched, self._dispatched = self._dispatched, []
        finished, self._finished = self._finished, []
        return IndexReport(dispatched, finished, dropped), len(dispatched) + len(finished)


def apply_corrections(routers: RouterRegistry, message: IndexCorrections) -> None:
    """Applies the index's corrections of what a model's instances have cached to its routers."""
    for correction in message.corrections:
        removed = tuple(array("Q", correction.removed))
        cached = [tuple(array("Q", chain)) for chain in correction.cached]
        for router in routers.routers(message.model):
            router.apply_correction(correction.instance, correction.forget, removed, cached)

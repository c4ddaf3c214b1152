"""The reporters of one worker, as one value.

Reports dispatches, crashes, decisions and loads to the supervisor.

Dispatches and crashes go on to the sibling workers; dispatches, decisions and loads to Redis. A
worker without siblings and without Redis has no reporter.

Reports the times of requests, from which the supervisor learns engine profiles.

Times are those of the machine's monotonic clock, so the supervisor can order the events of all
workers.

Reports what each request used, from which the supervisor keeps the ledger.

- Tokens are the engine's. Where it reported none, they are estimated: those of the prompt by its
  caller's earlier ones, those of the answer by `quota.generated_tokens`.
- A request that failed by its engine or the gateway used nothing: its tokens are 0.
- A client that disconnects has used its prompt and what was computed by then. So has a request that
  takes too long, or that its engine refuses after the first token.

Reports dispatched and finished prompts to the KV-cache index, and applies its corrections.

A worker whose models have no instance with KV events reports nothing.

The last prompts that were sent, in case the KV-cache index needs one of them as tokens.

The buffer keeps at most `prefix_map_samples` bodies of `prefix_map_sample_bytes` in sum, also
after their requests end. It is used only if
instances report their cache. A prompt leaves the worker only when the index requests it. It goes to
the supervisor, and from there only to an engine of its model.
"""

import asyncio
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from fairlead.limits import Limits
from fairlead_gateway.ipc.batch_sender import BatchSender, MessageSender, RowBatch
from fairlead_gateway.ipc.decision_json import stream_entry
from fairlead_gateway.ipc.messages import (
    CHAT_SAMPLE,
    COMPLETION_SAMPLE,
    PREFIX_MAP_CORRECTION_SECONDS,
    Dispatch,
    EncodedLoad,
    IndexReport,
    PromptDispatched,
    PromptFinished,
    PromptSample,
    PromptSamples,
    SampleRequest,
    TimingEvent,
    TimingEventKind,
    TimingEvents,
    UsageRow,
    UsageRows,
    WorkerReport,
)
from fairlead_gateway.routing import InstanceLoad, PrefixChain, RouteRequest
from fairlead_gateway.routing.load.inflight import InflightRequest
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN
from fairlead_gateway.routing.router import DispatchHooks, SiblingWorkers
from fairlead_gateway.telemetry.decision_log import DecisionRecord
from fairlead_gateway.telemetry.handoff_record import OK
from fairlead_gateway.telemetry.outcome import RequestOutcome
from fairlead_gateway.worker.openai.request import ModelRequest
from fairlead_gateway.worker.openai.schemas import ChatRequest, CompletionRequest
from fairlead_gateway.worker.quota.tenant_limits import QuotaLink
from fairlead_gateway.worker.request_context import RequestContext

TIMING_ROWS: Final = 16_384
"""Limit: request timings that a worker buffers for the supervisor, which fits profiles."""

SIBLING_BATCH_SECONDS: Final = 0.05
"""Limit: decisions are batched this long for the sibling workers."""

PREFIX_MAP_SAMPLE_BYTES: Final = 8 * 1024 * 1024
"""Limit: the same in bytes; none over a quarter of it is kept."""

PREFIX_MAP_SAMPLES: Final = 256
"""Limit: last prompts of a worker that the index may query."""

PREFIX_MAP_REPORTS_PENDING: Final = 4_096
"""Limit: prompts sent and ended that a worker buffers for the index."""


class PromptSampleBuffer:
    """The last prompts by model and hash of the whole prompt."""

    def __init__(self) -> None:
        self._max_count = PREFIX_MAP_SAMPLES
        self._max_bytes = PREFIX_MAP_SAMPLE_BYTES
        self._samples: OrderedDict[tuple[str, int], tuple[str, bytes]] = OrderedDict()
        self._bytes = 0

    def offer(self, request: ModelRequest, route: RouteRequest) -> None:
        """Adds the prompt of a chat or a completion that is being sent.

        Ignores prompts that are too long or shorter than a block. Removes the oldest if necessary.
        """
        fields = request.fields
        kind = (
            CHAT_SAMPLE
            if isinstance(fields, ChatRequest)
            else COMPLETION_SAMPLE
            if isinstance(fields, CompletionRequest)
            else None
        )
        size = len(request.body)
        if kind is None or not route.chain.hashes or size * 4 > self._max_bytes:
            return
        key = (request.model_key, route.chain.tail)
        if key in self._samples:
            return
        self._samples[key] = kind, request.body
        self._bytes += size
        while len(self._samples) > self._max_count or self._bytes > self._max_bytes:
            _, (_, oldest) = self._samples.popitem(last=False)
            self._bytes -= len(oldest)

    def take(self, model: str, tail: int) -> tuple[str, bytes] | None:
        """Removes a prompt and returns its kind and body; None if it is no longer buffered.

        tail: the hash of the whole prompt.
        """
        sample = self._samples.pop((model, tail), None)
        if sample is not None:
            self._bytes -= len(sample[1])
        return sample


# Why: compiled code looks up the names of other modules each time.
_ROW: Final = UsageRow
_OK: Final = OK
_BAD_GATEWAY: Final = 502


class UsageReporter:
    """The collector of the use of one worker's requests; drops new rows if too many wait."""

    def __init__(self, sender: MessageSender, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self._batch = RowBatch(sender, loop, limits.usage_report_seconds, limits.usage_rows, UsageRows)
        self.flush = self._batch.flush

    def on_finished(self, context: RequestContext, outcome: RequestOutcome) -> None:
        """Adds a request that has ended."""
        adapter = context.request.adapter
        tenant, choice, result, status = context.tenant, context.choice, context.result, outcome.status
        output, prompt = outcome.output_tokens, outcome.prompt_tokens
        is_estimated = False
        if outcome.error is not None and status < 400:
            status = _BAD_GATEWAY  # the response had begun
        if result.is_refunded:
            prompt = output = 0
        elif prompt is None or output is None:
            is_sent = result.dispatched_at is not None and context.request.is_counted
            if prompt is None:
                is_estimated = is_sent
                prompt = result.estimated_prompt if is_sent else 0
            if output is None and is_sent:
                output = result.estimated_tokens
                is_estimated = is_estimated or output > 0
        self._batch.add(
            _ROW(
                outcome.request_id,
                outcome.started_wall + outcome.duration_seconds,
                "" if tenant is None else tenant.name,
                context.key_name or "",
                "" if tenant is None else tenant.tier.value,
                outcome.model_key,
                outcome.instance_id or "",
                "" if choice is None else choice.instance.pool,
                _prefill_instance(context),
                status,
                prompt,
                min(outcome.cached_tokens or 0, prompt),
                output or 0,
                is_estimated,
                "" if adapter is None else adapter.name,
            )
        )


def _prefill_instance(context: RequestContext) -> str:
    """Returns the instance that computed the prompt for the one that answered; empty if none."""
    record = context.handoff_record
    if record is None:
        return ""
    for attempt in record.attempts:
        if attempt.result == _OK:
            return attempt.instance_id
    return ""


# Why: compiled code looks up the members of an Enum, and the names of other modules, each time.
_DISPATCHED: Final = int(TimingEventKind.DISPATCHED)
_FIRST_TOKEN: Final = int(TimingEventKind.FIRST_TOKEN)
FINISHED: Final = int(TimingEventKind.FINISHED)
ABANDONED: Final = int(TimingEventKind.ABANDONED)
UNMEASURED: Final = int(TimingEventKind.UNMEASURED)
_EVENT: Final = TimingEvent


class TimingReporter:
    """The collector of the timing events of one worker; drops new ones if too many wait."""

    def __init__(self, sender: MessageSender, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self._batch = RowBatch(sender, loop, limits.timing_report_seconds, TIMING_ROWS, TimingEvents)

    def on_dispatch(self, request_id: str, instance: str, now: float, tokens: float, cached: float) -> None:
        """Reports a dispatched prompt.

        tokens, cached: tokens of the prompt, and those expected in the instance's cache.
        """
        self._batch.add(_EVENT(_DISPATCHED, now, request_id, instance, tokens, cached))

    def on_first_token(self, request_id: str, now: float) -> None:
        """Reports the first token of a stream."""
        self._batch.add(_EVENT(_FIRST_TOKEN, now, request_id))

    def on_end(
        self, kind: int, request_id: str, now: float, cached: int | None = None, output: int | None = None
    ) -> None:
        """Reports the end of an attempt.

        kind: `FINISHED` for a complete response; `UNMEASURED` if its tokens say nothing of the time
            of a step; `ABANDONED` for a failed attempt, or a client that disconnected.
        cached, output: tokens as the engine reported them.
        """
        cached_tokens = -1.0 if cached is None else float(cached)
        output_tokens = -1.0 if output is None else float(output)
        self._batch.add(_EVENT(kind, now, request_id, "", 0.0, cached_tokens, output_tokens))


def _ignore(key: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Reporters:
    """The reporters of a worker; None for what is not reported.

    siblings: the other workers of this gateway, which get the dispatches and crashes.
    dispatch_hooks: report the start and end of requests to the KV-cache index.
    prompt_samples: prompts that the index may request.
    timings: the times of requests, from which the supervisor learns engine profiles.
    usage: what requests used, from which the supervisor keeps the ledger.
    on_decision: called with each decision, to publish it.
    limits: gets slices of tenants' limits.
    on_needs_instance: called repeatedly with each model whose requests wait for an instance.
    """

    siblings: SiblingWorkers | None = None
    dispatch_hooks: DispatchHooks | None = None
    prompt_samples: PromptSampleBuffer | None = None
    timings: TimingReporter | None = None
    usage: UsageReporter | None = None
    on_decision: Callable[[DecisionRecord], None] | None = None
    on_needs_instance: Callable[[str], None] = _ignore
    limits: QuotaLink | None = None

    def finish_callbacks(self) -> list[Callable[[RequestContext, RequestOutcome], None]]:
        """Returns what is called with each request that has ended."""
        return [] if self.usage is None else [self.usage.on_finished]


_IMMEDIATE_FLUSH_COUNT = 64
_encode = msgspec.msgpack.Encoder().encode


class DispatchReporter:
    """The collector of one worker's reports. Its methods are hooks of routers and decision log.

    gateway_id: of decisions and loads that go to Redis; None: they do not.
    loads: returns the worker's own load by instance.
    take_service: returns what was served since its last call, by model and tenant.
    """

    def __init__(
        self,
        sender: MessageSender,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        *,
        gateway_id: str | None,
        loads: Callable[[], Mapping[str, InstanceLoad]],
        take_service: Callable[[], dict[str, dict[str, float]]] = dict,
    ) -> None:
        self._take_service = take_service
        self._limits = limits
        self._gateway_id = gateway_id
        self._loads = loads
        self._dispatched: deque[tuple[str, str, PrefixChain, Hashable]] = deque()
        self._crashes: list[tuple[bytes, str, float, float]] = []
        self._cleared: list[tuple[bytes, float]] = []
        self._decisions: deque[DecisionRecord] = deque()
        self._reported_loads: dict[str, EncodedLoad] = {}
        self._batch = BatchSender(sender, loop, SIBLING_BATCH_SECONDS, self._take)

    def on_dispatch(self, model: str, request: RouteRequest, instance: str) -> None:
        """Reports a dispatched prompt with the next batch; drops the oldest if too many wait."""
        if len(self._dispatched) >= self._limits.sibling_decisions_pending:
            self._dispatched.popleft()
        self._dispatched.append((model, instance, request.chain, request.session_hash))
        self._schedule(len(self._dispatched))

    def on_crash(self, fingerprint: bytes, instance: str, sent_at: float, crashed_at: float) -> None:
        """Reports at once that an instance broke off on a body.

        Why: a sibling worker may be about to send the same body.
        """
        if len(self._crashes) < self._limits.quarantined_fingerprints:
            self._crashes.append((fingerprint, instance, sent_at, crashed_at))
        self.flush()

    def on_cleared(self, fingerprint: bytes, answered_at: float) -> None:
        """Reports at once that a suspect body was answered."""
        if len(self._cleared) < self._limits.quarantined_fingerprints:
            self._cleared.append((fingerprint, answered_at))
        self.flush()

    def on_decision(self, record: DecisionRecord) -> None:
        """Reports a decision with the next batch; drops the oldest if too many wait."""
        if len(self._decisions) >= self._limits.published_decisions_pending:
            self._decisions.popleft()
            self._batch.dropped += 1
        self._decisions.append(record)
        self._schedule(len(self._decisions))

    def flush(self) -> None:
        """Sends the collected reports now."""
        self._batch.flush()

    def _schedule(self, count: int) -> None:
        if count == _IMMEDIATE_FLUSH_COUNT:
            self._batch.hurry()
        else:
            self._batch.schedule()

    def _take(self, dropped: int) -> tuple[WorkerReport | None, int]:
        dispatches = None
        if self._dispatched:
            dispatches = _encode([_encode_dispatch(*dispatch) for dispatch in self._dispatched])
            self._dispatched.clear()
        crashes, self._crashes = self._crashes, []
        cleared, self._cleared = self._cleared, []
        decisions = self._take_decisions()
        loads = self._changed_loads() if self._gateway_id is not None else None
        if self._reported_loads:  # requests are in flight, and their end is to be reported too
            self._batch.schedule()
        service = self._take_service()
        is_empty = dispatches is None and not crashes and not cleared and not decisions and loads is None
        if is_empty and not service:
            return None, 0
        return WorkerReport(dispatches, crashes, decisions, loads, dropped, cleared, service), len(decisions)

    def _take_decisions(self) -> list[tuple[str, bytes]]:
        """Returns the collected decisions by model, as entries of the Redis stream."""
        records, self._decisions = self._decisions, deque()
        gateway_id = self._gateway_id or ""
        return [(record.model_key, stream_entry(record, gateway_id)) for record in records]

    def _changed_loads(self) -> dict[str, EncodedLoad] | None:
        loads = {
            name: EncodedLoad(load.inflight, load.waiting, load.backlog_seconds, load.inflight_tokens, load.queued)
            for name, load in self._loads().items()
            if load.inflight
        }
        if loads == self._reported_loads:
            return None
        self._reported_loads = loads
        return loads


def _encode_dispatch(model: str, instance: str, chain: PrefixChain, session_hash: Hashable) -> Dispatch:
    hashes = array("Q", chain.hashes).tobytes()
    return Dispatch(model, instance, hashes, chain.tail, session_hash if isinstance(session_hash, int) else 0)


class IndexReporter:
    """The collector of one worker's reports to the index.

    hooks: called by the routers at the dispatch and the end of a request.
    """

    def __init__(self, sender: MessageSender, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self._sender = sender
        self._max_rows = PREFIX_MAP_REPORTS_PENDING
        self._dispatched: list[PromptDispatched] = []
        self._finished: list[PromptFinished] = []
        self._batch = BatchSender(sender, loop, PREFIX_MAP_CORRECTION_SECONDS, self._take)
        self.samples = PromptSampleBuffer()
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

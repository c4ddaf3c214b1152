"""The journal of one worker: what its requests did, sent to the supervisor in one report.

The supervisor's readers are sibling workers and peers, the KV-cache index, engine profiles, the
usage ledger and the decision stream. Rows wait for the next report, at most a second. Beyond the
bound of their kind, the oldest are dropped. Times are those of the machine's monotonic clock, so
the supervisor can order the events of all workers.

Use of requests:

- Tokens are the engine's. Where it reported none, they are estimated: those of the prompt by its
  caller's earlier ones, those of the answer by `limits.worker.amounts`.
- A request that failed by its engine or the gateway used nothing: its tokens are 0.
- A client that disconnects has used its prompt and what was computed by then. So has a request that
  takes too long, or that its engine refuses after the first token.
"""

import asyncio
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fairlead_gateway.ipc.channel import MessageSender
from fairlead_gateway.ipc.decision_json import stream_entry
from fairlead_gateway.kv_index.messages import PromptFinished, PromptSamples
from fairlead_gateway.kv_index.prompt_samples import PromptSampleBuffer
from fairlead_gateway.limits.worker.tenant_limits import QuotaLink
from fairlead_gateway.messages import PUBLISHED_DECISIONS_PENDING, EncodedLoad, WorkerReport
from fairlead_gateway.peers.messages import SIBLING_DECISIONS_PENDING, Dispatch
from fairlead_gateway.profiles.messages import TIMING_REPORT_SECONDS, TimingEvent, TimingEventKind
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.resilience.poison_requests import QUARANTINED_FINGERPRINTS
from fairlead_gateway.routing import InstanceLoad, RouteRequest
from fairlead_gateway.routing.load.inflight import InflightRequest
from fairlead_gateway.routing.load.shared_memory import SharedLoadTable
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN
from fairlead_gateway.routing.router import DispatchHooks
from fairlead_gateway.telemetry.decision_log import DecisionRecord
from fairlead_gateway.telemetry.handoff_record import OK
from fairlead_gateway.usage.messages import UsageRow

TIMING_ROWS: Final = 16_384
"""Limit: request timings that a worker buffers for the supervisor, which fits profiles."""
USAGE_ROWS: Final = 16_384
"""Limit: requests whose use a worker buffers for the supervisor; the oldest are lost and counted.
"""
USAGE_REPORT_SECONDS: Final = 0.5
"""Limit: interval of a worker's reports of usage; a worker that crashes loses one."""

SIBLING_BATCH_SECONDS: Final = 0.05
"""Limit: decisions are batched this long for the sibling workers."""

PREFIX_MAP_REPORTS_PENDING: Final = 4_096
"""Limit: ended prompts that a worker buffers for the index."""

_IMMEDIATE_FLUSH_COUNT: Final = 64
_BAD_GATEWAY: Final = 502
_NOTHING: Final = WorkerReport()
# Why: compiled code looks up the members of an Enum, and the names of other modules, each time.
_USAGE: Final = UsageRow
_EVENT: Final = TimingEvent
_OK: Final = OK
_DISPATCHED: Final = int(TimingEventKind.DISPATCHED)
_FIRST_TOKEN: Final = int(TimingEventKind.FIRST_TOKEN)
FINISHED: Final = int(TimingEventKind.FINISHED)
ABANDONED: Final = int(TimingEventKind.ABANDONED)
UNMEASURED: Final = int(TimingEventKind.UNMEASURED)


def _prefill_instance(context: RequestContext) -> str:
    """Returns the instance that computed the prompt for the one that answered; empty if none."""
    record = context.handoff_record
    if record is None:
        return ""
    for attempt in record.attempts:
        if attempt.result == _OK:
            return attempt.instance_id
    return ""


class _Rows:
    """Rows of one kind that wait for the next report.

    dropped: rows that were dropped since the last report that was sent.
    """

    __slots__ = ("_max_rows", "dropped", "rows")

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self.rows: list[Any] = []
        self.dropped = 0

    def add(self, row: object) -> int:
        """Adds a row, and returns the number of rows. If too many wait, drops the oldest."""
        rows = self.rows
        if len(rows) >= self._max_rows:
            del rows[0]
            self.dropped += 1
        rows.append(row)
        return len(rows)

    def take(self) -> list[Any]:
        rows, self.rows = self.rows, []
        return rows


@dataclass(frozen=True, slots=True)
class JournalBounds:
    """The bounds of a journal's reports; tests change them."""

    max_usage_rows: int = USAGE_ROWS
    usage_seconds: float = USAGE_REPORT_SECONDS
    timing_seconds: float = TIMING_REPORT_SECONDS


class Journal:
    """The journal of one worker.

    gateway_id: of decisions and loads that go to Redis; None: they do not.
    shares_dispatches: sibling workers or other gateways get all dispatches.
    keeps_usage: the supervisor keeps a ledger.
    loads: returns the worker's own load by instance; set when there are routers, as is the next.
    take_service: returns what was served since its last call, by model and tenant.
    """

    def __init__(
        self,
        sender: MessageSender,
        loop: asyncio.AbstractEventLoop,
        *,
        gateway_id: str | None = None,
        shares_dispatches: bool = False,
        keeps_usage: bool = False,
        bounds: JournalBounds = JournalBounds(),
    ) -> None:
        self._sender = sender
        self._loop = loop
        self._gateway_id = gateway_id
        self.loads: Callable[[], Mapping[str, InstanceLoad]] = dict
        self.take_service: Callable[[], dict[str, dict[str, float]]] = dict
        self.shares_dispatches = shares_dispatches
        self.keeps_usage = keeps_usage
        self.publishes_decisions = gateway_id is not None
        self._timing_seconds = bounds.timing_seconds
        self._usage_seconds = bounds.usage_seconds
        self._dispatches = _Rows(SIBLING_DECISIONS_PENDING)
        self._prompt_ends = _Rows(PREFIX_MAP_REPORTS_PENDING)
        self._timings = _Rows(TIMING_ROWS)
        self._usage = _Rows(bounds.max_usage_rows)
        self._decisions = _Rows(PUBLISHED_DECISIONS_PENDING)
        self._crashes: list[tuple[bytes, str, float, float]] = []
        self._cleared: list[tuple[bytes, float]] = []
        self._reported_loads: dict[str, EncodedLoad] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_seconds = 0.0
        self.samples = PromptSampleBuffer()

    def on_assigned(self, model: str, request: RouteRequest, instance: str, is_indexed: bool) -> None:
        self._add_batched(self._dispatches, (model, instance, request, is_indexed))

    def on_prompt_end(self, model: str, inflight: InflightRequest, prompt: int | None, cached: int | None) -> None:
        """Notes the end of a prompt for the KV-cache index; see `DispatchHooks.on_finish`."""
        tail, indexed = inflight.request.chain.tail, inflight.indexed_share
        if (model, tail) in self.samples.wanted:
            self.send_samples(model, (tail,), has_ended=True)
        credited = indexed if indexed >= 0.0 else None
        self._prompt_ends.add(
            PromptFinished(model, inflight.load.instance, tail, prompt, cached, credited, inflight.matched_share)
        )
        self._schedule(SIBLING_BATCH_SECONDS)

    def on_dispatch(
        self,
        request_id: str,
        instance: str,
        now: float,
        tokens: float,
        cached: float,
        loaded: tuple[float, float, float] | None = None,
    ) -> None:
        """Notes a prompt that is sent.

        tokens, cached: tokens of the prompt, and those expected in the instance's cache.
        loaded: those of them in its CPU memory, on its disk, and in a shared store.
        """
        self._timings.add(_EVENT(_DISPATCHED, now, request_id, instance, tokens, cached, -1.0, loaded))
        if self._timer is None:
            self._schedule(self._timing_seconds)

    def on_first_token(self, request_id: str, now: float) -> None:
        """Notes the first token of a stream."""
        for model, tail in tuple(self.samples.wanted):
            self.send_samples(model, (tail,))
        self._timings.add(_EVENT(_FIRST_TOKEN, now, request_id))
        if self._timer is None:
            self._schedule(self._timing_seconds)

    def on_end(
        self, kind: int, request_id: str, now: float, cached: int | None = None, output: int | None = None
    ) -> None:
        """Notes the end of an attempt.

        kind: `FINISHED` for a complete response; `UNMEASURED` if its tokens say nothing of the time
            of a step; `ABANDONED` for a failed attempt, or a client that disconnected.
        cached, output: tokens as the engine reported them.
        """
        cached_tokens = -1.0 if cached is None else float(cached)
        output_tokens = -1.0 if output is None else float(output)
        self._timings.add(_EVENT(kind, now, request_id, "", 0.0, cached_tokens, output_tokens))
        if self._timer is None:
            self._schedule(self._timing_seconds)

    def on_outcome(self, context: RequestContext) -> None:
        """Notes what a request that has ended used."""
        adapter = context.request.adapter
        tenant, address, outcome, status = context.tenant, context.address, context.result, context.result.status
        output, prompt = outcome.output_tokens, outcome.prompt_tokens
        is_estimated = False
        if outcome.error is not None and status < 400:
            status = _BAD_GATEWAY  # the response had begun
        if outcome.is_refunded:
            prompt = output = 0
        elif prompt is None or output is None:
            is_sent = outcome.dispatched_at is not None and context.request.dialect.is_counted
            if prompt is None:
                is_estimated = is_sent
                prompt = outcome.estimated_prompt if is_sent else 0
            if output is None and is_sent:
                output = outcome.estimated_tokens
                is_estimated = is_estimated or output > 0
        self._usage.add(
            _USAGE(
                outcome.request_id,
                outcome.started_wall + outcome.duration_seconds,
                "" if tenant is None else tenant.name,
                context.key_name or "",
                "" if tenant is None else tenant.tier.value,
                outcome.model_key,
                outcome.instance_id or "",
                "" if address is None else address.instance.pool,
                _prefill_instance(context),
                status,
                prompt,
                min(outcome.cached_tokens or 0, prompt),
                output or 0,
                is_estimated,
                "" if adapter is None else adapter.name,
                context.request.dialect.name,
            )
        )
        self._schedule(self._usage_seconds)

    def on_decision(self, record: DecisionRecord) -> None:
        self._add_batched(self._decisions, record)

    def on_crash(self, fingerprint: bytes, instance: str, sent_at: float, crashed_at: float) -> None:
        """Reports at once that an instance broke off on a body.

        Why: a sibling worker may be about to send the same body.
        """
        if len(self._crashes) < QUARANTINED_FINGERPRINTS:
            self._crashes.append((fingerprint, instance, sent_at, crashed_at))
        self.flush()

    def on_cleared(self, fingerprint: bytes, answered_at: float) -> None:
        """Reports at once that a suspect body was answered."""
        if len(self._cleared) < QUARANTINED_FINGERPRINTS:
            self._cleared.append((fingerprint, answered_at))
        self.flush()

    def send_samples(self, model: str, tails: Sequence[int], *, has_ended: bool = False) -> None:
        """Sends the requested prompts that are buffered; see `PromptSampleBuffer.take`."""
        samples = self.samples.take(model, tails, has_ended=has_ended)
        if samples:
            self._sender.send(PromptSamples(model, samples))

    def flush(self) -> None:
        """Sends a report now, unless there is nothing to report.

        Counts its rows as dropped if the channel drops it.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._send_usage()
        gateway_id, decisions = self._gateway_id, self._decisions
        crashes, self._crashes = self._crashes, []
        cleared, self._cleared = self._cleared, []
        report = WorkerReport(
            dispatches=[_encode_dispatch(*row) for row in self._dispatches.take()],
            prompt_ends=self._prompt_ends.take(),
            timings=self._timings.take(),
            decisions=[(record.model_key, stream_entry(record, gateway_id or "")) for record in decisions.take()],
            crashes=crashes,
            cleared=cleared,
            service=self.take_service() if self.shares_dispatches else {},
            loads=self._changed_loads() if gateway_id is not None else None,
            dropped_decisions=decisions.dropped,
        )
        if self._reported_loads:  # requests are in flight, and their end is to be reported too
            self._schedule(SIBLING_BATCH_SECONDS)
        if report == _NOTHING:
            return
        if self._sender.send(report):
            decisions.dropped = 0
        else:
            decisions.dropped += len(report.decisions)

    def _send_usage(self) -> None:
        """Sends the rows of the usage ledger alone.

        Why: tenants pay by them, so they are not to be dropped with the rest of a large report.
        """
        usage = self._usage
        rows = usage.take()
        if rows or usage.dropped:
            if self._sender.send(WorkerReport(usage=rows, lost_usage=usage.dropped)):
                usage.dropped = 0
            else:
                usage.dropped += len(rows)

    def _add_batched(self, rows: _Rows, row: object) -> None:
        self._schedule(0.0 if rows.add(row) == _IMMEDIATE_FLUSH_COUNT else SIBLING_BATCH_SECONDS)

    def _schedule(self, seconds: float) -> None:
        """Sends a report after `seconds`, unless one is due by then."""
        if self._timer is not None:
            if self._timer_seconds <= seconds:
                return
            self._timer.cancel()
        self._timer_seconds = seconds
        self._timer = self._loop.call_later(seconds, self.flush)

    def _changed_loads(self) -> dict[str, EncodedLoad] | None:
        loads = {
            name: EncodedLoad(load.inflight, load.waiting, load.backlog_seconds, load.inflight_tokens, load.queued)
            for name, load in self.loads().items()
            if load.inflight
        }
        if loads == self._reported_loads:
            return None
        self._reported_loads = loads
        return loads


def _encode_dispatch(model: str, instance: str, request: RouteRequest, is_indexed: bool) -> Dispatch:
    chain, session_hash = request.chain, request.session_hash
    hashes = array("Q", chain.hashes).tobytes()
    size = int(request.prompt_tokens * BYTES_PER_TOKEN) if is_indexed else 0
    return Dispatch(model, instance, hashes, chain.tail, session_hash if isinstance(session_hash, int) else 0, size)


def _ignore(key: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Reporters:
    """The links of a worker to the supervisor; None for what is not reported.

    shared_loads: the loads of sibling workers and peers.
    limits: gets slices of tenants' limits.
    on_needs_instance: called repeatedly with each model whose requests wait for an instance.
    """

    journal: Journal | None = None
    shared_loads: SharedLoadTable | None = None
    limits: QuotaLink | None = None
    on_needs_instance: Callable[[str], None] = _ignore

    @property
    def sharing_journal(self) -> Journal | None:
        return self.journal if self.journal is not None and self.journal.shares_dispatches else None

    def dispatch_hooks(self) -> DispatchHooks | None:
        """Returns the callbacks of routers."""
        journal = self.journal
        if journal is None:
            return None
        return DispatchHooks(journal.on_assigned, journal.on_prompt_end, journal.shares_dispatches)

"""Reports what each request used, from which the supervisor keeps the ledger.

- Tokens are the engine's. Where it reported none, they are estimated: those of the prompt by its
  caller's earlier ones, those of the answer by `quota.generated_tokens`.
- A request that failed by its engine or the gateway used nothing: its tokens are 0.
- A client that disconnects has used its prompt and what was computed by then. So has a request that
  takes too long, or that its engine refuses after the first token.
"""

import asyncio
from typing import Final

from fairlead.limits import Limits
from fairlead_gateway.ipc.batch_sender import BatchSender, MessageSender
from fairlead_gateway.ipc.messages import UsageRow, UsageRows
from fairlead_gateway.telemetry.handoff_record import OK
from fairlead_gateway.telemetry.outcome import RequestOutcome
from fairlead_gateway.worker.request_context import RequestContext

# Why: compiled code looks up the names of other modules each time.
_ROW: Final = UsageRow
_OK: Final = OK
_BAD_GATEWAY: Final = 502


class UsageReporter:
    """The collector of the use of one worker's requests; drops new rows if too many wait."""

    def __init__(self, sender: MessageSender, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self._max_rows = limits.usage_rows
        self._rows: list[UsageRow] = []
        self._batch = BatchSender(sender, loop, limits.usage_report_seconds, self._take)

    def on_finished(self, context: RequestContext, outcome: RequestOutcome) -> None:
        """Adds a request that has ended."""
        rows = self._rows
        if len(rows) >= self._max_rows:
            self._batch.dropped += 1
            return
        if not rows:
            self._batch.schedule()
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
        rows.append(
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

    def flush(self) -> None:
        """Sends all rows now, at the end of the worker."""
        self._batch.flush()

    def _take(self, dropped: int) -> tuple[UsageRows | None, int]:
        rows, self._rows = self._rows, []
        return (UsageRows(rows, dropped), len(rows)) if rows or dropped else (None, 0)


def _prefill_instance(context: RequestContext) -> str:
    """Returns the instance that computed the prompt for the one that answered; empty if none."""
    record = context.handoff_record
    if record is None:
        return ""
    for attempt in record.attempts:
        if attempt.result == _OK:
            return attempt.instance_id
    return ""

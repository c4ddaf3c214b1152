"""The reporters of one worker, as one value."""

from collections.abc import Callable
from dataclasses import dataclass

from fairlead_gateway.routing.hooks import DispatchHooks, SiblingWorkers
from fairlead_gateway.telemetry.decision_log import DecisionRecord
from fairlead_gateway.telemetry.outcome import RequestOutcome
from fairlead_gateway.worker.quota.tenant_limits import QuotaLink
from fairlead_gateway.worker.reporting.prompt_samples import PromptSampleBuffer
from fairlead_gateway.worker.reporting.timing_reporter import TimingReporter
from fairlead_gateway.worker.reporting.usage_reporter import UsageReporter
from fairlead_gateway.worker.request_context import RequestContext


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

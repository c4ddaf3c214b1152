"""The reporters of one worker, as one value."""

from collections.abc import Callable
from dataclasses import dataclass

from fairlead_gateway.routing.hooks import DispatchHooks, SiblingWorkers
from fairlead_gateway.telemetry.decision_log import DecisionRecord
from fairlead_gateway.worker.quota.tenant_limits import QuotaLink
from fairlead_gateway.worker.reporting.prompt_samples import PromptSampleBuffer
from fairlead_gateway.worker.reporting.timing_reporter import TimingReporter


def _ignore(key: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Reporters:
    """The reporters of a worker; None for what is not reported.

    siblings: the other workers of this gateway, which get the dispatches and crashes.
    dispatch_hooks: report the start and end of requests to the KV-cache index.
    prompt_samples: prompts that the index may request.
    timings: the times of requests, from which the supervisor learns engine profiles.
    on_decision: called with each decision, to publish it.
    limits: gets slices of tenants' limits.
    on_needs_instance: called repeatedly with each model whose requests wait for an instance.
    """

    siblings: SiblingWorkers | None = None
    dispatch_hooks: DispatchHooks | None = None
    prompt_samples: PromptSampleBuffer | None = None
    timings: TimingReporter | None = None
    on_decision: Callable[[DecisionRecord], None] | None = None
    on_needs_instance: Callable[[str], None] = _ignore
    limits: QuotaLink | None = None

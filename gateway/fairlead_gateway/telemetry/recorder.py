"""The gateway's counters, as the request's way calls them: each method adds to integer lists and returns.

Nothing here allocates label objects, takes a lock or does I/O; it belongs to one event loop. A request ends in exactly one
call of ``rejected`` (it never reached an engine) or ``finished`` (everything else), after one call of ``received``.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from fairlead.decision import Decision
from fairlead.fleet.model import Fleet
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.loop_lag import LoopLag
from fairlead_gateway.telemetry import counters as at
from fairlead_gateway.telemetry.counters import InstanceCounters, ModelCounters
from fairlead_gateway.telemetry.histogram import SECONDS_BOUNDS, bucket_index
from fairlead_gateway.telemetry.outcome import RequestOutcome
from fairlead_gateway.telemetry.status_types import IndexStatus, LoadView, PublishStats

if TYPE_CHECKING:
    from fairlead_gateway.telemetry import exposition

OTHER: Final = "other"
UNKNOWN: Final = "unknown"
OK: Final = "ok"
HOME_RULES: Final = frozenset({"affinity", "session", "only-one"})
"""Rules that choose a home by their nature; the others say it in the decision's inputs."""


class MetricsRecorder:
    """Counts per model and per instance. Models beyond the limit share one series called ``other``."""

    def __init__(self, clock: Clock, limits: Limits | None = None, loop_lag: LoopLag | None = None) -> None:
        self._now = clock.now
        limits = limits or Limits()
        self._max_models = limits.metric_models
        self._max_instances = limits.metric_instances
        self._max_label_values = limits.metric_label_values
        self._departed_seconds = limits.metric_retention_seconds
        self.loop_lag = loop_lag
        self.publish_stats: PublishStats | None = None
        self.health_state: Callable[[str], tuple[str, str]] | None = None
        self.started_at = clock.now()
        self.models: dict[str, ModelCounters] = {}
        self.process_counters: dict[str, int] = {}  # what belongs to no model, by the metric's name without its prefix
        self.queued: Mapping[str, int] = {}  # requests held now, by model
        self.index_status: IndexStatus = {}  # the same of the index
        self.peer_values: dict[str, float] = {}  # the same of other gateways, known to the helper alone

    def record_received(self, model_key: str, prompt_tokens: float = 0.0) -> None:
        """A request for a model that exists has been read whole; ``prompt_tokens`` as estimated by then."""
        self._model_counters(model_key).count_received(int(prompt_tokens))

    def record_abandoned(self, model_key: str) -> None:
        """A client left before any engine was asked."""
        self._model_counters(model_key).ints[at.ABANDONED] += 1

    def record_rejected(self, model_key: str | None, status: int, kind: str) -> None:
        """A request was answered by the gateway itself; ``kind`` is one word of a closed list (``unknown-model``)."""
        series = self._model_counters(model_key or UNKNOWN)
        series.ints[at.REJECTED] += 1
        if status >= 500:
            series.ints[at.ERRORS] += 1
        series.count_status(status)
        key = (status, kind)
        if key not in series.by_kind and len(series.by_kind) >= self._max_label_values:
            key = (status, OTHER)
        series.by_kind[key] = series.by_kind.get(key, 0) + 1

    def record_routed(self, model_key: str, instance_id: str, decision: Decision) -> None:
        """An instance was chosen; also called for every retry."""
        series = self._model_counters(model_key)
        series.count_routed(decision.rule, chose_home(decision), self._max_label_values)
        self._instance_counters(series, instance_id).count_routed()

    def record_retry(self, model_key: str, instance_id: str, why: str) -> None:
        """The attempt on ``instance_id`` failed before its first byte and another follows; ``why`` is one word."""
        series = self._model_counters(model_key)
        series.ints[at.RETRIES] += 1
        at.increment(series.retries_by_reason, why, self._max_label_values)
        self._instance_counters(series, instance_id).ints[at.I_RETRIED_AWAY] += 1

    def record_ejection(self, model_key: str, instance_id: str, why: str) -> None:
        """The instance sits out for a while; ``why`` is the last fault in one word."""
        series = self._model_counters(model_key)
        at.increment(series.ejections_by_reason, why, self._max_label_values)
        self._instance_counters(series, instance_id).ints[at.I_EJECTED] += 1

    def record_resumption(self, model_key: str, how: str) -> None:
        """Another engine was asked for the rest of a stream that broke: ``whole``, or ``broken`` again."""
        at.increment(self._model_counters(model_key).continued, how, self._max_label_values)

    def record_queue_exit(self, model_key: str, rule: str) -> None:
        """A request is held no longer, or was not let wait; ``rule`` is one word of a closed list."""
        at.increment(self._model_counters(model_key).held, rule, self._max_label_values)

    def record_handoff(
        self, model_key: str, outcome: str, reason: str, local_prefill_tokens: float | None = None
    ) -> None:
        """What became of one prompt's way from prefill to decode: ``done``, ``bypassed`` or ``failed``; ``reason`` is one word.
        ``kept_tokens``: its estimated length, where no prefill engine has computed it."""
        series = self._model_counters(model_key)
        at.increment_pair(series.handoffs, outcome, reason, self._max_label_values)
        if local_prefill_tokens is not None:
            series.ints[at.LOCAL_PREFILLS] += 1
            series.ints[at.LOCAL_PREFILL_TOKENS] += int(local_prefill_tokens)

    def record_prefill(self, model_key: str, instance_id: str, seconds: float, result: str) -> None:
        """A prefill engine was asked, and ended in ``seconds`` with ``ok`` or one word for what went wrong."""
        series = self._model_counters(model_key)
        at.increment(series.prefill_legs, result, self._max_label_values)
        instance = self._instance_counters(series, instance_id)
        instance.ints[at.I_ROUTED] += 1
        instance.ints[at.I_FINISHED] += 1
        if result != OK:
            instance.ints[at.I_ERRORS] += 1
            return
        series.ints[at.PREFILL + bucket_index(SECONDS_BOUNDS, seconds)] += 1
        series.sums[at.PREFILL_SUM] += seconds

    def record_first_token(
        self, model_key: str, instance_id: str, seconds: float, limit_seconds: float | None = None
    ) -> None:
        """The first token left for the client ``seconds`` after the request was read; ``limit_seconds`` is its objective."""
        series = self._model_counters(model_key)
        series.ints[at.TTFT + bucket_index(SECONDS_BOUNDS, seconds)] += 1
        series.sums[at.TTFT_SUM] += seconds
        instance = self._instance_counters(series, instance_id)
        instance.ints[at.I_FIRST] += 1
        instance.sums[at.I_TTFT_SUM] += seconds
        if limit_seconds is not None:
            instance.ints[at.I_JUDGED_TTFT] += 1
            instance.ints[at.I_WITHIN_TTFT] += seconds <= limit_seconds

    def record_inter_token(self, model_key: str, instance_id: str, seconds: float) -> None:
        """One more piece of a stream, ``seconds`` after the piece before it. The hottest call of all."""
        series = self.models.get(model_key) or self._model_counters(model_key)
        second = int(self._now())
        if second != series.current_second:
            series.start_second(second)
        series.observe_gap(seconds)
        instance = series.instances.get(instance_id)
        if instance is not None:
            instance.observe_gap(seconds)

    def record_finished(self, outcome: RequestOutcome) -> None:
        """A request that was routed has ended, well or badly."""
        series = self._model_counters(outcome.model_key)
        computed = series.count_finished(outcome, self._max_label_values)
        if outcome.instance_id is not None:
            instance = self._instance_counters(series, outcome.instance_id)
            instance.count_finished(computed, outcome.output_tokens or 0)
            if outcome.within_itl is not None:
                instance.ints[at.I_JUDGED_ITL] += 1
                instance.ints[at.I_WITHIN_ITL] += outcome.within_itl
            if not outcome.client_disconnected and (outcome.status >= 500 or outcome.error is not None):
                instance.ints[at.I_ERRORS] += 1

    def render(self, fleet: Fleet, loads: Mapping[str, LoadView], now: float) -> bytes:
        """Everything as Prometheus text (version 0.0.4)."""
        return b"".join(self.render_chunks(fleet, loads, now))

    def render_chunks(self, fleet: Fleet, loads: Mapping[str, LoadView], now: float) -> "exposition.TextChunks":
        """The same text in pieces of bounded work, so that a scrape of many models need not hold the loop."""
        from fairlead_gateway.telemetry import exposition  # workers count, and show nothing

        self.remove_departed(fleet, now)
        return exposition.render_families(
            self.models,
            fleet,
            loads,
            lag=self.loop_lag,
            publish_stats=self.publish_stats,
            now=now,
            uptime_seconds=now - self.started_at,
            process_values={**self.process_counters, **self.peer_values},
            queued=self.queued,
            index_status=self.index_status,
        )

    def _model_counters(self, key: str) -> ModelCounters:
        series = self.models.get(key)
        if series is None:
            if len(self.models) >= self._max_models and key not in (OTHER, UNKNOWN):
                return self._model_counters(OTHER)
            series = self.models[key] = ModelCounters()
        second = int(self._now())
        if second != series.current_second:
            series.start_second(second)
        return series

    def _instance_counters(self, series: ModelCounters, instance_id: str) -> InstanceCounters:
        instance = series.instances.get(instance_id)
        if instance is None:
            if len(series.instances) >= self._max_instances:
                del series.instances[next(iter(series.instances))]
            instance = series.instances[instance_id] = InstanceCounters(self._now())
        if series.current_second != instance.current_second:
            instance.start_second(series.current_second)
        return instance

    def remove_departed(self, fleet: Fleet, now: float) -> None:
        """Drop instances that left the fleet a while ago: pods come and go, their counters must not pile up."""
        for key, series in self.models.items():
            present = {instance.id for instance in fleet.instances.get(key, ())}
            for instance_id, instance in list(series.instances.items()):
                if instance_id in present:
                    instance.last_seen = now
                elif now - instance.last_seen > self._departed_seconds:
                    del series.instances[instance_id]


def chose_home(decision: Decision) -> bool:
    """Whether the chosen instance is one of the request's two homes."""
    return decision.rule in HOME_RULES if decision.home is None else decision.home

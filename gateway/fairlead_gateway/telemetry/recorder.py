"""The metrics recorder: what the request path calls to count.

Nothing here allocates labels, takes a lock or does I/O. The recorder belongs to one event loop. A
completely received request of a known model causes one call of `record_received`, and ends in
exactly one of three calls:

- `record_rejected`: the gateway answered it before it reached an engine.
- `record` of `ABANDONED`: its client disconnected before it reached an engine.
- `record_finished`: it was routed.

Any other request that the gateway answers causes only `record_rejected`.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from fairlead.adapters.model import LoraAdapter
from fairlead.decision import Decision
from fairlead.fleet.model import Fleet
from fairlead.runtime.clock import Clock
from fairlead.runtime.loop_lag import LoopLag
from fairlead_gateway.telemetry import counters as at
from fairlead_gateway.telemetry.counters import InstanceCounters, ModelCounters, increment_pair, seconds_bucket
from fairlead_gateway.telemetry.decision_log import (
    COMPARED,
    SHADOW_NAMES,
    RequestOutcome,
    ShadowAnswer,
    is_client_fault,
    shadow_sums,
)
from fairlead_gateway.telemetry.status_types import IndexStatus, LoadView, TenantValues

if TYPE_CHECKING:
    from fairlead_gateway.telemetry.adapter_series import AdapterSeries

METRIC_MODELS: Final = 1_000
"""Limit: models with metrics of their own; the rest are counted as `other`."""
METRIC_INSTANCES: Final = 4_096
"""Limit: instances of one model with metrics of their own; then the oldest is dropped."""
METRIC_LABEL_VALUES: Final = 64
"""Limit: values of a label such as `kind` or `rule`; the rest are counted as `other`."""
METRIC_RETENTION_SECONDS: Final = 300.0
"""Limit: an instance's counters stay this long after it left the fleet."""
METRIC_ADAPTERS: Final = 100
"""Limit: LoRA adapters with metrics of their own, those with most requests."""
METRIC_COUNTED_ADAPTERS: Final = 10_000
"""Limit: LoRA adapters of a model that a worker counts separately."""

OTHER: Final = "other"
UNKNOWN: Final = "unknown"
OK: Final = "ok"
_NOT_READ: Final = -1.0
"""In place of a time. Why not None: compiled, a number that may be None is an object."""
HOME_RULES: Final = frozenset({"affinity", "session", "only-one"})
"""Rules that always choose a home. Other decisions say it in `home`."""


class MetricsRecorder:
    """Counters per model and instance. Models beyond the limit share one set called `other`."""

    def __init__(
        self,
        clock: Clock,
        loop_lag: LoopLag | None = None,
        *,
        max_models: int = METRIC_MODELS,
        max_instances: int = METRIC_INSTANCES,
        max_label_values: int = METRIC_LABEL_VALUES,
        departed_seconds: float = METRIC_RETENTION_SECONDS,
    ) -> None:
        self._now = clock.now
        self._max_models = max_models
        self._max_instances = max_instances
        self._max_label_values = max_label_values
        self._max_adapters = METRIC_ADAPTERS
        self._max_counted_adapters = METRIC_COUNTED_ADAPTERS
        self._departed_seconds = departed_seconds
        self.loop_lag = loop_lag
        self.started_at = clock.now()
        self.models: dict[str, ModelCounters] = {}
        self._left_at: dict[str, float] = {}  # models that are no longer in the fleet
        self._known_adapters: dict[str, tuple[LoraAdapter, ...]] = {}  # those that are counted, by model
        self.non_model_counters: dict[str, int] = {}  # values of no model, by metric name without prefix
        self.queued: Mapping[str, int] = {}  # queued requests by model
        self.ejection_seconds: Mapping[str, float] = {}  # since the ejection of instances that do not answer
        self.index_status: IndexStatus = {}
        self.tenant_values: TenantValues = {}
        self.peer_values: dict[str, float] = {}  # values of other gateways; only the supervisor knows them
        self.adapter_series: AdapterSeries | None = None  # of the supervisor, since it outlives a scrape

    def record_received(self, model_key: str, prompt_tokens: float = 0.0, now: float = _NOT_READ) -> None:
        """Counts a completely received request of a known model, with its estimated
        prompt tokens.

        now: the clock's seconds, where the caller has read them; the same below.
        """
        self._model_counters(model_key, now).count_received(int(prompt_tokens))

    def record(self, model_key: str, position: int) -> None:
        """Counts an event that few requests have.

        position: of the counter in `counters`, such as `ABANDONED`.
        """
        self._model_counters(model_key).ints[position] += 1

    def record_kept_back(self, model_key: str, action: str, name: str) -> None:
        """Counts a field or a header of a request that engines did not get.

        action: one word of a closed list (`removed-field`, `refused-field`, `dropped-header`).
        """
        increment_pair(self._model_counters(model_key).kept_back, action, name, self._max_label_values)

    def record_rejected(self, model_key: str | None, status: int, kind: str) -> None:
        """Counts a request that the gateway answered itself.

        kind: one word of a closed list (`unknown-model`).
        """
        series = self._model_counters(model_key or UNKNOWN)
        series.ints[at.REJECTED] += 1
        if status >= 500:
            series.ints[at.ERRORS] += 1
        series.count_status(status)
        key = (status, kind)
        if key not in series.by_kind and len(series.by_kind) >= self._max_label_values:
            key = (status, OTHER)
        series.by_kind[key] = series.by_kind.get(key, 0) + 1

    def record_routed(self, model_key: str, instance_id: str, decision: Decision, now: float = _NOT_READ) -> None:
        """Counts a chosen instance, also of a retry."""
        series = self._model_counters(model_key, now)
        is_home = decision.rule in HOME_RULES if decision.home is None else decision.home
        series.count_routed(decision.rule, is_home, self._max_label_values)
        self._instance_counters(series, instance_id).count_routed()

    def record_retry(self, model_key: str, instance_id: str, why: str) -> None:
        """Counts an attempt that failed before its first byte and is repeated; `why` is
        one word.
        """
        series = self._model_counters(model_key)
        series.ints[at.RETRIES] += 1
        at.increment(series.retries_by_reason, why, self._max_label_values)
        self._instance_counters(series, instance_id).ints[at.I_RETRIED_AWAY] += 1

    def record_ejection(self, model_key: str, instance_id: str, why: str) -> None:
        """Counts an ejection; `why` is the last failure in one word."""
        series = self._model_counters(model_key)
        at.increment(series.ejections_by_reason, why, self._max_label_values)
        self._instance_counters(series, instance_id).ints[at.I_EJECTED] += 1

    def record_resumption(self, model_key: str, how: str) -> None:
        at.increment(self._model_counters(model_key).continued, how, self._max_label_values)

    def record_move(self, model_key: str, rest_seconds: float | None) -> None:
        """Counts a stream that leaves a draining instance.

        rest_seconds: time for which it would have stayed; None without a forecast.
        """
        moved = self._model_counters(model_key).moved
        moved[at.MOVED] = moved.get(at.MOVED, 0) + 1
        if rest_seconds is not None:
            moved[at.MOVED_WITH_FORECAST] = moved.get(at.MOVED_WITH_FORECAST, 0) + 1
            moved[at.MOVED_REST] = moved.get(at.MOVED_REST, 0) + round(rest_seconds * 1e6)

    def record_not_continued(self, model_key: str, reason: str) -> None:
        at.increment(self._model_counters(model_key).not_continued, reason, self._max_label_values)

    def record_queue_exit(self, model_key: str, rule: str) -> None:
        """Counts a request that left a queue or was refused; `rule` is one word of a
        closed list.
        """
        at.increment(self._model_counters(model_key).held, rule, self._max_label_values)

    def record_fallback(self, model_key: str, kind: str, to: str) -> None:
        at.increment_pair(self._model_counters(model_key).fallbacks, kind, to, self._max_label_values)

    def record_route(self, model_key: str, status: int, route: str) -> None:
        at.increment_pair(self._model_counters(model_key).by_route, str(status), route, self._max_label_values)

    def record_copy(self, model_key: str, original: str, outcome: str) -> None:
        """Counts a request of the model `original` that was to be copied to `model_key`.

        outcome: one word of a closed list.
        """
        copies = self._model_counters(model_key).shadow_copies
        if (original, outcome) not in copies and len(copies) >= self._max_label_values:
            original = OTHER
        copies[original, outcome] = copies.get((original, outcome), 0) + 1

    def record_comparison(self, model_key: str, original: str, copied: ShadowAnswer, own: ShadowAnswer) -> None:
        """Counts a request that both the shadow `model_key` and the model `original` have
        answered, or failed.
        """
        sums = self._model_counters(model_key).shadow_sums
        if (original, COMPARED) not in sums and len(sums) >= self._max_label_values * SHADOW_NAMES:
            original = OTHER
        for name, value in shadow_sums(copied, own).items():
            sums[original, name] = sums.get((original, name), 0) + value

    def record_adapter_request(self, model_key: str, adapter: str) -> None:
        at.increment(self._model_counters(model_key).adapter_requests, adapter, self._max_counted_adapters)

    def record_adapter_load(self, model_key: str, adapter: str, seconds: float) -> None:
        """Counts a load of an adapter that has taken `seconds`."""
        series, limit = self._model_counters(model_key), self._max_counted_adapters
        at.increment(series.adapter_loads, adapter, limit)
        at.increment(series.adapter_load_microseconds, adapter, limit, int(seconds * 1e6))

    def record_adapter_load_failure(self, model_key: str, adapter: str) -> None:
        at.increment(self._model_counters(model_key).adapter_load_failures, adapter, self._max_counted_adapters)

    def record_adapter_eviction(self, model_key: str, adapter: str) -> None:
        at.increment(self._model_counters(model_key).adapter_evictions, adapter, self._max_counted_adapters)

    def record_handoff(
        self, model_key: str, outcome: str, reason: str, local_prefill_tokens: float | None = None
    ) -> None:
        """Counts a hand-off: `done`, `bypassed` or `failed`; `reason` is one word.

        local_prefill_tokens: estimated prompt tokens that no prefill instance computed.
        """
        series = self._model_counters(model_key)
        at.increment_pair(series.handoffs, outcome, reason, self._max_label_values)
        if local_prefill_tokens is not None:
            series.ints[at.LOCAL_PREFILLS] += 1
            series.ints[at.LOCAL_PREFILL_TOKENS] += int(local_prefill_tokens)

    def record_prefill(self, model_key: str, instance_id: str, seconds: float, result: str) -> None:
        """Counts an attempt at a prefill instance: `ok`, or one word for the failure."""
        series = self._model_counters(model_key)
        at.increment(series.prefill_legs, result, self._max_label_values)
        instance = self._instance_counters(series, instance_id)
        instance.ints[at.I_ROUTED] += 1
        instance.ints[at.I_FINISHED] += 1
        if result != OK:
            instance.ints[at.I_ERRORS] += 1
            return
        series.ints[at.PREFILL + seconds_bucket(seconds)] += 1
        series.sums[at.PREFILL_SUM] += seconds

    def record_first_token(
        self, model_key: str, instance_id: str, seconds: float, limit_seconds: float | None = None
    ) -> None:
        """Counts a first token that left `seconds` after the request was received.

        limit_seconds: its TTFT target; None if there is none.
        """
        series = self._model_counters(model_key)
        series.observe_first_token(seconds)
        self._instance_counters(series, instance_id).observe_first_token(seconds, limit_seconds)

    def record_inter_token(self, model_key: str, instance_id: str, seconds: float, now: float = _NOT_READ) -> None:
        """Counts one further chunk of a stream, `seconds` after the one before. The most frequent
        call.
        """
        series = self.models.get(model_key) or self._model_counters(model_key)
        second = int(self._now() if now < 0.0 else now)
        if second != series.current_second:
            series.start_second(second)
        series.observe_gap(seconds)
        instance = series.instances.get(instance_id)
        if instance is not None:
            instance.observe_gap(seconds)

    def record_finished(self, outcome: RequestOutcome, now: float = _NOT_READ) -> None:
        """Counts the end of a routed request."""
        series = self._model_counters(outcome.model_key, now)
        computed = series.count_finished(outcome, self._max_label_values)
        if outcome.instance_id is not None:
            instance = self._instance_counters(series, outcome.instance_id)
            output = outcome.output_tokens or 0
            is_whole = outcome.status == 200 and outcome.error is None and not outcome.client_disconnected
            instance.count_finished(computed, output, is_answer=is_whole and output > 0)
            if outcome.within_itl is not None:
                instance.ints[at.I_JUDGED_ITL] += 1
                instance.ints[at.I_WITHIN_ITL] += outcome.within_itl
            if (
                not outcome.client_disconnected
                and (outcome.status >= 500 or outcome.error is not None)
                and not is_client_fault(outcome)
            ):
                instance.ints[at.I_ERRORS] += 1

    def render(self, fleet: Fleet, loads: Mapping[str, LoadView], now: float) -> bytes:
        return b"".join(self.render_chunks(fleet, loads, now))

    def render_chunks(
        self, fleet: Fleet, loads: Mapping[str, LoadView], now: float, *, shows_tenants: bool = True
    ) -> Iterator[bytes]:
        """Yields all metrics as Prometheus text, in chunks of bounded work.

        shows_tenants: with the series of tenants.

        Why: a scrape must not block the event loop.
        """
        from fairlead_gateway.telemetry.adapter_series import AdapterSeries
        from fairlead_gateway.telemetry.metric_sources import Scrape
        from fairlead_gateway.telemetry.metrics import render_metrics  # only the supervisor renders

        self.remove_departed(fleet, now)
        adapters = self.adapter_series or AdapterSeries(self._max_adapters)
        adapters.update({key: series.adapter_tables() for key, series in self.models.items()}, now)
        return render_metrics(
            Scrape(
                models=self.models,
                fleet=fleet,
                loads=loads,
                lag=self.loop_lag,
                now=now,
                uptime_seconds=now - self.started_at,
                process_values={**self.non_model_counters, **self.peer_values},
                queued=self.queued,
                ejection_seconds=self.ejection_seconds,
                index_status=self.index_status,
                tenant_values=self.tenant_values if shows_tenants else {},
                adapters=adapters,
            )
        )

    def _model_counters(self, key: str, now: float = _NOT_READ) -> ModelCounters:
        series = self.models.get(key)
        if series is None:
            departed = min(len(self._left_at), self._max_models)
            if len(self.models) - departed >= self._max_models and key not in (OTHER, UNKNOWN):
                return self._model_counters(OTHER, now)
            series = self.models[key] = ModelCounters()
        second = int(self._now() if now < 0.0 else now)
        if second > series.current_second:  # a request's time may be earlier than that of the last event
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
        """Drops models and instances that left the fleet more than `METRIC_RETENTION_SECONDS` ago.

        Why: models come and go with new names, and only so many have counters of their own.
        """
        for key, series in list(self.models.items()):
            if key in fleet.models or key in (OTHER, UNKNOWN):
                self._left_at.pop(key, None)
            elif now - self._left_at.setdefault(key, now) > self._departed_seconds:
                del self.models[key], self._left_at[key]
                self._known_adapters.pop(key, None)
                continue
            if series.adapter_requests and key in fleet.models:
                adapters = fleet.models[key].adapters
                if self._known_adapters.get(key) is not adapters:
                    self._known_adapters[key] = adapters
                    series.retain_adapters(frozenset([adapter.name for adapter in adapters]))
            present = {instance.id for instance in fleet.instances.get(key, ())}
            for instance_id, instance in list(series.instances.items()):
                if instance_id in present:
                    instance.last_seen = now
                elif now - instance.last_seen > self._departed_seconds:
                    del series.instances[instance_id]

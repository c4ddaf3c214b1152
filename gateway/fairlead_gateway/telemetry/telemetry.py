"""The gateway's counters, as the request's way calls them: each method adds to integer lists and returns.

Nothing here allocates label objects, takes a lock or does I/O; it belongs to one event loop. A request ends in exactly one
call of ``rejected`` (it never reached an engine) or ``finished`` (everything else), after one call of ``received``.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from fairlead.clock import Clock
from fairlead.decision import Decision
from fairlead.fleet import Fleet
from fairlead.lag import LoopLag
from fairlead.limits import Limits
from fairlead_gateway.telemetry import series as at
from fairlead_gateway.telemetry.histogram import SECONDS_BOUNDS, bucket
from fairlead_gateway.telemetry.index import Looks
from fairlead_gateway.telemetry.load import Load, Shared
from fairlead_gateway.telemetry.outcome import Outcome
from fairlead_gateway.telemetry.series import InstanceSeries, ModelSeries

if TYPE_CHECKING:
    from fairlead_gateway.telemetry import exposition

OTHER: Final = "other"
UNKNOWN: Final = "unknown"
OK: Final = "ok"
HOME_RULES: Final = frozenset({"affinity", "session", "only-one"})
"""Rules that choose a home by their nature; the others say it in the decision's inputs."""


class Telemetry:
    """Counts per model and per instance. Models beyond the limit share one series called ``other``."""

    def __init__(self, clock: Clock, limits: Limits | None = None, lag: LoopLag | None = None) -> None:
        self._now = clock.now
        limits = limits or Limits()
        self._most_models = limits.metric_models
        self._most_instances = limits.metric_instances
        self._label_values = limits.metric_label_values
        self._gone_seconds = limits.metric_gone_seconds
        self.lag = lag
        self.shared: Shared | None = None
        self.standing: Callable[[str], tuple[str, str]] | None = None
        self.started = clock.now()
        self.models: dict[str, ModelSeries] = {}
        self.own: dict[str, int] = {}  # what belongs to no model, by the metric's name without its prefix
        self.waiting: Mapping[str, int] = {}  # requests held now, by model
        self.index: Looks = {}  # the same of the index
        self.peers: dict[str, float] = {}  # the same of other gateways, known to the helper alone

    def received(self, model_key: str, prompt_tokens: float = 0.0) -> None:
        """A request for a model that exists has been read whole; ``prompt_tokens`` as estimated by then."""
        self._series(model_key).came(int(prompt_tokens))

    def left_early(self, model_key: str) -> None:
        """A client left before any engine was asked."""
        self._series(model_key).ints[at.ABANDONED] += 1

    def rejected(self, model_key: str | None, status: int, kind: str) -> None:
        """A request was answered by the gateway itself; ``kind`` is one word of a closed list (``unknown-model``)."""
        series = self._series(model_key or UNKNOWN)
        series.ints[at.REJECTED] += 1
        if status >= 500:
            series.ints[at.ERRORS] += 1
        series.told(status)
        key = (status, kind)
        if key not in series.by_kind and len(series.by_kind) >= self._label_values:
            key = (status, OTHER)
        series.by_kind[key] = series.by_kind.get(key, 0) + 1

    def routed(self, model_key: str, instance_id: str, decision: Decision) -> None:
        """An instance was chosen; also called for every retry."""
        series = self._series(model_key)
        series.went(decision.rule, on_home(decision), self._label_values)
        self._instance(series, instance_id).came()

    def retried(self, model_key: str, instance_id: str, why: str) -> None:
        """The attempt on ``instance_id`` failed before its first byte and another follows; ``why`` is one word."""
        series = self._series(model_key)
        series.ints[at.RETRIES] += 1
        at.count(series.retries_by_reason, why, self._label_values)
        self._instance(series, instance_id).ints[at.I_RETRIED_AWAY] += 1

    def ejected(self, model_key: str, instance_id: str, why: str) -> None:
        """The instance sits out for a while; ``why`` is the last fault in one word."""
        series = self._series(model_key)
        at.count(series.ejections_by_reason, why, self._label_values)
        self._instance(series, instance_id).ints[at.I_EJECTED] += 1

    def continued(self, model_key: str, how: str) -> None:
        """Another engine was asked for the rest of a stream that broke: ``whole``, or ``broken`` again."""
        at.count(self._series(model_key).continued, how, self._label_values)

    def held(self, model_key: str, rule: str) -> None:
        """A request is held no longer, or was not let wait; ``rule`` is one word of a closed list."""
        at.count(self._series(model_key).held, rule, self._label_values)

    def handoff(self, model_key: str, outcome: str, reason: str, kept_tokens: float | None = None) -> None:
        """What became of one prompt's way from prefill to decode: ``done``, ``bypassed`` or ``failed``; ``reason`` is one word.
        ``kept_tokens``: its estimated length, where no prefill engine has computed it."""
        series = self._series(model_key)
        at.count_pair(series.handoffs, outcome, reason, self._label_values)
        if kept_tokens is not None:
            series.ints[at.KEPT_PROMPTS] += 1
            series.ints[at.KEPT_TOKENS] += int(kept_tokens)

    def prefilled(self, model_key: str, instance_id: str, seconds: float, result: str) -> None:
        """A prefill engine was asked, and ended in ``seconds`` with ``ok`` or one word for what went wrong."""
        series = self._series(model_key)
        at.count(series.prefill_legs, result, self._label_values)
        instance = self._instance(series, instance_id)
        instance.ints[at.I_ROUTED] += 1
        instance.ints[at.I_FINISHED] += 1
        if result != OK:
            instance.ints[at.I_ERRORS] += 1
            return
        series.ints[at.PREFILL + bucket(SECONDS_BOUNDS, seconds)] += 1
        series.sums[at.PREFILL_SUM] += seconds

    def first_token(self, model_key: str, instance_id: str, seconds: float, limit_seconds: float | None = None) -> None:
        """The first token left for the client ``seconds`` after the request was read; ``limit_seconds`` is its objective."""
        series = self._series(model_key)
        series.ints[at.TTFT + bucket(SECONDS_BOUNDS, seconds)] += 1
        series.sums[at.TTFT_SUM] += seconds
        instance = self._instance(series, instance_id)
        instance.ints[at.I_FIRST] += 1
        instance.sums[at.I_TTFT_SUM] += seconds
        if limit_seconds is not None:
            instance.ints[at.I_JUDGED_TTFT] += 1
            instance.ints[at.I_WITHIN_TTFT] += seconds <= limit_seconds

    def inter_token(self, model_key: str, instance_id: str, seconds: float) -> None:
        """One more piece of a stream, ``seconds`` after the piece before it. The hottest call of all."""
        series = self.models.get(model_key) or self._series(model_key)
        second = int(self._now())
        if second != series.second:
            series.roll(second)
        series.gap(seconds)
        instance = series.instances.get(instance_id)
        if instance is not None:
            instance.gap(seconds)

    def finished(self, outcome: Outcome) -> None:
        """A request that was routed has ended, well or badly."""
        series = self._series(outcome.model_key)
        computed = series.ended(outcome, self._label_values)
        if outcome.instance_id is not None:
            instance = self._instance(series, outcome.instance_id)
            instance.ended(computed, outcome.output_tokens or 0)
            if outcome.within_itl is not None:
                instance.ints[at.I_JUDGED_ITL] += 1
                instance.ints[at.I_WITHIN_ITL] += outcome.within_itl
            if not outcome.client_gone and (outcome.status >= 500 or outcome.error is not None):
                instance.ints[at.I_ERRORS] += 1

    def render(self, fleet: Fleet, loads: Mapping[str, Load], now: float) -> bytes:
        """Everything as Prometheus text (version 0.0.4)."""
        return b"".join(self.render_parts(fleet, loads, now))

    def render_parts(self, fleet: Fleet, loads: Mapping[str, Load], now: float) -> "exposition.Parts":
        """The same text in pieces of bounded work, so that a scrape of many models need not hold the loop."""
        from fairlead_gateway.telemetry import exposition  # workers count, and show nothing

        self.forget(fleet, now)
        return exposition.parts(
            self.models,
            fleet,
            loads,
            lag=self.lag,
            shared=self.shared,
            now=now,
            uptime_seconds=now - self.started,
            own={**self.own, **self.peers},
            waiting=self.waiting,
            index=self.index,
        )

    def _series(self, key: str) -> ModelSeries:
        series = self.models.get(key)
        if series is None:
            if len(self.models) >= self._most_models and key not in (OTHER, UNKNOWN):
                return self._series(OTHER)
            series = self.models[key] = ModelSeries()
        second = int(self._now())
        if second != series.second:
            series.roll(second)
        return series

    def _instance(self, series: ModelSeries, instance_id: str) -> InstanceSeries:
        instance = series.instances.get(instance_id)
        if instance is None:
            if len(series.instances) >= self._most_instances:
                del series.instances[next(iter(series.instances))]
            instance = series.instances[instance_id] = InstanceSeries(self._now())
        if series.second != instance.second:
            instance.roll(series.second)
        return instance

    def forget(self, fleet: Fleet, now: float) -> None:
        """Drop instances that left the fleet a while ago: pods come and go, their counters must not pile up."""
        for key, series in self.models.items():
            present = {instance.id for instance in fleet.instances.get(key, ())}
            for instance_id, instance in list(series.instances.items()):
                if instance_id in present:
                    instance.seen = now
                elif now - instance.seen > self._gone_seconds:
                    del series.instances[instance_id]


def on_home(decision: Decision) -> bool:
    """Whether the chosen instance is one of the request's two homes."""
    return decision.rule in HOME_RULES if decision.home is None else decision.home

"""Registry: every preset by name, with its builder and the parameters that a benchmark may search.

A name stands for a controller with its metric, since that choice decides most. The first parameter
of each is the one that operators tune. Its grid is geometric and wide enough for both pools of the
study (docs/concepts/autoscaling-presets.md), since none of these controllers knows the capacity of an
engine. The ``default`` is the value that a sensible operator would set once for all scenarios: the
study's best compromise for each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fairlead.errors import BadInput
from fairlead_autoscaler.core.types import ModelSpec
from fairlead_sim.autoscalers.apa import ApaSettings, apa
from fairlead_sim.autoscalers.controller import Controller
from fairlead_sim.autoscalers.dynamo import DynamoPlanner, DynamoSettings
from fairlead_sim.autoscalers.hpa import HpaSettings, hpa
from fairlead_sim.autoscalers.keda import KedaSettings, keda
from fairlead_sim.autoscalers.kpa import KpaSettings, kpa
from fairlead_sim.autoscalers.metrics import Metric
from fairlead_sim.autoscalers.wva import WvaController, WvaSettings


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a preset.

    default: the value where nothing is searched.
    grid: the values that a search tries, ascending.
    """

    name: str
    unit: str
    default: float
    grid: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Preset:
    """A named preset: the parameters of a public autoscaler, and the builder of its controller.

    build: returns a new controller from a model and the values of all parameters.
    """

    name: str
    summary: str
    parameters: tuple[Parameter, ...]
    build: Callable[[ModelSpec, Mapping[str, float]], Controller]


_KV = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_REQUESTS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 14.0, 17.0, 20.0, 25.0, 30.0, 40.0, 60.0, 100.0)
_WAITING = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0)
_RATES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)

_GRIDS = {Metric.KV: _KV, Metric.CONCURRENCY: _REQUESTS, Metric.WAITING: _WAITING, Metric.REQUEST_RATE: _RATES}
_FIXED = {Metric.KV: 0.5, Metric.CONCURRENCY: 14.0, Metric.WAITING: 1.0, Metric.REQUEST_RATE: 0.7}
_UNITS = {
    Metric.KV: "share of an engine's KV cache",
    Metric.CONCURRENCY: "requests in an engine",
    Metric.WAITING: "requests waiting in an engine",
    Metric.REQUEST_RATE: "requests a second of an engine",
}
_DELAY = Parameter("down_delay_seconds", "s", 0.0, (0.0, 60.0, 120.0, 300.0, 600.0))
_DELAYED = Parameter("down_delay_seconds", "s", 300.0, _DELAY.grid)


def _target(name: str, metric: Metric, fixed: float | None = None) -> Parameter:
    return Parameter(name, _UNITS[metric], _FIXED[metric] if fixed is None else fixed, _GRIDS[metric])


def _hpa(metric: Metric) -> Preset:
    def build(model: ModelSpec, values: Mapping[str, float]) -> Controller:
        settings = HpaSettings(
            target=values["target"],
            metric=metric,
            tolerance=values["tolerance"],
            down_window_seconds=values["down_window_seconds"],
        )
        return hpa(model, settings)

    knobs = (
        _target("target", metric),
        Parameter("tolerance", "share", 0.1, (0.02, 0.05, 0.1, 0.2)),
        Parameter("down_window_seconds", "s", 300.0, (60.0, 120.0, 300.0, 600.0, 900.0)),
    )
    return Preset(f"hpa-{metric}", "Kubernetes' horizontal pod autoscaler", knobs, build)


def _kpa(name: str, metric: Metric, fixed: float, delay: Parameter) -> Preset:
    def build(model: ModelSpec, values: Mapping[str, float]) -> Controller:
        settings = KpaSettings(
            target=values["target"],
            metric=metric,
            stable_window_seconds=round(values["stable_window_seconds"]),
            panic_window_seconds=max(1, round(values["stable_window_seconds"] / 10)),
            panic_threshold=values["panic_threshold"],
            down_delay_seconds=values["down_delay_seconds"],
        )
        return kpa(model, settings)

    knobs = (
        _target("target", metric, fixed),
        delay,
        Parameter("stable_window_seconds", "s", 60.0, (30.0, 60.0, 120.0, 300.0)),
        Parameter("panic_threshold", "ratio", 2.0, (1.5, 2.0, 3.0, 10.0)),
    )
    return Preset(name, "Knative's pod autoscaler", knobs, build)


def _keda(metric: Metric) -> Preset:
    def build(model: ModelSpec, values: Mapping[str, float]) -> Controller:
        settings = KedaSettings(
            threshold=values["threshold"], metric=metric, cooldown_seconds=values["cooldown_seconds"]
        )
        return keda(model, settings)

    knobs = (_target("threshold", metric), Parameter("cooldown_seconds", "s", 300.0, (60.0, 300.0, 600.0, 1_200.0)))
    return Preset(f"keda-{metric}", "KEDA with one Prometheus threshold", knobs, build)


def _apa(metric: Metric, *, fixed: bool) -> Preset:
    def build(model: ModelSpec, values: Mapping[str, float]) -> Controller:
        settings = ApaSettings(
            target=values["target"],
            metric=metric,
            fixed=fixed,
            down_cooldown_seconds=values["down_cooldown_seconds"],
            window_seconds=values["window_seconds"],
        )
        return apa(model, settings)

    knobs = (
        _target("target", metric),
        Parameter("down_cooldown_seconds", "s", 300.0, (60.0, 300.0, 600.0)),
        Parameter("window_seconds", "s", 180.0, (30.0, 60.0, 180.0)),
    )
    name = f"apa-{metric}-fixed" if fixed else f"apa-{metric}"
    return Preset(name, "AIBrix' APA, " + ("its cool-down mended" if fixed else "as shipped"), knobs, build)


def _wva(model: ModelSpec, values: Mapping[str, float]) -> Controller:
    settings = WvaSettings(
        kv_threshold=values["kv_threshold"],
        queue_threshold=values["queue_threshold"],
        kv_spare_trigger=values["kv_spare_trigger"],
        queue_spare_trigger=values["queue_spare_trigger"],
        period_seconds=values["period_seconds"],
    )
    return WvaController(model, settings)


def _dynamo(model: ModelSpec, values: Mapping[str, float]) -> Controller:
    return DynamoPlanner(
        model, DynamoSettings(headroom=values["headroom"], interval_seconds=values["interval_seconds"])
    )


_ALL = (
    *(_hpa(metric) for metric in Metric),
    _kpa("kpa-concurrency", Metric.CONCURRENCY, 15.0, _DELAY),
    _kpa("kpa-concurrency-delayed", Metric.CONCURRENCY, 20.0, _DELAYED),
    _kpa("kpa-request-rate", Metric.REQUEST_RATE, 0.7, _DELAY),
    *(_keda(metric) for metric in (Metric.CONCURRENCY, Metric.WAITING, Metric.REQUEST_RATE)),
    *(_apa(metric, fixed=fixed) for metric in (Metric.KV, Metric.CONCURRENCY) for fixed in (False, True)),
    Preset(
        "wva-saturation",
        "llm-d's workload variant autoscaler, by saturation",
        (
            Parameter("kv_spare_trigger", _UNITS[Metric.KV], 0.1, (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)),
            Parameter("kv_threshold", _UNITS[Metric.KV], 0.8, (0.5, 0.6, 0.7, 0.8, 0.9)),
            Parameter("queue_threshold", _UNITS[Metric.WAITING], 5.0, (2.0, 5.0, 10.0, 20.0)),
            Parameter("queue_spare_trigger", _UNITS[Metric.WAITING], 3.0, (1.0, 3.0, 4.5)),
            Parameter("period_seconds", "s", 60.0, (15.0, 30.0, 60.0)),
        ),
        _wva,
    ),
    Preset(
        "dynamo",
        "Dynamo's SLA planner, by throughput",
        (
            Parameter("headroom", "ratio", 1.5, (0.8, 1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)),
            Parameter("interval_seconds", "s", 180.0, (30.0, 60.0, 120.0, 180.0)),
        ),
        _dynamo,
    ),
)

PRESETS: Mapping[str, Preset] = {preset.name: preset for preset in _ALL}


def build(name: str, model: ModelSpec, **values: float) -> Controller:
    """Returns a new controller of a preset; parameters that are not given have their default.

    Raises BadInput for an unknown name or parameter, and for a value that is neither positive nor
    in the grid.
    """
    if name not in PRESETS:
        raise BadInput(f"no preset is called {name!r}", field="preset", hint=f"known: {', '.join(sorted(PRESETS))}")
    preset = PRESETS[name]
    known = {knob.name: knob.default for knob in preset.parameters}
    if unknown := values.keys() - known.keys():
        raise BadInput(
            f"{name} has no parameter {', '.join(sorted(unknown))}",
            field="preset",
            hint=f"parameters: {', '.join(known)}",
        )
    for knob in preset.parameters:
        value = values.get(knob.name, knob.default)
        if not (value > 0.0 or (value == 0.0 and 0.0 in knob.grid)):
            raise BadInput(f"{name}: {knob.name} must be positive, got {value}", field="preset")
    return preset.build(model, {**known, **values})

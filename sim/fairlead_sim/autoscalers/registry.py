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
from fairlead_sim.autoscalers.controller import Controller
from fairlead_sim.autoscalers.hpa import HpaSettings, hpa
from fairlead_sim.autoscalers.kpa import KpaSettings, kpa
from fairlead_sim.autoscalers.metrics import Metric

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


_DELAY = Parameter("down_delay_seconds", "s", 0.0, (0.0, 60.0, 120.0, 300.0, 600.0))
_DELAYED = Parameter("down_delay_seconds", "s", 300.0, _DELAY.grid)


def _target(metric: Metric, fixed: float | None = None) -> Parameter:
    return Parameter("target", _UNITS[metric], _FIXED[metric] if fixed is None else fixed, _GRIDS[metric])


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
        _target(metric),
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
        _target(metric, fixed),
        delay,
        Parameter("stable_window_seconds", "s", 60.0, (30.0, 60.0, 120.0, 300.0)),
        Parameter("panic_threshold", "ratio", 2.0, (1.5, 2.0, 3.0, 10.0)),
    )
    return Preset(name, "Knative's pod autoscaler", knobs, build)


_ALL = (
    *(_hpa(metric) for metric in Metric),
    _kpa("kpa-concurrency", Metric.CONCURRENCY, 15.0, _DELAY),
    _kpa("kpa-concurrency-delayed", Metric.CONCURRENCY, 20.0, _DELAYED),
    _kpa("kpa-request-rate", Metric.REQUEST_RATE, 0.7, _DELAY),
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

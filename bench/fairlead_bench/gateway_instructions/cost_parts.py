"""Costs of a callgrind dump: events by metric, and instructions by part of the request path.

mypyc names the C function of a Python function `CPyDef_<end of its module>___<name>`. An
instruction belongs to the part of the nearest such function among its callers: a dict lookup to the
module that looks up.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

METRICS: Mapping[str, tuple[str, ...]] = {
    "instructions": ("Ir",),
    "branches": ("Bc", "Bi"),
    "mispredicted branches": ("Bcm", "Bim"),
    "first-level cache misses": ("I1mr", "D1mr", "D1mw"),
    "last-level cache misses": ("ILmr", "DLmr", "DLmw"),
}
"""Metric → the events of callgrind that it adds."""
EVENT_LOOP = "event loop"
"""The part of instructions without a compiled function among their callers."""
OTHER = "request life cycle"
PARTS: Mapping[str, tuple[str, ...]] = {
    "prefix": ("fairlead_gateway.routing.prefix.",),
    "parse": (
        "fairlead_gateway.http.request_",
        "fairlead_gateway.worker.openai.",
        "fairlead_gateway.worker.api_keys",
    ),
    "ledger": ("fairlead_gateway.routing.load.",),
    "route": (
        "fairlead_gateway.routing.",
        "fairlead_gateway.worker.dispatch.router_registry",
        "fairlead_gateway.worker.disaggregation.",
        "fairlead.decision",
        "fairlead.engine_profile",
    ),
    "admission": ("fairlead_gateway.admission.", "fairlead_gateway.worker.dispatch."),
    "encode": ("fairlead_gateway.worker.upstream.request_encoder", "fairlead_gateway.http.listener"),
    "relay": ("fairlead_gateway.worker.upstream.", "fairlead_gateway.worker.proxy.relay"),
    "settle": ("fairlead_gateway.worker.resilience.", "fairlead_gateway.worker.proxy.request_recorder"),
    "telemetry": ("fairlead_gateway.telemetry.", "fairlead_gateway.worker.reporting.", "fairlead.request_shapes"),
    "client connection": ("fairlead_gateway.http.",),
}
"""Part → beginnings of its modules' names. The first match counts."""
_COMPILED = "CPyDef_"
_NAMED = re.compile(r"c?fn=(\(\d+\))(?: (.*))?")
_COST_START = frozenset("0123456789+-*")

Cost = dict[str, float]
"""Events by metric, and instructions by compiled function."""


def cost_of(dump: Iterable[str]) -> Cost:
    """Returns the cost that the lines of a dump hold. Raises ValueError for anything else."""
    events: list[str] = []
    totals: list[int] = []
    names: dict[str, str] = {}
    by_function: Counter[str] = Counter()
    function, is_call = EVENT_LOOP, False
    for line in dump:
        if line[0] in _COST_START:
            if not is_call:  # else the cost of the callee
                fields = line.split(maxsplit=2)
                by_function[function] += int(fields[1]) if len(fields) > 1 else 0
            is_call = False
        elif line.startswith(("fn=", "cfn=")):
            found = _NAMED.match(line)
            if found is not None:
                if found[2] is not None:
                    names[found[1]] = compiled_function(found[2].rstrip())
                if line[0] == "f":
                    function = names.get(found[1], EVENT_LOOP)
        elif line.startswith("calls="):
            is_call = True
        elif line.startswith("events: "):
            events = line.split()[1:]
        elif line.startswith(("summary: ", "totals: ")):
            totals = [int(word) for word in line.split()[1:]]
    if not events or not totals:
        raise ValueError("a callgrind dump without a summary")
    by_event = dict(zip(events, totals, strict=False))
    cost: Cost = {metric: sum(by_event.get(name, 0) for name in METRICS[metric]) for metric in METRICS}
    return cost | by_function


def compiled_function(chain: str) -> str:
    """Returns the first compiled function of a chain of callers; `EVENT_LOOP` without one."""
    return next((name for name in chain.split("'") if name.startswith(_COMPILED)), EVENT_LOOP)


def compiled_module_names(copy: Path) -> list[str]:
    """Returns the names of the modules that a compiled copy holds as extensions."""
    paths = (path.relative_to(copy) for path in copy.rglob("*.so"))
    return [".".join(path.parts)[: -len("".join(path.suffixes))] for path in paths if "__mypyc" not in path.name]


class PartTable:
    """The part of each compiled function, for the modules of one compiled copy."""

    def __init__(self, modules: Iterable[str]) -> None:
        self._modules = list(modules)
        self._known: dict[str, str] = {EVENT_LOOP: EVENT_LOOP}

    def by_part(self, cost: Cost) -> Cost:
        """Returns a cost with its functions added up by part."""
        added: defaultdict[str, float] = defaultdict(float)
        for name, value in cost.items():
            added[name if name in METRICS else self.part_of(name)] += value
        return dict(added)

    def part_of(self, function: str) -> str:
        """Returns the part of a compiled function."""
        part = self._known.get(function)
        if part is None:
            module = self._module_of(function.removeprefix(_COMPILED))
            part = self._known[function] = part_of_module(module)
        return part

    def _module_of(self, name: str) -> str:
        """Returns the module of `end_of_module___function`; mypyc takes the shortest unique end."""
        words = name.split("___")
        for count in range(1, len(words)):
            end = ".".join(words[:count])
            found = [module for module in self._modules if module == end or module.endswith(f".{end}")]
            if len(found) == 1:
                return found[0]
        return ""


def part_of_module(module: str) -> str:
    """Returns the part that a module belongs to."""
    return next((part for part, starts in PARTS.items() if module.startswith(starts)), OTHER)

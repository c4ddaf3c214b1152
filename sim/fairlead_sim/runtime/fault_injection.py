"""Faults on demand, from the command line or at run time through ``/sim/faults``.

A fault has a kind and limits. These are the ``share`` of requests that it hits (seeded), a maximum
``count``, and the ``seconds`` for which it is armed. ``refuse`` and ``hang`` act on new connections
and on requests of open ones. ``slow`` and ``core-hung`` act on all steps, ``core-dead`` and ``die``
when they are armed. Other kinds act on requests that generate, or on all with ``everywhere``.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from fairlead.errors import BadInput

FAULT_KINDS = {
    "refuse": "drop every connection as it comes in",
    "hang": "take connections and requests and never answer",
    "slow": "stretch every step (factor)",
    "cut": "break streams off behind some tokens (after)",
    "garbage": "answer with bytes that are no HTTP",
    "content-type": "answer 200 with a web page",
    "error": "answer with an error (status, 500 by default)",
    "core-hung": "the engine core hangs: /health and /metrics answer, and no token comes",
    "core-dead": "the engine core dies: errors in every answer, then the server leaves",
    "die": "the server leaves without a word",
}
_CONNECTION_KINDS = frozenset({"refuse", "hang"})
_STEP_KINDS = frozenset({"slow", "core-hung"})
_IMMEDIATE_KINDS = frozenset({"core-dead", "die"})


@dataclass(slots=True)
class Fault:
    kind: str
    share: float = 1.0
    count: int | None = None
    seconds: float | None = None
    factor: float = 3.0
    after: int = 5
    status: int = 500
    everywhere: bool = False
    hits: int = 0


def parse_fault(text: str) -> Fault:
    """Returns the fault of ``KIND[,name=value]…``. Raises BadInput."""
    kind, *rest = text.split(",")
    fields: dict[str, Any] = {"kind": kind}
    for part in rest:
        name, equals, value = part.partition("=")
        if not equals:
            raise BadInput(f"{part!r} is not name=value", field="fault")
        fields[name] = value
    return fault_from_mapping(fields)


def fault_from_mapping(fields: Any) -> Fault:
    """Returns a fault from JSON or parsed text. Raises BadInput with the field's name."""
    if not isinstance(fields, dict) or fields.get("kind") not in FAULT_KINDS:
        raise BadInput(
            "the kind of the fault is missing or unknown", field="kind", hint=f"known: {', '.join(sorted(FAULT_KINDS))}"
        )
    readers: dict[str, Callable[[Any], Any]] = {
        "kind": str,
        "share": float,
        "count": int,
        "seconds": float,
        "factor": float,
        "after": int,
        "status": int,
        "everywhere": lambda value: value in (True, "true", "1"),
    }
    values = {}
    for name, value in fields.items():
        if name not in readers:
            raise BadInput(f"a fault has no field {name!r}", field=name, hint=f"known: {', '.join(readers)}")
        try:
            values[name] = readers[name](value)
        except (TypeError, ValueError) as error:
            raise BadInput(f"{name} cannot be {value!r}", field=name) from error
    fault = Fault(**values)
    if fault.factor <= 0:
        raise BadInput("the factor of a fault must be positive", field="factor")
    if not 400 <= fault.status <= 599:
        raise BadInput("the status of a fault must be from 400 to 599", field="status")
    return fault


class FaultInjector:
    """The armed faults of one engine.

    - set_slowdown: gets the factor on the duration of steps.
    - set_core_hung: gets whether the core begins and ends no step.
    - exit_engine: ends the engine.
    """

    def __init__(
        self,
        random: Random,
        *,
        schedule: Callable[[float, Callable[[], None]], object],
        set_slowdown: Callable[[float], None],
        set_core_hung: Callable[[bool], None],
        kill_core: Callable[[], None],
        exit_engine: Callable[[], None],
    ) -> None:
        self._random = random
        self._schedule = schedule
        self._set_slowdown = set_slowdown
        self._set_core_hung = set_core_hung
        self._kill_core = kill_core
        self._exit_engine = exit_engine
        self._armed: list[Fault] = []

    def arm(self, fault: Fault) -> None:
        """Arms a fault; one that ends the engine acts now."""
        if fault.kind in _IMMEDIATE_KINDS:
            (self._exit_engine if fault.kind == "die" else self._kill_core)()
            return
        self._armed.append(fault)
        if fault.seconds is not None:
            self._schedule(fault.seconds, lambda: self._disarm(fault))
        self._update_steps()

    def clear(self) -> None:
        self._armed.clear()
        self._update_steps()

    def armed_faults(self) -> list[dict[str, Any]]:
        return [asdict(fault) for fault in self._armed]

    def pick_for_connection(self) -> str | None:
        """Returns ``refuse`` or ``hang`` for a new connection, or None."""
        fault = self._pick(lambda each: each.kind in _CONNECTION_KINDS)
        return None if fault is None else fault.kind

    def pick_for_request(self, *, generates: bool) -> Fault | None:
        """Returns the fault that hits this request, or None."""
        return self._pick(
            lambda each: (
                each.kind not in _STEP_KINDS and (generates or each.everywhere or each.kind in _CONNECTION_KINDS)
            )
        )

    def _pick(self, fits: Callable[[Fault], bool]) -> Fault | None:
        for fault in self._armed:
            if not fits(fault) or (fault.count is not None and fault.hits >= fault.count):
                continue
            if fault.share >= 1.0 or self._random.random() < fault.share:
                fault.hits += 1
                return fault
        return None

    def _disarm(self, fault: Fault) -> None:
        self._armed = [armed for armed in self._armed if armed is not fault]
        self._update_steps()

    def _update_steps(self) -> None:
        factor = 1.0
        for fault in self._armed:
            if fault.kind == "slow":
                factor *= fault.factor
        self._set_slowdown(factor)
        self._set_core_hung(any(fault.kind == "core-hung" for fault in self._armed))


def exit_process() -> None:
    os._exit(70)

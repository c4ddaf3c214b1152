"""The interfaces for outside tools: ``router(info)`` and ``autoscaler(info)``, or JSON lines.

The adapters translate types; every choice is made by the class that the gateway or the autoscaler
runs. ``docs/reference/seams.md`` has the protocol, with the hints that the cores do not use. The
import of this module has no side effect.

    python -m fairlead_sim.seams router [--preset NAME] [--seed N]
    python -m fairlead_sim.seams autoscaler
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TextIO

from fairlead.errors import BadInput, FairleadError
from fairlead_autoscaler.core import MixRequest, MixResult, ScalingCore
from fairlead_gateway.routing import PRESETS, QUEUEING_PRESETS
from fairlead_sim.adapters.autoscaler_adapter import AutoscalerAdapter, parse_model, parse_settings
from fairlead_sim.adapters.router_adapter import LateBindingRouterAdapter, RouterAdapter

Operation = Callable[[str, Mapping[str, Any]], str | None]
"""Runs an operation with its message; returns the reply line or None."""

OPERATIONS_WITHOUT_REPLY: Final = frozenset({"first_token", "complete", "endpoints"})
"""Operations that get no reply line, not even for an error."""

_INPUT_ERRORS: Final = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


def router(info: Any, *, preset: str = "dual-hash", seed: int = 0) -> "RouterAdapter":
    """Returns a new routing core for ``info``, a mapping or an object with these attributes.

    The core of a preset with late binding also has ``order_key`` and ``rebalance``.
    """
    return (LateBindingRouterAdapter if preset in QUEUEING_PRESETS else RouterAdapter)(info, preset=preset, seed=seed)


def autoscaler(info: Any, **settings: Any) -> AutoscalerAdapter:
    """Returns a new scaling core for ``info``. Raises BadInput for impossible values.

    settings: fields of ``fairlead_autoscaler.core.ScalingSettings``.
    """
    model = parse_model(info)
    return AutoscalerAdapter(ScalingCore(model, parse_settings(settings)), model, _mix_solver)


def _mix_solver() -> Callable[[MixRequest], MixResult]:
    """Returns the solver of accelerator mixes. Only tools that report shapes need its library."""
    from fairlead_autoscaler.mix import simulation_solver

    return simulation_solver()


class JsonLinesSession:
    """A seam as JSON lines, one operation per line.

    begin: takes the message of a ``reset`` and returns what runs the operations after it.
    """

    def __init__(self, begin: Callable[[Mapping[str, Any]], Operation]) -> None:
        self._begin = begin
        self._operate: Operation | None = None

    def reply(self, line: str) -> tuple[str | None, str | None]:
        """Returns the reply line and the error of one operation; each may be None.

        A wrong line gets the reply ``{"error": …}`` if its operation has a reply, and has no other
        effect.
        """
        operation = None
        try:
            message = _message(line)
            operation = message.get("op")
            return self._run_operation(operation, message), None
        except FairleadError as error:
            problem = str(error)
        except _INPUT_ERRORS as error:
            problem = f"a field is wrong: {error!r}"
        problem = problem if operation is None else f"{operation}: {problem}"
        return None if operation in OPERATIONS_WITHOUT_REPLY else json.dumps({"error": problem}), problem

    def _run_operation(self, operation: Any, message: Mapping[str, Any]) -> str | None:
        if operation == "reset":
            self._operate = self._begin(message)
            return "{}"
        if self._operate is None:
            raise BadInput("the first operation must be reset", field="op")
        return self._operate(operation, message)


def _message(line: str) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"no JSON: {error}", field="op") from error
    if not isinstance(message, dict):
        raise BadInput("an operation is a JSON object", field="op")
    return message


def _required_field(message: Mapping[str, Any], field: str) -> Any:
    if message.get(field) is None:
        raise BadInput(f"{field} is missing", field=field)
    return message[field]


def _router_operations(core: RouterAdapter) -> Operation:
    """Returns the operations of the router seam; only ``pick`` has a reply."""

    def operate(operation: str, message: Mapping[str, Any]) -> str | None:
        if operation == "pick":
            chosen = core.pick(
                _required_field(message, "request"),
                _required_field(message, "endpoints"),
                _required_field(message, "now"),
            )
            return json.dumps({"endpoint": chosen})
        if operation == "first_token":
            core.on_first_token(
                message,
                _required_field(message, "endpoint"),
                _required_field(message, "now"),
                message.get("cached_tokens"),
            )
        elif operation == "complete":
            core.on_complete(
                message,
                _required_field(message, "endpoint"),
                _required_field(message, "now"),
                message.get("output_tokens"),
            )
        elif operation == "endpoints":
            core.on_endpoints(_required_field(message, "live"), _required_field(message, "now"))
        else:
            raise BadInput("no operation has this name", field="op")
        return None

    return operate


def _autoscaler_operations(core: AutoscalerAdapter) -> Operation:
    """Returns the operations of the autoscaler seam; there is only ``step``."""

    def operate(operation: str, message: Mapping[str, Any]) -> str | None:
        if operation != "step":
            raise BadInput("no operation has this name", field="op")
        return json.dumps(core.step(message))

    return operate


def main(arguments: Sequence[str], source: TextIO, sink: TextIO, errors: TextIO) -> int:
    """Serves one seam until the input ends.

    Returns 2 if a line was wrong; the error is printed to ``errors`` and the line skipped.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fairlead_sim.seams", description="Serve a Fairlead core over JSON lines."
    )
    seams = parser.add_subparsers(dest="seam", required=True)
    router_parser = seams.add_parser("router", help="choose endpoints for requests")
    router_parser.add_argument("--preset", choices=PRESETS, default="dual-hash")
    router_parser.add_argument("--seed", type=int, default=0)
    seams.add_parser("autoscaler", help="choose the numbers of replicas of pools")
    options = parser.parse_args(arguments)
    if options.seam == "router":
        session = JsonLinesSession(
            lambda info: _router_operations(router(info, preset=options.preset, seed=options.seed))
        )
    else:
        session = JsonLinesSession(lambda info: _autoscaler_operations(autoscaler(info)))
    has_errors = False
    for number, line in enumerate(source, 1):
        if not line.strip():
            continue
        reply, problem = session.reply(line)
        if problem is not None:
            has_errors = True
            print(f"line {number}: {problem}", file=errors, flush=True)
        if reply is not None:
            sink.write(reply + "\n")
            sink.flush()
    return 2 if has_errors else 0


if __name__ == "__main__":
    # Bytes that are not UTF-8 spoil their line only.
    with open(sys.stdin.fileno(), encoding="utf-8", errors="replace", closefd=False) as lines:
        sys.exit(main(sys.argv[1:], lines, sys.stdout, sys.stderr))

"""Where outside tools take hold of the production cores: ``router(info)`` and ``autoscaler(info)``, and both as JSON lines.

An adapter translates types and nothing else: every choice is made by the class that the gateway or the autoscaler runs.
docs/reference/seams.md is the manual, and says which hints of the protocol the core does not use. Importing this module does nothing.

    python -m fairlead_sim.seams router [--preset NAME] [--seed N]
    python -m fairlead_sim.seams autoscaler
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TextIO

from fairlead.errors import BadInput, FairleadError
from fairlead_autoscaler.scaling import Core, MixAsked, MixTold
from fairlead_gateway.routing import HOLDING, PRESETS
from fairlead_sim.scaling.seam import SeamAutoscaler
from fairlead_sim.scaling.seam_info import model_of, settings_of
from fairlead_sim.seam_router import HoldingSeamRouter, SeamRouter


def router(info: Any, *, preset: str = "dual-hash", seed: int = 0) -> "SeamRouter":
    """A fresh scheduling core for ``info`` (a mapping, or an object with these attributes). That of a preset which holds requests
    before engines also has ``order_key`` and ``rebalance``."""
    return (HoldingSeamRouter if preset in HOLDING else SeamRouter)(info, preset=preset, seed=seed)


def autoscaler(info: Any, **settings: Any) -> SeamAutoscaler:
    """A fresh scaling core for ``info``; ``settings`` are fields of ``fairlead_autoscaler.scaling.ScalingSettings``. Raises
    BadInput for what neither can be."""
    model = model_of(info)
    return SeamAutoscaler(Core(model, settings_of(settings)), model, _solver)


def _solver() -> Callable[[MixAsked], MixTold]:
    """Of the mix of accelerators; only who tells shapes is asked for it, and needs its library."""
    from fairlead_autoscaler.mix import unhurried

    return unhurried()


Operate = Callable[[str, Mapping[str, Any]], str | None]
"""An operation and its message: the answer line, None where there is none."""

UNANSWERED: Final = frozenset({"first_token", "complete", "endpoints"})
"""Operations that get no answer line, be they right or wrong."""

_WRONG: Final = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


class Lines:
    """A seam as JSON lines: one operation a line. ``begin`` is called with the message of a ``reset``, and what it gives does the
    operations after it."""

    def __init__(self, begin: Callable[[Mapping[str, Any]], Operate]) -> None:
        self._begin = begin
        self._operate: Operate | None = None

    def answer(self, line: str) -> tuple[str | None, str | None]:
        """The answer line to one operation, None where there is none; and what was wrong with it, None where nothing was. Whoever
        waits for an answer to a wrong line gets one: ``{"error": …}``. Nothing else comes of a wrong line."""
        operation = None
        try:
            message = _message(line)
            operation = message.get("op")
            return self._do(operation, message), None
        except FairleadError as error:
            said = str(error)
        except _WRONG as error:
            said = f"a field is wrong: {error!r}"
        said = said if operation is None else f"{operation}: {said}"
        return None if operation in UNANSWERED else json.dumps({"error": said}), said

    def _do(self, operation: Any, message: Mapping[str, Any]) -> str | None:
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


def _need(message: Mapping[str, Any], field: str) -> Any:
    if message.get(field) is None:
        raise BadInput(f"{field} is missing", field=field)
    return message[field]


def _router_lines(core: SeamRouter) -> Operate:
    """``pick`` is answered, the rest is not."""

    def operate(operation: str, message: Mapping[str, Any]) -> str | None:
        if operation == "pick":
            chosen = core.pick(_need(message, "request"), _need(message, "endpoints"), _need(message, "now"))
            return json.dumps({"endpoint": chosen})
        if operation == "first_token":
            core.on_first_token(
                message, _need(message, "endpoint"), _need(message, "now"), message.get("cached_tokens")
            )
        elif operation == "complete":
            core.on_complete(message, _need(message, "endpoint"), _need(message, "now"), message.get("output_tokens"))
        elif operation == "endpoints":
            core.on_endpoints(_need(message, "live"), _need(message, "now"))
        else:
            raise BadInput("no operation is called so", field="op")
        return None

    return operate


def _autoscaler_lines(core: SeamAutoscaler) -> Operate:
    """``step`` is the only one."""

    def operate(operation: str, message: Mapping[str, Any]) -> str | None:
        if operation != "step":
            raise BadInput("no operation is called so", field="op")
        return json.dumps(core.step(message))

    return operate


def main(arguments: Sequence[str], source: TextIO, sink: TextIO, errors: TextIO) -> int:
    """Serve one seam until the input ends; 2 when a line was wrong, which is then told in ``errors`` and skipped."""
    parser = argparse.ArgumentParser(prog="python -m fairlead_sim.seams", description="Fairlead's cores as JSON lines.")
    seams = parser.add_subparsers(dest="seam", required=True)
    of_router = seams.add_parser("router", help="where requests go")
    of_router.add_argument("--preset", choices=PRESETS, default="dual-hash")
    of_router.add_argument("--seed", type=int, default=0)
    seams.add_parser("autoscaler", help="how many replicas a pool has")
    chosen = parser.parse_args(arguments)
    if chosen.seam == "router":
        session = Lines(lambda info: _router_lines(router(info, preset=chosen.preset, seed=chosen.seed)))
    else:
        session = Lines(lambda info: _autoscaler_lines(autoscaler(info)))
    wrong = False
    for at, line in enumerate(source, 1):
        if not line.strip():
            continue
        answer, said = session.answer(line)
        if said is not None:
            wrong = True
            print(f"line {at}: {said}", file=errors, flush=True)
        if answer is not None:
            sink.write(answer + "\n")
            sink.flush()
    return 2 if wrong else 0


if __name__ == "__main__":
    # A byte that is no UTF-8 spoils its line and no other.
    with open(sys.stdin.fileno(), encoding="utf-8", errors="replace", closefd=False) as lines:
        sys.exit(main(sys.argv[1:], lines, sys.stdout, sys.stderr))

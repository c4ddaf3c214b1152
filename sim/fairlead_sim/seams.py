"""Where outside tools take hold of the production cores: ``router(info)`` and ``autoscaler(info)``, and both as JSON lines.

An adapter translates types and nothing else: every choice is made by the class that the gateway or the autoscaler runs.
docs/reference/seams.md is the manual, and says which hints of the protocol the core does not use. Importing this module does nothing.

    python -m fairlead_sim.seams router [--preset NAME] [--seed N]
    python -m fairlead_sim.seams autoscaler
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO

from xxhash import xxh3_64_intdigest

from fairlead.errors import BadInput, FairleadError
from fairlead.fleet import Instance, Model, Objectives
from fairlead.profile import EngineProfile, preset
from fairlead_autoscaler.scaling import Core, MixAsked, MixTold, ScalingSettings
from fairlead_gateway.routing import HOLDING, PRESETS, ModelRouter, RouteRequest
from fairlead_sim.scaling.seam import SeamAutoscaler, model_of
from fairlead_sim.seam_view import EndpointView, read
from fairlead_sim.trace_prompts import trace_chain
from fairlead_sim.traces import TRACE_BLOCK_TOKENS

NAMESPACE = "seam"
MODEL = "model"


def router(info: Any, *, preset: str = "dual-hash", seed: int = 0) -> "SeamRouter":
    """A fresh scheduling core for ``info`` (a mapping, or an object with these attributes). That of a preset which holds requests
    before engines also has ``order_key`` and ``rebalance``."""
    return (HoldingSeamRouter if preset in HOLDING else SeamRouter)(info, preset=preset, seed=seed)


def autoscaler(info: Any, **settings: Any) -> SeamAutoscaler:
    """A fresh scaling core for ``info``; ``settings`` are fields of ``fairlead_autoscaler.scaling.ScalingSettings``."""
    model = model_of(info)
    return SeamAutoscaler(Core(model, ScalingSettings(**settings)), model, _solver)


def _solver() -> Callable[[MixAsked], MixTold]:
    """Of the mix of accelerators; only who tells shapes is asked for it, and needs its library."""
    from fairlead_autoscaler.mix import unhurried

    return unhurried()


class SeamRouter:
    """The gateway's router behind the protocol's words. Equal seeds give equal homes, so several of them act as one."""

    def __init__(self, info: Any, *, preset: str, seed: int) -> None:
        objectives = Objectives(ttft_seconds=read(info, "ttft_slo"))
        self._model = Model(NAMESPACE, MODEL, objectives, preset)
        self._block_tokens = int(read(info, "block_tokens") or TRACE_BLOCK_TOKENS)
        self._profile = _profile(info)
        self._secret = f"seam {seed}".encode()
        self._view = EndpointView(self._profile.prefill_token_seconds, self._block_tokens)
        self._router = ModelRouter(
            secret=self._secret, seed=seed, load=self._view.load, knows=lambda request: self._view.matched(request.id)
        )
        self._epoch = 0
        self._ids: dict[str, Any] = {}  # the core's names are text; the tool's may be numbers
        self._where: dict[str, str] = {}  # request → endpoint, while it is in flight
        self._cached: dict[str, int] = {}
        self._update(read(info, "live") or ())

    def pick(self, request: Any, endpoints: Sequence[Any], now: float) -> Any:
        """The endpoint that the request goes to, which is then taken as sent; None when there is none."""
        offered = self._offered(endpoints)
        asked, blocks = self._request(request), tuple(read(request, "blocks") or ())
        self._view.asked(asked.id, blocks, now)
        decision = self._router.decide(asked, now, excluded=frozenset(self._ids.keys() - offered.keys()))
        if decision.chosen is None:
            return None
        self._router.dispatched(asked, decision.chosen, now)
        self._view.sent(asked.id, decision.chosen, blocks, now)
        self._where[asked.id] = decision.chosen
        self._cached.pop(asked.id, None)
        return self._ids[decision.chosen]

    def on_first_token(self, request: Any, endpoint: Any, now: float, cached_tokens: int | None = None) -> None:
        """The endpoint answered; ``cached_tokens`` is what its engine reported."""
        name = str(read(request, "id"))
        if self._where.get(name) == str(endpoint):
            self._router.first_token(name, now)
            self._view.answered(name)
            if cached_tokens is not None:
                self._cached[name] = int(cached_tokens)

    def on_complete(self, request: Any, endpoint: Any, now: float, output_tokens: int | None = None) -> None:
        """The answer is complete."""
        name = str(read(request, "id"))
        if self._where.get(name) == str(endpoint):
            del self._where[name]
            self._view.ended(name, now)
            self._router.finished(
                name, now, cached_tokens=self._cached.pop(name, None), output_tokens=_whole(output_tokens)
            )

    def on_endpoints(self, live_ids: Iterable[Any], now: float) -> None:
        """The set in service changed; what was in flight on an endpoint that left is not counted any more."""
        before = set(self._ids)
        self._update(live_ids)
        for name in before - self._ids.keys():
            self._view.left(name)
        for name, where in list(self._where.items()):
            if where not in self._ids:
                del self._where[name]
                self._cached.pop(name, None)
                self._view.ended(name, now)
                self._router.abandoned(name, now)

    def _offered(self, endpoints: Sequence[Any]) -> Mapping[str, Any]:
        """Those that may be chosen, by name; new ones are known from now on."""
        offered = {str(read(item, "id")): item for item in endpoints if read(item, "up") is not False}
        new = [read(item, "id") for name, item in offered.items() if name not in self._ids]
        if new:
            self._update([*self._ids.values(), *new])
        self._view.look(offered)
        return offered

    def _update(self, live: Iterable[Any]) -> None:
        self._ids = {str(raw): raw for raw in live}
        self._epoch += 1
        instances = [
            Instance(id=name, namespace=NAMESPACE, model=MODEL, pool="seam", url="", profile=self._profile)
            for name in sorted(self._ids)
        ]
        self._router.update(self._model, instances, self._epoch)

    def _request(self, request: Any) -> RouteRequest:
        tokens = float(read(request, "prompt_tokens"))
        session = read(request, "session")
        chain = trace_chain(
            [_number(block) for block in read(request, "blocks") or ()],
            tokens,
            secret=self._secret,
            seed=self._model.key.encode(),
            block_tokens=self._block_tokens,
        )
        return RouteRequest(str(read(request, "id")), chain, tokens, session=None if session is None else str(session))


class HoldingSeamRouter(SeamRouter):
    """Of a preset that wants requests to be held before engines and released in its order."""

    def order_key(self, request: Any) -> tuple[float, float, str]:
        """Of requests held for one endpoint the smallest goes first."""
        return self._router.order(str(read(request, "id")))

    def rebalance(self, endpoints: Sequence[Any], now: float) -> list[tuple[Any, Any]]:
        """Which of the requests in ``endpoint.held`` go to another endpoint (request, endpoint id). They count there at once."""
        offered = self._offered(endpoints)
        requests = {
            name: {str(read(one, "id")): one for one in read(item, "held") or ()} for name, item in offered.items()
        }
        known = {name: one for held in requests.values() for name, one in held.items()}
        moved = []
        for name, to in self._router.rebalance({place: tuple(held) for place, held in requests.items()}, now):
            self._view.sent(name, to, tuple(read(known[name], "blocks") or ()), now)
            self._where[name] = to
            moved.append((known[name], self._ids[to]))
        return moved


def _number(block: Any) -> int:
    """A block's hash as a number, however the tool writes it."""
    return block if isinstance(block, int) else xxh3_64_intdigest(str(block).encode())


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _profile(info: Any) -> EngineProfile:
    """The hints as an engine profile; what is not hinted is a current engine's."""
    usual = preset("h100-llama8b")
    seconds = read(info, "prefill_s_per_token")
    return EngineProfile(
        name="seam",
        prefill_token_seconds=usual.prefill_token_seconds if seconds is None else float(seconds),
        kv_tokens=int(read(info, "kv_tokens") or usual.kv_tokens),
        max_sequences=int(read(info, "max_seqs") or usual.max_sequences),
        step_tokens=int(read(info, "step_tokens") or usual.step_tokens),
    )


Operate = Callable[[str, Mapping[str, Any]], str | None]
"""An operation and its message: the answer line, None where there is none."""


class Lines:
    """A seam as JSON lines: one operation a line. ``begin`` is called with the message of a ``reset``, and what it gives does the
    operations after it."""

    def __init__(self, begin: Callable[[Mapping[str, Any]], Operate]) -> None:
        self._begin = begin
        self._operate: Operate | None = None

    def answer(self, line: str) -> str | None:
        """The answer line to one operation, None where there is none. Raises BadInput when the line is wrong."""
        try:
            message = json.loads(line)
        except ValueError as error:
            raise BadInput(f"no JSON: {error}", field="op") from error
        if not isinstance(message, dict):
            raise BadInput("an operation is a JSON object", field="op")
        operation = message.get("op")
        if operation != "reset" and self._operate is None:
            raise BadInput("the first operation must be reset", field="op")
        try:
            if self._operate is not None and operation != "reset":
                return self._operate(str(operation), message)
            self._operate = self._begin(message)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(f"{operation}: a field is missing or wrong: {error!r}", field=str(operation)) from error
        return "{}"


def _router_lines(core: SeamRouter) -> Operate:
    """``pick`` is answered, the rest is not."""

    def operate(operation: str, message: Mapping[str, Any]) -> str | None:
        now = float(message["now"])
        if operation == "pick":
            return json.dumps({"endpoint": core.pick(message["request"], message["endpoints"], now)})
        if operation == "first_token":
            core.on_first_token(message, message["endpoint"], now, message.get("cached_tokens"))
        elif operation == "complete":
            core.on_complete(message, message["endpoint"], now, message.get("output_tokens"))
        elif operation == "endpoints":
            core.on_endpoints(message["live"], now)
        else:
            raise BadInput(f"no operation is called {operation!r}", field="op")
        return None

    return operate


def _autoscaler_lines(core: SeamAutoscaler) -> Operate:
    """``step`` is the only one."""

    def operate(operation: str, message: Mapping[str, Any]) -> str | None:
        if operation != "step":
            raise BadInput(f"no operation is called {operation!r}", field="op")
        return json.dumps(core.step(message))

    return operate


def main(arguments: Sequence[str], source: TextIO, sink: TextIO, errors: TextIO) -> int:
    """Serve one seam until the input ends; 2 when a line is wrong."""
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
    for number, line in enumerate(source, 1):
        if not line.strip():
            continue
        try:
            answer = session.answer(line)
        except FairleadError as error:
            print(f"line {number}: {error}", file=errors)
            return 2
        if answer is not None:
            sink.write(answer + "\n")
            sink.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdin, sys.stdout, sys.stderr))

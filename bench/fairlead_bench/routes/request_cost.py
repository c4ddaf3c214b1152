"""Processor time that a route adds to a request: an alias, a split, a tenant check and parameters.

    python -m fairlead_bench routes [--seed 1]

The gateway's own code parses a request, finds its model and makes the body for the engine. It runs
in a process that is started like a worker. Each kind of name is measured in turns with the
model's own name, with the same bodies and the same caller. The cost is the difference.

Times are those of the fastest of several batches: on a busy machine, others only add to them.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, cast

from fairlead.fleet.model import Fleet, Instance, Model
from fairlead.limits import Limits
from fairlead.routes.model import RequestRewrite, Route, RouteRule, RouteTarget
from fairlead.runtime import process_tuning
from fairlead.runtime.compiled_build import is_compiled
from fairlead.tenants.model import Tenant
from fairlead_bench.gateway.load_cases import SIZES, UNIQUE, make_bodies
from fairlead_bench.gateway.routing_decision import frozen_heap, run_like_worker
from fairlead_bench.results import ResultRow, load_goals, parse_options, write_results
from fairlead_gateway.caller_key import Caller
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.proxy import model_selection
from fairlead_gateway.proxy.model_selection import ModelRequestParser
from fairlead_gateway.tenants.worker.tenant_policy import ModelVisibility, TenantPolicies

NAME = "routes"
_PATH: Final = "/v1/chat/completions"
_MODEL: Final = "bench-model"
_BATCHES, BATCH = 100, 100
_SESSION: Final = (b"x-session-id", b"0123456789abcdef")
_SPLIT: Final = (RouteTarget(f"default/{_MODEL}", 9), RouteTarget("default/other", 1))
_BETA: Final = RouteRule((RouteTarget("default/other"),), tenants=frozenset({"beta"}))
_SET: Final = RequestRewrite((("temperature", 0.2),), (("max_tokens", 1_024),))
ROUTES: Final = {
    "an alias": Route("default", "alias", _SPLIT[:1], names=("alias",)),
    "a split": Route("default", "split", _SPLIT, names=("split",)),
    "an alias, a split and a tenant check": Route("default", "checked", _SPLIT, (_BETA,), ("checked",)),
    "an alias that sets parameters": Route("default", "capped", _SPLIT[:1], names=("capped",), rewrite=_SET),
}


class NamedRequests:
    """Requests that name a model or a route; equal arguments make equal requests.

    batches: how many of each kind are measured.
    """

    def __init__(self, seed: int, routes: Iterable[Route], batches: int = _BATCHES) -> None:
        self._batches = batches
        models = {f"default/{name}": Model("default", name) for name in (_MODEL, "other")}
        instances = {
            key: (Instance(f"{model.name}-0", "default", model.name, "main", "http://127.0.0.1:9000"),)
            for key, model in models.items()
        }
        limits = Limits()
        self._visibility = ModelVisibility()
        self.fleet: Final = Fleet(1, 1, models, instances, routes={route.key: route for route in routes})
        self._visibility.update_fleet(self.fleet)
        self._parser = ModelRequestParser(limits, TenantPolicies(b"bench"), cast(Any, None))
        self._caller = Caller(Tenant("acme"), "bench")
        self._texts = make_bodies(SIZES["2k"], count=64, seed=seed, max_tokens=128, stream=False)

    def microseconds(self, name: str, *, has_session: bool, is_first: bool) -> float:
        """Returns the time that the name adds to a request.

        is_first: the model is the first field of the body; else it follows the messages.
        """
        named, plain = math.inf, math.inf
        for turn in range(self._batches):
            plain = min(plain, self._pass_seconds(_MODEL, turn, has_session, is_first))
            named = min(named, self._pass_seconds(name, turn, has_session, is_first))
        return (named - plain) / BATCH * 1e6

    def make(self, name: str, turn: int = 0, *, has_session: bool = False, is_first: bool = True) -> list[HttpRequest]:
        """Returns the requests of a batch."""
        fields = [(b"host", b"localhost"), (b"content-type", b"application/json"), *([_SESSION] if has_session else ())]
        requests = []
        for number in range(BATCH):
            text = self._texts[number % len(self._texts)].replace(UNIQUE, f"{turn * BATCH + number:016x}")
            if is_first:
                text = f'{{"model":"{name}",' + text.replace(f'"model":"{_MODEL}",', "", 1)[1:]
            body = text.replace(f'"{_MODEL}"', f'"{name}"', 1).encode()
            head = RequestHead("POST", _PATH, fields, 11, len(body), True, False)
            requests.append(HttpRequest(head, body, "0" * 16, 0.0, 0.0, self._caller))
        return requests

    def _pass_seconds(self, name: str, turn: int, has_session: bool, is_first: bool) -> float:
        requests = self.make(name, turn, has_session=has_session, is_first=is_first)
        parse, models_of = self._parser.parse, self._visibility.of
        with frozen_heap():
            started = time.perf_counter()
            for request in requests:
                parse(request, models_of(request.caller), request.internal_id)
            return time.perf_counter() - started


def measure(seed: int) -> dict[str, float]:
    """Returns the microseconds that each kind of name adds, in this process."""
    requests = NamedRequests(seed, ROUTES.values())
    found: dict[str, float] = {}
    for kind, route in ROUTES.items():
        for is_first, place in ((True, "model first"), (False, "model last")):
            if len(route.targets) == 1:
                cost = requests.microseconds(route.name, has_session=False, is_first=is_first)
                found[f"{kind}, {place}"] = cost
                continue
            for has_session, basis in ((True, "by session"), (False, "by conversation")):
                cost = requests.microseconds(route.name, has_session=has_session, is_first=is_first)
                found[f"{kind}, {basis}, {place}"] = cost
    return found


def rows(costs: dict[str, float]) -> list[ResultRow]:
    """Returns a row for each kind of name, with its goal."""
    wanted = load_goals(NAME)
    names = {kind: f"{kind}: more than the model's name" for kind in costs}
    return [wanted.value(name, "µs", costs[kind]) for kind, name in names.items()]


def main(arguments: Sequence[str]) -> int:
    module, adds = "fairlead_bench.routes.request_cost", "Processor time that a route adds to a request."
    return run_cost_benchmark(arguments, NAME, module, adds, rows)


def run_cost_benchmark(
    arguments: Sequence[str],
    name: str,
    module: str,
    description: str,
    make_rows: Callable[[dict[str, float]], list[ResultRow]],
) -> int:
    """Runs a module like a worker and writes its rows; 0 when every goal holds, else 1.

    name: of the benchmark.
    module: it prints JSON with `costs` and `is_compiled`.
    make_rows: of the measured costs, in microseconds.
    """
    options = parse_options(name, description, arguments, seed=1)
    found = json.loads(run_like_worker(module, str(options.seed)))
    more = {"is_compiled": found["is_compiled"]}
    return write_results(name, make_rows(found["costs"]), seed=options.seed, file=options.out, more=more)


if __name__ == "__main__":
    process_tuning.relax_gc()  # as a worker
    seed = int(sys.argv[1]) if sys.argv[1:] else 1
    print(json.dumps({"costs": measure(seed), "is_compiled": is_compiled(model_selection.__file__)}))

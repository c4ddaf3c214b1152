"""Processor time that limits add to a request, and that the lookup of its key takes.

    python -m fairlead_bench.quota.request_cost [SEED]

The code is the gateway's own, in one process that is started like a worker: from the compiled copy
where there is one. A request is reserved, gets its headers, and is settled, as a plain request is.
The rest of the request is made before, and not timed. Its tenant has limits of requests and tokens
per minute, of tokens per day, and a budget.

Times are those of the fastest of several batches: on a busy machine, others only add to them.
"""

import asyncio
import json
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import msgspec

from fairlead.fleet.model import Fleet, Instance, Model, TokenPrice
from fairlead.limits import Limits
from fairlead.runtime import process_tuning
from fairlead.runtime.clock import SystemClock
from fairlead.runtime.compiled_build import is_compiled
from fairlead.tenants.model import Enforcement, Limit, LimitUnit, Tenant, Window
from fairlead_bench.gateway.load_cases import SIZES, UNIQUE, make_bodies
from fairlead_bench.gateway.routing_decision import frozen_heap, run_like_worker
from fairlead_bench.results import ResultRow, load_goals
from fairlead_gateway.caller_key import Caller
from fairlead_gateway.http.connection import ClientConnection
from fairlead_gateway.http.listener import HttpRequest, Listener, ResponseWriter
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.journal import Reporters
from fairlead_gateway.limits.exchange import GRANTED
from fairlead_gateway.limits.worker import limit_gate
from fairlead_gateway.limits.worker.limit_gate import LimitGate
from fairlead_gateway.limits.worker.quota_reporter import QuotaReporter
from fairlead_gateway.openai.request import parse_request
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.resilience.outlier_detection import OutlierDetector
from fairlead_gateway.router_registry import RouterRegistry
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.tenants.worker.api_keys import ApiKeys, key_digest
from fairlead_gateway.tenants.worker.tenant_policy import TenantPolicies
from fairlead_testing.gateway.tenant_keys import TABLE_KEYS, TABLE_TENANTS, measure_key_table, table_key

_SECRET = b"bench"
_PATH = "/v1/chat/completions"
_BATCHES, _BATCH = 15, 1_000
_LIMITS = (
    Limit(LimitUnit.REQUESTS, 10**7, Window.MINUTE),
    Limit(LimitUnit.TOKENS, 10**9, Window.MINUTE),
    Limit(LimitUnit.TOKENS, 10**12, Window.DAY),
    Limit(LimitUnit.COST, 10**16, Window.MONTH),
)


@dataclass(frozen=True, slots=True)
class RequestCost:
    """Microseconds of one request, and the size of the table of keys.

    limits, strict_limits: to reserve, to write the headers and to settle.
    lookup: of the caller, on a connection whose key is known.
    first_lookup: on a new connection, with the digest of its key.
    digest: HMAC-SHA-256 of one key, a part of `first_lookup`.
    table_megabytes: of 10,000 tenants with five keys each.
    is_compiled: the compiled copy was measured.
    """

    limits: float
    strict_limits: float
    lookup: float
    first_lookup: float
    digest: float
    table_megabytes: float
    is_compiled: bool


def request_cost(seed: int = 1) -> RequestCost:
    return RequestCost(**json.loads(run_like_worker("fairlead_bench.quota.request_cost", str(seed))))


def cost_rows(cost: RequestCost) -> list[ResultRow]:
    """Returns the rows of a cost, with their goals."""
    wanted = load_goals("tenant-instructions")
    keys = f"{TABLE_TENANTS:,} tenants × {TABLE_KEYS} keys"
    values = (
        ("limits of a request", "µs", cost.limits),
        ("limits of a request, strict", "µs", cost.strict_limits),
        (f"lookup of a caller, {keys}", "µs", cost.lookup),
        (f"lookup of a caller on a new connection, {keys}", "µs", cost.first_lookup),
        ("digest of a key, a part of that", "µs", cost.digest),
        (f"table of keys, {keys}", "MB", cost.table_megabytes),
    )
    return [wanted.value(name, unit, value) for name, unit, value in values]


def _limits_cost(enforcement: Enforcement, seed: int) -> float:
    requests = LimitedRequests(enforcement, seed)
    microseconds = requests.microseconds()
    requests.close()
    return microseconds


def measure(seed: int) -> RequestCost:
    """Returns the cost in this process."""
    keys, shown, megabytes = _table(seed)
    parts = [shown[at::_BATCHES] for at in range(_BATCHES)]
    with frozen_heap():
        heads = [[(keys, _head(key)) for key in part] for part in parts]
        first_lookup = _microseconds(_find_caller, heads)
        lookup = _microseconds(_find_caller, heads)  # each head has its caller now
        digest = _microseconds(key_digest, [[(key, _SECRET) for key in part] for part in parts])
    estimated, strict = (_limits_cost(enforcement, seed) for enforcement in (Enforcement.ESTIMATED, Enforcement.STRICT))
    return RequestCost(
        estimated,
        strict,
        lookup,
        first_lookup,
        digest,
        megabytes,
        is_compiled(limit_gate.__file__),
    )


class LimitedRequests:
    """Requests of one tenant before the gate of its limits; equal arguments make equal requests."""

    def __init__(self, enforcement: Enforcement, seed: int) -> None:
        limits, self._loop = Limits(), asyncio.new_event_loop()
        clock = SystemClock()
        self._runtime = WorkerRuntime(clock, limits, self._loop)
        tenant = Tenant("bench", limits=_LIMITS, enforcement=enforcement)
        self._caller = Caller(tenant, "bench")
        reporters = Reporters()
        registry = RouterRegistry(
            secret=_SECRET,
            limits=limits,
            outlier_detector=OutlierDetector(limits, random.Random(seed).random),
            reporters=reporters,
        )
        self._fleet = _fleet()
        registry.update_fleet(self._fleet, clock.now())
        reporter = QuotaReporter(_Sink(), self._loop, clock, limits)
        self.gate = LimitGate(self._runtime, registry.serving, reporter, lambda _, error: None)
        for leased in self.gate.limits_of(tenant).leased.values():
            leased.on_grant(1, 1 << 60, math.inf)
            leased.on_status(GRANTED, 1 << 59, 0, clock.now() + 50.0, clock.now())
        listener = Listener(cast(Any, None), clock=clock, limits=limits, loop=self._loop, create_request_id=str)
        self._connection = ClientConnection(listener)  # nothing is written to it
        self._policies = TenantPolicies(_SECRET)
        self._head = _head(b"")
        self._texts = make_bodies(SIZES["2k"], count=64, seed=seed, max_tokens=128, stream=False)
        self._made = 0

    def microseconds(self) -> float:
        """Returns the time of one request."""
        self.pass_seconds(self.contexts(2 * _BATCH))
        least = math.inf
        for _ in range(_BATCHES):
            contexts = self.contexts(_BATCH)
            with frozen_heap():
                least = min(least, self.pass_seconds(contexts))
        return least / _BATCH * 1e6

    def close(self) -> None:
        self._loop.close()

    def pass_seconds(self, contexts: Sequence[RequestContext]) -> float:
        """Returns the seconds that the gate takes for all requests, one after the other."""
        gate, now = self.gate, self._runtime.now()
        started = time.perf_counter()
        for context in contexts:
            gate.reserve(context)
            gate.headers(context, now)
            gate.settle(context)
        seconds = time.perf_counter() - started
        assert all(context.reservation is not None for context in contexts)
        return seconds

    def contexts(self, count: int) -> list[RequestContext]:
        return [self._context() for _ in range(count)]

    def _context(self) -> RequestContext:
        """Returns a request that is parsed, and that its engine has answered already."""
        self._made += 1
        request_id = f"{self._made:016x}"
        body = self._texts[self._made % len(self._texts)].replace(UNIQUE, request_id).encode()
        http_request = HttpRequest(self._head, body, request_id, 0.0, 0.0, self._caller)
        request = parse_request(_PATH, body, self._fleet, self._runtime.limits)
        route_request = self._policies.build_route_request(request, http_request, request_id)
        writer = ResponseWriter(self._connection, self._head, request_id)
        context = RequestContext(http_request, writer, request_id, request, route_request)
        context.policy = self._policies.of(self._caller)
        result = context.result
        result.status, result.dispatched_at = 200, 0.0
        result.prompt_tokens, result.output_tokens, result.cached_tokens = 512, 128, 256
        return context


class _Sink:
    """A supervisor that receives nothing."""

    def send(self, message: msgspec.Struct) -> bool:
        return True


def _find_caller(keys: ApiKeys, head: RequestHead) -> None:
    keys.caller(head)


def _microseconds(call: Callable[..., object], batches: Sequence[Sequence[tuple[Any, ...]]]) -> float:
    """Returns the microseconds of one call, in the fastest batch of arguments."""
    least = math.inf
    for batch in batches:
        started = time.perf_counter()
        for arguments in batch:
            call(*arguments)
        least = min(least, (time.perf_counter() - started) / len(batch))
    return least * 1e6


def _table(seed: int) -> tuple[ApiKeys, list[bytes], float]:
    """Returns the table of all keys, some of the keys in a random order, and its megabytes."""
    keys, used = measure_key_table(_SECRET, lambda _: _LIMITS)
    drawn = random.Random(seed).sample(range(TABLE_TENANTS * TABLE_KEYS), _BATCHES * _BATCH)
    return keys, [table_key(number // TABLE_KEYS, number % TABLE_KEYS) for number in drawn], used / 1e6


def _head(key: bytes) -> RequestHead:
    fields = [(b"host", b"localhost"), (b"authorization", b"Bearer " + key), (b"content-type", b"application/json")]
    return RequestHead("POST", _PATH, fields, 11, 0, True, False)


def _fleet() -> Fleet:
    model = Model("default", "bench-model", price=TokenPrice(400, 100, 1_200))
    instances = tuple(
        Instance(f"engine-{number}", "default", model.name, "main", f"http://127.0.0.1:{9000 + number}")
        for number in range(2)
    )
    return Fleet(1, 1, {model.key: model}, {model.key: instances})


if __name__ == "__main__":
    process_tuning.relax_gc()  # as a worker
    print(json.dumps(asdict(measure(int(sys.argv[1]) if sys.argv[1:] else 1))))

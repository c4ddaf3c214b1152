"""The invariant checker of fault runs: a router between the simulation and the real router.

- A request goes only to an engine in service that its gateway reaches. It is refused only if there
  is none.
- A request is answered once. It arrives again only without a first token; its first token and its
  end come once.
- The requests of an engine are those in flight there, and every open request is at one engine.
- The gateways' counts (requests, those without a first token) are the requests in flight. No count
  is negative.
- Every request ends. One that is open ``PATIENCE_SECONDS`` after the last arrival is lost.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from fairlead_sim.engine.block_pool import KvEvent
from fairlead_sim.engine.scheduler import EngineSequence
from fairlead_sim.engine.sequence import SequenceState
from fairlead_sim.fleet.request import InflightRequest
from fairlead_sim.fleet.router_front import QUEUED, RouterFront, SimulationContext
from fairlead_sim.workload.traces import TraceRequest

CHECK_SECONDS: Final = 1.0
PATIENCE_SECONDS: Final = 1_800.0
_MAX_VIOLATIONS: Final = 20
_MIN_COUNT: Final = -1e-6

EndpointCount = tuple[str, int, int, float, float]
"""The counts of one gateway for one engine.

Name, requests in flight, those without a first token, their prefill seconds, their tokens.
"""


class RequestLost(Exception):
    """Raised in a run with a request that never ends."""


class InvariantChecker:
    """The checker of one run.

    - counts: returns the counts of all gateways.
    - queues_requests: the router queues requests. The simulation does not know for which engine, so
      only sums are compared.
    - reachable: returns the engines in service that the request's gateway reaches.
    """

    def __init__(
        self,
        router: RouterFront,
        engine_names: Sequence[str],
        *,
        counts: Callable[[], Iterable[EndpointCount]],
        queues_requests: bool,
        reachable: Callable[[str, Collection[str]], Collection[str]],
        last_arrival: float,
    ) -> None:
        self.violations: list[str] = []
        self.checks = 0
        self.unserved: set[str] = set()
        self._router = router
        self._live = list(engine_names)
        self._counts = counts
        self._queues_requests = queues_requests
        self._reachable = reachable
        self._last_arrival = last_arrival
        self._simulation: SimulationContext | None = None
        self._in_service: dict[str, list[list[float]]] = {name: [[0.0, float("inf")]] for name in engine_names}
        self._first_tokens: set[str] = set()
        self._ends: set[str] = set()

    # --- what passes -----------------------------------------------------------------------------------------------------

    def start(self, simulation: SimulationContext) -> None:
        self._simulation = simulation
        self._router.start(simulation)
        simulation.schedule(CHECK_SECONDS, self._check)

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        inflight = self._inflight_request(request.id)
        if inflight.is_ended or inflight.first_token_at is not None:
            self._report(now, f"{request.id} arrives again after its first token")
        chosen, reason = self._router.route(request, now)
        reachable = self._reachable(request.id, self._live)
        if chosen is None:
            self.unserved.add(request.id)
            if reachable:
                self._report(now, f"{request.id} gets no engine ({reason}) although {len(reachable)} are in service")
        elif chosen != QUEUED and chosen not in reachable:
            self._report(now, f"{request.id} goes to {chosen}, which is not in service or not reachable")
        return chosen, reason

    def on_rejected(self, request: str, now: float) -> None:
        """Reports a violation: no engine rejects a request here."""
        self._report(now, f"{request} is rejected by {self._inflight_request(request).instance}")
        self._router.on_rejected(request, now)

    def on_first_token(self, request: str, now: float) -> None:
        if request in self._first_tokens:
            self._report(now, f"{request} has two first tokens")
        self._first_tokens.add(request)
        self._router.on_first_token(request, now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        if sequence.id in self._ends or sequence.id not in self._first_tokens:
            self._report(now, f"{sequence.id} ends twice, or before its first token")
        self._ends.add(sequence.id)
        self._router.on_finished(sequence, now)

    def on_kv_events(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        self._router.on_kv_events(instance, events, now)

    def on_membership(self, live_engines: Sequence[str], now: float) -> None:
        """Records when each engine enters and leaves service."""
        for name in live_engines:
            if name not in self._live:
                self._in_service.setdefault(name, []).append([now, float("inf")])
        for name in self._live:
            if name not in live_engines:
                self._in_service[name][-1][1] = now
        self._live = list(live_engines)
        self._router.on_membership(live_engines, now)

    def on_lost(self, request: str, now: float) -> None:
        self._router.on_lost(request, now)

    # --- looks -----------------------------------------------------------------------------------------------------------

    def check_end(self) -> None:
        """Checks a finished run.

        Engines and counts must be empty, and requests must have gone to engines in service.
        """
        simulation = self._require_simulation()
        for name, core in simulation.engine_cores.items():
            if core.sequences() or core.pool.referenced:
                left = f"{len(core.sequences())} requests and {core.pool.referenced} blocks"
                self._report(self._last_arrival, f"{name} still has {left} after the end")
        for name, *numbers in self._counts():
            if any(abs(number) > -_MIN_COUNT for number in numbers):
                self._report(self._last_arrival, f"{numbers} are still counted at {name} after the end")
        for inflight in simulation.all_requests():
            at = None if inflight.sequence is None else inflight.sequence.arrival
            if at is None or inflight.instance is None:
                continue
            if not any(since <= at <= until for since, until in self._in_service.get(inflight.instance, ())):
                self._report(at, f"{inflight.request.id} was sent to {inflight.instance}, which was not in service")

    def _check(self, now: float) -> None:
        simulation = self._require_simulation()
        self.checks += 1
        if now > self._last_arrival + PATIENCE_SECONDS:
            waiting = [inflight.request.id for inflight in simulation.all_requests() if not inflight.is_ended]
            raise RequestLost(f"{len(waiting)} requests were not answered in time, {waiting[0]} among them")
        self._check_engines(simulation, now)
        self._check_counts(simulation, now)
        simulation.schedule(now + CHECK_SECONDS, self._check)

    def _check_engines(self, simulation: SimulationContext, now: float) -> None:
        by_engine = {
            name: {item.id: item for item in core.sequences()} for name, core in simulation.engine_cores.items()
        }
        known: Counter[str] = Counter()
        for inflight in simulation.all_requests():
            if inflight.is_ended or inflight.instance == QUEUED:
                continue
            present, sequence = by_engine.get(inflight.instance or "", {}), inflight.sequence
            if sequence is not None and present.get(inflight.request.id) is sequence:
                known[inflight.instance or ""] += 1
            elif sequence is None or sequence.state is not SequenceState.FINISHED:  # it ends with the present step
                self._report(now, f"{inflight.request.id} is open and not at {inflight.instance}")
        for name, present in by_engine.items():
            if len(present) != known[name]:
                self._report(now, f"{name} has {len(present)} requests, and {known[name]} are in flight there")

    def _check_counts(self, simulation: SimulationContext, now: float) -> None:
        expected: Counter[tuple[str, bool]] = Counter()
        for open_request in simulation.all_requests():
            if not open_request.is_ended:
                name = "" if self._queues_requests else open_request.instance or ""
                expected[name, True] += 1
                expected[name, False] += open_request.first_token_at is None
        counted: Counter[tuple[str, bool]] = Counter()
        for name, inflight, waiting, prefill, tokens in self._counts():
            if min(inflight, waiting, prefill, tokens) < _MIN_COUNT:
                self._report(now, f"{inflight}, {waiting}, {prefill}, {tokens} are counted at {name}")
            name = "" if self._queues_requests else name
            counted[name, True] += inflight
            counted[name, False] += waiting
        for key in expected.keys() | counted.keys():
            if expected[key] != counted[key]:
                what = "in flight" if key[1] else "without a first token"
                self._report(now, f"{counted[key]} are counted {what} at {key[0] or 'all'}, and {expected[key]} are")

    def _report(self, now: float, violation: str) -> None:
        if len(self.violations) < _MAX_VIOLATIONS:
            self.violations.append(f"{now:.3f} s: {violation}")

    def _inflight_request(self, request: str) -> InflightRequest:
        return self._require_simulation().known_request(request)

    def _require_simulation(self) -> SimulationContext:
        assert self._simulation is not None, "nothing happens before the course begins"
        return self._simulation

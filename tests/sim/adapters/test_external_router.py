"""The simulator as an external tool of the router seam: what its cores receive, and when."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import pytest

from fairlead_sim.adapters.external_request import ExternalRequest
from fairlead_sim.adapters.external_router import SharingDelays
from fairlead_sim.compiled import COMPILED_MODULES
from fairlead_sim.experiments.trial import SeamKind, Trial
from fairlead_sim.fleet.fleet_events import FleetEvent, FleetEventKind
from fairlead_sim.seams import router
from fairlead_sim.workload.generators import FAMILIES
from fairlead_sim.workload.traces import TraceRequest, at_rate
from fairlead_testing.pytest_hooks.nightly import shortened

COUNTERS = ("inflight", "waiting", "running", "pending_prefill_tokens", "inflight_tokens", "kv_util")


def test_request_that_cores_may_set_attributes_on_is_not_compiled() -> None:
    module = f"{ExternalRequest.__module__.replace('.', '/')}.py"
    assert [pattern for pattern in COMPILED_MODULES if PurePath(module).match(pattern)] == []


class First:
    """A core that sends everything to the first endpoint and records its calls."""

    def __init__(self, into: list[Any]) -> None:
        self._into = into

    def pick(self, request: Any, endpoints: Sequence[Any], now: float) -> Any:
        self._into.append((self, now, request, {item.id: item for item in endpoints}))
        return endpoints[0].id


class Late(First):
    """A core that holds requests for a busy engine."""

    def order_key(self, request: Any) -> str:
        return str(request.id)

    def rebalance(self, endpoints: Sequence[Any], now: float) -> list[Any]:
        return []


def fairlead(info: Mapping[str, Any], preset: str, seed: int) -> Any:
    return router(info, preset=preset, seed=seed)


def run_with_core(requests: list[TraceRequest], **seam: Any) -> list[Any]:
    into: list[Any] = []
    Trial(engines=2, seam=SeamKind(lambda *_: First(into), **seam)).run(requests)
    return into


def conversation(gap: float, turns: int = 6) -> list[TraceRequest]:
    blocks = [tuple(range(1, 5 + turn)) for turn in range(turns)]
    return [TraceRequest(f"r{at}", at * gap, 512 * len(turn), 4, turn) for at, turn in enumerate(blocks)]


def test_a_core_receives_its_own_load_at_once_and_that_of_others_delayed() -> None:
    requests = [
        TraceRequest(f"r{at}", at * 0.1, 2_048, 2_000, (at * 4, at * 4 + 1, at * 4 + 2, at * 4 + 3)) for at in range(30)
    ]
    seen = run_with_core(requests, gateways=2, sharing=SharingDelays(0.0, 0.25))
    assert {id(core) for core, *_ in seen} == {id(core) for core, *_ in seen[:12]}
    for number, (core, now, _, endpoints) in enumerate(seen):
        own = sum(before is core for before, *_ in seen[:number])
        others = sum(before is not core and at <= now - 0.25 + 1e-9 for before, at, *_ in seen[:number])
        assert [item.inflight for item in endpoints.values()] == [own + others, 0]


@pytest.mark.parametrize("late", [0.0, 5.0])
def test_cached_prefixes_arrive_after_the_given_delay(late: float) -> None:
    seen = run_with_core(conversation(gap=3.0), sharing=SharingDelays(late, 0.0))
    matched = [[item.matched_tokens for item in endpoints.values()] for *_, endpoints in seen]
    turns_ago = 1 if late == 0.0 else 2
    for number, (first, second) in enumerate(matched):
        assert first == (512 * (3 + number - turns_ago + 1) if number >= turns_ago else 0)
        assert second == 0


def test_without_sharing_a_core_receives_no_caches_and_no_other_load() -> None:
    seen = run_with_core(conversation(gap=0.01), gateways=2, sharing=None)
    for number, (core, _, _, endpoints) in enumerate(seen):
        own = sum(before is core for before, *_ in seen[:number])
        assert [item.inflight for item in endpoints.values()] == [own, 0]
        assert {item.matched_tokens for item in endpoints.values()} == {None}


def test_an_assignment_is_shared_at_the_decision_not_at_the_dispatch() -> None:
    into: list[Any] = []
    Trial(engines=2, seam=SeamKind(lambda *_: Late(into))).run(conversation(gap=0.001))
    matched = [next(iter(endpoints.values())).matched_tokens for *_, endpoints in into]
    assert matched == [0, *[512 * (3 + number) for number in range(1, 6)]]  # all but the first are held meanwhile


@pytest.mark.parametrize("preset", ["dual-hash", "dualmap"])
@pytest.mark.parametrize("sharing", [SharingDelays(), SharingDelays(0.05, 0.2), None])
def test_all_counters_return_to_zero(preset: str, sharing: SharingDelays | None) -> None:
    """The last request comes long after all others; an engine was lost and another joined."""
    into: list[Any] = []

    class Core:
        def __init__(self, info: Mapping[str, Any]) -> None:
            self._core = fairlead(info, preset, 1)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._core, name)

        def pick(self, request: Any, endpoints: Sequence[Any], now: float) -> Any:
            for item in endpoints:
                assert all(getattr(item, name) >= -1e-6 for name in COUNTERS)
            into.append(endpoints)
            return self._core.pick(request, endpoints, now)

    requests = at_rate(FAMILIES["tenants"](300, seed=3), 15.0)
    last = TraceRequest("last", requests[-1].arrival + 500.0, 512, 4, (9_999_999,))
    script = (FleetEvent(5.0, FleetEventKind.LOSE, "sim-1/0/0"), FleetEvent(8.0, FleetEventKind.JOIN, "sim-7/0/0"))
    trial = Trial(preset, engines=3, events=script, seam=SeamKind(lambda info, *_: Core(info), 2, sharing))
    served = trial.run([*requests, last])
    assert sum(request.error is None for request in served) > 0.9 * len(served)
    assert {item.id for item in into[-1]} == {"sim-0/0/0", "sim-2/0/0", "sim-7/0/0"}
    for item in into[-1]:
        assert [getattr(item, name) for name in COUNTERS] == pytest.approx([0.0] * len(COUNTERS))


def test_one_gateway_behind_the_seam_equals_the_router_alone() -> None:
    requests = at_rate(FAMILIES["agents"](shortened(1_500, 750), seed=1), 30.0)
    alone = Trial(seed=1).metrics(requests)
    behind = Trial(seed=1, seam=SeamKind(fairlead)).metrics(requests)
    assert behind.attainment == pytest.approx(alone.attainment, abs=0.01)
    assert behind.cached_token_share == pytest.approx(alone.cached_token_share, abs=0.02)


class Counted:
    """An endpoint that counts reads of its load."""

    LOAD = frozenset({*COUNTERS, "held"})

    def __init__(self, endpoint: Any, looked: set[str]) -> None:
        self._endpoint = endpoint
        self._looked = looked

    def __getattr__(self, name: str) -> Any:
        if name in Counted.LOAD:
            self._looked.add(self._endpoint.id)
        return getattr(self._endpoint, name)


@pytest.mark.parametrize("engines", [17, 64])
def test_among_many_endpoints_the_default_reads_five_loads_per_pick(engines: int) -> None:
    """At most five per pick, and each endpoint in turn: stored loads give the mean of the fleet."""
    looked: list[set[str]] = []

    class Core:
        def __init__(self, info: Mapping[str, Any], preset: str, seed: int) -> None:
            self._core = fairlead(info, preset, seed)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._core, name)

        def pick(self, request: Any, endpoints: Sequence[Any], now: float) -> Any:
            looked.append(set())
            return self._core.pick(request, [Counted(item, looked[-1]) for item in endpoints], now)

    requests = at_rate(FAMILIES["agents"](shortened(1_000, 400), seed=4), 6.0 * engines)
    served = Trial(engines=engines, seam=SeamKind(Core, 2, SharingDelays(0.05, 0.2))).run(requests)
    assert all(request.error is None for request in served)
    assert max(len(ones) for ones in looked) == 5
    assert len(set().union(*looked[: 3 * engines])) == engines

"""The router seam's endpoint view: a tool's counts, its KV events, and requests that are held."""

from types import SimpleNamespace
from typing import Any

import pytest

from fairlead_gateway.routing.load.inflight import EndpointLoad
from fairlead_sim.adapters.router_adapter import EndpointView, LateBindingRouterAdapter
from fairlead_sim.seams import router

INFO: dict[str, Any] = {
    "live": ["e0", "e1", "e2", "e3"],
    "block_tokens": 512,
    "ttft_slo": 5.0,
    "prefill_s_per_token": 1e-3,
    "kv_tokens": 1_200_000,
}
"""512 tokens take about half a second."""


def request(name: str, blocks: tuple[int, ...] = (1, 2), arrival: float = 0.0) -> Any:
    return SimpleNamespace(id=name, arrival=arrival, prompt_tokens=512 * len(blocks), blocks=blocks)


def endpoint(name: str, *, pending: float = 0.0, inflight: int = 0, **more: Any) -> Any:
    return SimpleNamespace(
        id=name,
        up=True,
        inflight=inflight,
        waiting=inflight,
        pending_prefill_tokens=pending,
        inflight_tokens=pending,
        **more,
    )


def fleet(**pending: float) -> list[Any]:
    """Returns endpoints with so many tokens of other requests queued."""
    return [
        endpoint(name, pending=pending.get(name, 0.0), inflight=3 if name in pending else 0) for name in INFO["live"]
    ]


@pytest.mark.parametrize("preset", ["dual-hash", "dualmap"])
def test_what_others_sent_counts_as_the_tool_says(preset: str) -> None:
    free = router(INFO, preset=preset).pick(request("r"), fleet(), 0.0)
    assert router(INFO, preset=preset).pick(request("r"), fleet(**{free: 50_000.0}), 0.0) != free


def test_requests_in_flight_are_counted_as_the_tool_does() -> None:
    assert router(INFO, preset="least-request").pick(request("r"), fleet(e0=9, e1=9, e2=9), 0.0) == "e3"


def test_a_tool_that_does_not_count_sent_requests_is_not_trusted() -> None:
    seam = router(INFO, preset="least-request")
    assert sorted(seam.pick(request(str(n), (n,)), fleet(), 0.0) for n in range(4)) == ["e0", "e1", "e2", "e3"]


def test_a_tools_prefill_count_yields_to_our_lower_estimate() -> None:
    """A repeated prompt computes nothing, whatever the tool counts before events come."""

    def endpoints(**pending: float) -> list[Any]:
        return [
            endpoint(name, pending=pending.get(name, 0.0), inflight=2 if name in pending else 0, matched_tokens=0)
            for name in INFO["live"]
        ]

    seam, blocks = router(INFO, preset="min-ttft"), tuple(range(40))
    at = seam.pick(request("a", blocks), endpoints(), 0.0)
    seam.on_first_token(request("a", blocks), at, 1.0, 0)
    assert seam.pick(request("b", blocks), endpoints(), 1.0) == at
    late = endpoints(**{at: 2 * 512.0 * len(blocks)})
    assert seam.pick(request("c", blocks), late, 1.0) == at
    crowd = [
        item if item.id != at else endpoint(at, pending=item.pending_prefill_tokens, inflight=9, matched_tokens=0)
        for item in late
    ]
    assert seam.pick(request("d", blocks), crowd, 1.0) != at


@pytest.mark.parametrize(
    ("inflight", "pending", "backlog"),
    [
        (2, 9_000.0, 3.0),  # ours alone; the tool does not know what is cached
        (2, 1_000.0, 1.0),  # ours alone; we do not know
        (3, 9_000.0, 9.0),  # also other requests
        (1, 9_000.0, 3.0),  # not counted
    ],
)
def test_queued_prefill_is_the_lower_count_if_all_requests_are_ours(
    inflight: int, pending: float, backlog: float
) -> None:
    view = EndpointView(0.001, 512)
    view.set_endpoints({"e0": endpoint("e0", pending=pending, inflight=inflight)})
    assert view.load(EndpointLoad("e0", 2, 2, 3.0, 4_000.0)).backlog_seconds == pytest.approx(backlog)


def test_kv_events_take_precedence_over_remembered_prompts() -> None:
    def endpoints(**tokens: int) -> list[Any]:
        return [endpoint(name, matched_tokens=tokens.get(name, 0)) for name in ("e0", "e1", "e2", "e3")]

    seam = router(INFO, preset="dualmap")
    homes = {router(INFO, preset="dualmap").pick(request(f"r{n}"), endpoints(), 0.0) for n in range(40)}
    assert len(homes) == 2
    for home in homes:
        assert router(INFO, preset="dualmap").pick(request("r"), endpoints(**{home: 1_024}), 0.0) == home
    first = seam.pick(request("r"), endpoints(), 0.0)
    assert seam.pick(request("s"), endpoints(), 0.1) == first  # under way: no event yet
    for name in ("r", "s"):
        seam.on_first_token(request(name), first, 1.0)
        seam.on_complete(request(name), first, 2.0)
    assert {seam.pick(request(f"t{n}"), endpoints(), 6.9) for n in range(10)} == {first}
    (other,) = homes - {first}
    assert seam.pick(request("u"), endpoints(**{other: 1_024}), 600.0) == other


def view_with_events() -> EndpointView:
    """Returns the view of a tool with KV events, none of them for the blocks of this request."""
    view = EndpointView(1e-3, 512)
    view.set_endpoints({"e0": endpoint("e0", matched_tokens=512)})
    view.add_request("before", (9,), 0.0)
    view.set_endpoints({name: endpoint(name, matched_tokens=0) for name in ("e0", "e1")})
    return view


def test_a_tool_that_reports_only_zeros_reports_nothing() -> None:
    view = EndpointView(1e-3, 512)
    view.set_endpoints({"e0": endpoint("e0", matched_tokens=0)})
    view.add_request("r", (1,), 0.0)
    assert view.cached_tokens("r") is None
    other = view_with_events()
    other.add_request("r", (1,), 0.0)
    assert other.cached_tokens("r") == {}


def test_an_endpoint_that_returns_has_no_requests_in_flight() -> None:
    view = view_with_events()
    view.add_routed("r", "e0", (1, 2), 0.0)
    view.add_routed("s", "e1", (1,), 0.0)
    view.add_request("t", (1, 2, 3), 1.0)
    assert view.cached_tokens("t") == {"e0": 1_024.0, "e1": 512.0}
    view.remove_endpoint("e0")
    assert view.cached_tokens("t") == {"e1": 512.0}
    view.remove_routed("r", 2.0)  # late news of what went with it
    assert view.cached_tokens("t") == {"e1": 512.0}


def test_a_request_that_moves_leaves_nothing_behind() -> None:
    view = view_with_events()
    view.add_routed("r", "e0", (1, 2), 0.0)
    view.add_routed("r", "e1", (1, 2), 0.0)
    view.add_request("s", (1, 2), 0.0)
    assert view.cached_tokens("s") == {"e1": 1_024.0}


@pytest.fixture
def holding() -> LateBindingRouterAdapter:
    seam = router(INFO, preset="dualmap")
    assert isinstance(seam, LateBindingRouterAdapter)
    return seam


def test_hits_go_first_and_then_who_came_first(holding: LateBindingRouterAdapter) -> None:
    names = {"long": (1, 2, 3), "first": (7,), "second": (8,)}
    holding.pick(request("warm", (1, 2)), fleet(), 0.0)
    for number, (name, blocks) in enumerate(names.items()):
        holding.pick(request(name, blocks), fleet(), 1.0 + number)
    asked = [request(name) for name in ("second", "long", "first")]
    assert [one.id for one in sorted(asked, key=holding.order_key)] == ["long", "first", "second"]


def test_by_default_shorter_prompts_go_first_without_starvation() -> None:
    late = router(INFO)
    assert isinstance(late, LateBindingRouterAdapter)
    asked = {}
    for name, first, blocks, at in (("long", 100, 40, 0.0), ("short", 200, 1, 1.0), ("much later", 300, 1, 30.0)):
        asked[name] = request(name, tuple(range(first, first + blocks)))
        late.pick(asked[name], fleet(), at)
    assert [one.id for one in sorted(asked.values(), key=late.order_key)] == ["short", "long", "much later"]
    assert late.rebalance([endpoint("e0", held=list(asked.values()))], 40.0) == []


def test_what_is_held_at_a_full_instance_moves_to_its_other_home(holding: LateBindingRouterAdapter) -> None:
    first = holding.pick(request("r0", (1, 2)), fleet(), 0.0)
    held: list[Any] = [request("r0", (1, 2))]
    for number in range(1, 30):
        one = request(f"r{number}", (1, 2, 100 + number))
        if holding.pick(one, fleet(), 0.0) == first:
            held.append(one)
    stations = [endpoint(name, held=held if name == first else []) for name in ("e0", "e1", "e2", "e3")]
    moved = holding.rebalance(stations, 4.0)
    assert moved
    assert {one.id for one, _ in moved} <= {one.id for one in held}
    assert first not in {to for _, to in moved}
    for one, to in moved:  # feedback is taken from where it is now
        holding.on_first_token(one, to, 5.0, 0)
        holding.on_complete(one, to, 6.0, 10)
    assert holding.rebalance([endpoint(name, held=[]) for name in ("e0", "e1", "e2", "e3")], 7.0) == []


def test_a_request_that_moved_back_and_forth_counts_once(holding: LateBindingRouterAdapter) -> None:
    one = request("r")
    at = holding.pick(one, fleet(), 0.0)
    for turn in range(4):
        stations = [endpoint(name, held=[one] if name == at else []) for name in ("e0", "e1", "e2", "e3")]
        for _, at in holding.rebalance(stations, 10.0 + turn):  # noqa: B007 - the last one is where it is
            pass
    holding.on_complete(one, at, 20.0, 1)
    assert all(load.inflight == 0 for load in holding._router.loads().values())

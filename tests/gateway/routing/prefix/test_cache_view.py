"""The view of cached prefixes: a match is computed once for a decision."""

from fairlead.engine_profile import builtin_profile
from fairlead_gateway.routing.load.inflight import EndpointLoad
from fairlead_gateway.routing.prefix.cache_view import CacheView, slow_tokens
from fairlead_gateway.routing.prefix.prefix_hash import prefix_chain
from fairlead_gateway.routing.request import RouteRequest

PROFILE = builtin_profile("h100-llama8b")


def test_match_is_computed_again_only_after_a_change() -> None:
    view = CacheView(1_000)
    endpoint = view.create_endpoint("a", PROFILE, EndpointLoad("a"), None)
    view.set_endpoints({"a": endpoint})
    request = RouteRequest("r", prefix_chain(b"x" * 2_048, secret=b"s", seed=b"m"), 512.0)
    before = view.match(request)
    view.begin_decision()
    assert view.match(request) is before
    assert before.bytes_at(endpoint.cache_bit) == 0
    view.add(endpoint, request.chain, 1 << 20)
    view.begin_decision()
    assert view.match(request).bytes_at(endpoint.cache_bit) == 2_048
    view.reserve(endpoint, 1 << 20, 1 << 20)  # evicts the prompt
    view.begin_decision()
    assert view.match(request).bytes_at(endpoint.cache_bit) == 0


def test_tokens_in_slower_memory_and_in_the_shared_store_are_told_apart() -> None:
    view = CacheView(1_000)
    endpoints = {name: view.create_endpoint(name, PROFILE, EndpointLoad(name), None) for name in "ab"}
    view.set_endpoints(endpoints)
    request = RouteRequest("r", prefix_chain(b"x" * 8_192, secret=b"s", seed=b"m"), 2_048.0)
    chain = request.chain.hashes
    reached = [sum(end <= size for end in request.chain.ends) for size in (2_048, 4_096, 6_144)]
    view.add(endpoints["a"], request.chain, 1 << 20)
    view.apply_correction("a", 0, "", [chain[reached[0]]], [chain[: reached[0]]])
    view.apply_correction("a", 1, "", (), [chain[: reached[1]]])
    view.apply_correction("a", 2, "", (), [chain[: reached[2]]])
    view.apply_correction("", 0, "", (), [chain])
    match = view.match(request)
    assert slow_tokens(endpoints["a"], match, 2_048.0, 0.25) == (512.0, 512.0, 512.0)
    assert slow_tokens(endpoints["b"], match, 2_048.0, 0.25) == (0.0, 0.0, 2_048.0)
    assert view.longest_match(request) == 8_192
    view.apply_correction("a", 0, "all", (), ())
    view.begin_decision()
    assert slow_tokens(endpoints["a"], view.match(request), 2_048.0, 0.25) == (0.0, 0.0, 2_048.0)

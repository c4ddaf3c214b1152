"""The view of cached prefixes: a match is computed once for a decision."""

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead_gateway.routing.load.inflight import Endpoint, EndpointLoad
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


def _prompt(name: bytes, size: int) -> RouteRequest:
    return RouteRequest(name.decode(), prefix_chain(name * size, secret=b"s", seed=b"m"), size / 4)


def _view() -> tuple[CacheView, Endpoint]:
    view = CacheView(1_000)
    endpoint = view.create_endpoint("a", PROFILE, EndpointLoad("a"), None)
    view.set_endpoints({"a": endpoint})
    return view, endpoint


def test_reports_count_until_sent_prompts_fill_the_memory_and_again_after_evictions() -> None:
    """An engine evicts old blocks for prompts that were sent, and reports it too late."""
    view, endpoint = _view()
    reported, sent, next_sent = _prompt(b"r", 4_096), _prompt(b"s", 6_144), _prompt(b"t", 2_048)
    view.apply_correction("a", 0, "", (), [reported.chain.hashes])
    view.add(endpoint, sent.chain, 8_192)
    assert view.match(reported).bytes_at(endpoint.cache_bit) == view.longest_match(reported) == 4_096
    view.add(endpoint, next_sent.chain, 8_192)
    view.drop_match()
    assert view.match(reported).bytes_at(endpoint.cache_bit) == view.longest_match(reported) == 0
    assert view.match(reported).bytes_at(endpoint.index_bit) == 4_096
    assert view.match(sent).bytes_at(endpoint.cache_bit) == view.longest_match(sent) == 6_144
    view.apply_correction("a", 0, "", sent.chain.hashes[:1], ())  # it evicted another one
    view.reserve(endpoint, 256, 8_192)
    assert view.match(reported).bytes_at(endpoint.cache_bit) == view.longest_match(reported) == 4_096


@pytest.mark.parametrize("forget", ["told", "all"])
def test_what_is_reported_after_a_restart_counts_at_once(forget: str) -> None:
    view, endpoint = _view()
    reported, sent = _prompt(b"r", 4_096), _prompt(b"s", 8_192)
    view.apply_correction("a", 0, "", (), [reported.chain.hashes])
    view.add(endpoint, sent.chain, 8_192)
    assert view.match(reported).bytes_at(endpoint.cache_bit) == 0
    view.apply_correction("a", 0, forget, (), [reported.chain.hashes])
    view.drop_match()
    assert view.match(reported).bytes_at(endpoint.cache_bit) == 4_096


def test_memory_that_the_fleet_states_too_small_is_as_large_as_its_reported_blocks() -> None:
    view, endpoint = _view()
    reported, sent = _prompt(b"r", 8_192), _prompt(b"s", 4_096)
    view.apply_correction("a", 0, "", (), [reported.chain.hashes])
    view.add(endpoint, sent.chain, 4_096)
    assert view.match(reported).bytes_at(endpoint.cache_bit) == 8_192
    view.add(endpoint, _prompt(b"t", 4_096).chain, 4_096)
    view.drop_match()
    assert view.match(sent).bytes_at(endpoint.cache_bit) == 4_096
    view.drop_match()
    assert view.match(reported).bytes_at(endpoint.cache_bit) == 0


def test_blocks_that_leave_a_full_memory_stay_in_slower_memory() -> None:
    view, endpoint = _view()
    reported, sent = _prompt(b"r", 4_096), _prompt(b"s", 8_192)
    view.apply_correction("a", 0, "", (), [reported.chain.hashes])
    view.apply_correction("a", 1, "", (), [_prompt(b"c", 2_048).chain.hashes])
    view.add(endpoint, sent.chain, 8_192)
    assert view.match(reported).bytes_at(endpoint.cache_bit) == 4_096

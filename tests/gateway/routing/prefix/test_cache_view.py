"""The view of cached prefixes: a match is computed once for a decision."""

from fairlead.engine_profile import builtin_profile
from fairlead_gateway.routing.load.inflight import EndpointLoad
from fairlead_gateway.routing.prefix.cache_view import CacheView
from fairlead_gateway.routing.prefix.prefix_hash import prefix_chain
from fairlead_gateway.routing.request import RouteRequest


def test_match_is_computed_again_only_after_a_change() -> None:
    view = CacheView(1_000)
    endpoint = view.create_endpoint("a", builtin_profile("h100-llama8b"), EndpointLoad("a"), None)
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

"""The share of conversations that a canary gets, and what a change of the weight moves."""

from fairlead.fleet.model import Model
from fairlead_gateway.dialects.passed_on import GenericRequest
from fairlead_gateway.openai.body_parser import parsed_body
from fairlead_gateway.openai.model_names import ModelEntry
from fairlead_gateway.proxy.route_choice import takes_canary
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.routing.prefix.prefix_hash import ChainStarts, hash_blocks

REQUEST = parsed_body(GenericRequest(model="m"), b"{}")
REQUEST.bind(ModelEntry("chat/m", Model("chat", "m")), b"{}")
SESSIONS = 100_000


def routed(session: int) -> RouteRequest:
    chain = hash_blocks(b"", ChainStarts(b"secret").of_model("chat/m"), start=0, end=0)
    return RouteRequest("r", chain, 1.0, None, str(session), session * 0x9E3779B97F4A7C15 % 2**64)


def of_canary(weight: int, sessions: int = SESSIONS) -> set[int]:
    return {index for index in range(sessions) if takes_canary(REQUEST, routed(index), weight)}


def test_the_share_is_the_weight() -> None:
    for weight in (1, 10, 50):
        assert abs(len(of_canary(weight)) / SESSIONS - weight / 100) < 0.005


def test_more_weight_moves_conversations_to_the_canary_only() -> None:
    before, after = of_canary(10, 20_000), of_canary(50, 20_000)
    assert before < after


def test_no_weight_is_no_conversation() -> None:
    assert of_canary(0, 2_000) == set()
    assert len(of_canary(100, 2_000)) == 2_000

"""The prompts that the KV-cache index may query, and what it gets of each."""

from array import array

import pytest

from fairlead.limits import Limits
from fairlead_gateway.continuation.sent_tokens import SentTokens, TokenMemory
from fairlead_gateway.dialects.chat import ChatRequest
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.kv_index import prompt_samples
from fairlead_gateway.kv_index.messages import CHAT_SAMPLE, PromptSample
from fairlead_gateway.kv_index.prompt_samples import PromptSampleBuffer
from fairlead_gateway.openai.body_parser import parse_body
from fairlead_gateway.openai.request import bind_by_name, build_route_request
from fairlead_gateway.routing.prefix.prefix_hash import ChainStarts
from fairlead_testing.gateway.running_gateway import fleet_of

HEAD = RequestHead("POST", "/v1/chat/completions", [], 11, 0, keep_alive=True, expects_continue=False)


class Scene:
    """A buffer of prompts of one model."""

    def __init__(self) -> None:
        self.buffer = PromptSampleBuffer()
        self.bodies: dict[int, bytes] = {}
        self.model = ""

    def send(self, text: str, tokens: SentTokens | None = None) -> int:
        """Offers a prompt, and returns its tail."""
        body = b'{"model":"tiny","messages":[{"role":"user","content":"%s"}]}' % (text.encode() * 4_000)
        request = bind_by_name(HEAD.path, parse_body(ChatRequest, body, Limits()), fleet_of([]), Limits())
        route = build_route_request(request, HEAD, "r", ChainStarts(b"secret"))
        self.buffer.offer(request, route, tokens)
        self.model = request.model_key
        self.bodies[route.chain.tail] = request.body
        return route.chain.tail

    def sample(self, tail: int, tokens: list[int]) -> PromptSample:
        return PromptSample(tail, CHAT_SAMPLE, self.bodies[tail], "", array("I", tokens).tobytes())


def open_stream(max_bytes: int = 1_000) -> SentTokens:
    return SentTokens(TokenMemory(max_bytes), strips=True)


def take_ids(tokens: SentTokens, ids: str) -> None:
    tokens.take(
        b'data: {"choices":[{"delta":{"content":"x"},"token_ids":[9]}],"prompt_token_ids":%s}\n\n' % ids.encode()
    )


def test_prompt_of_a_stream_waits_for_its_tokens_and_is_taken_once() -> None:
    scene, tokens = Scene(), open_stream()
    tail, other = scene.send("a", tokens), scene.send("b")
    assert scene.buffer.take(scene.model, [tail, other, 5]) == [scene.sample(other, [])]
    assert scene.buffer.take(scene.model, [tail]) == []
    assert list(scene.buffer.wanted) == [(scene.model, tail)]
    take_ids(tokens, "[4,5,4294967295]")
    assert scene.buffer.take(scene.model, [tail]) == [scene.sample(tail, [4, 5, 4_294_967_295])]
    assert not scene.buffer.wanted
    assert scene.buffer.take(scene.model, [tail], has_ended=True) == []


@pytest.mark.parametrize("what", ["released", "without ids", "broken off", "out of memory", "far too many"])
def test_prompt_without_tokens_is_given_as_its_body(what: str) -> None:
    scene, tokens = Scene(), open_stream(1_000_000 if what == "far too many" else 1_000)
    tail = scene.send("a", tokens)
    assert scene.buffer.take(scene.model, [tail]) == []
    if what == "released":
        take_ids(tokens, "[4]")
        tokens.release()
    elif what == "without ids":
        take_ids(tokens, "null")
    elif what == "out of memory":
        take_ids(tokens, str(list(range(1_000))))
    elif what == "far too many":
        take_ids(tokens, str([1] * 80_000))
    assert scene.buffer.take(scene.model, [tail], has_ended=what == "broken off") == [scene.sample(tail, [])]
    assert not scene.buffer.wanted


def test_prompts_beyond_the_bound_are_no_longer_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_samples, "PREFIX_MAP_SAMPLES", 2)
    scene = Scene()
    tails = [scene.send(text, open_stream()) for text in "abc"]
    assert scene.buffer.take(scene.model, tails) == []
    assert list(scene.buffer.wanted) == [(scene.model, tail) for tail in tails[1:]]
    scene.send("d")
    assert list(scene.buffer.wanted) == [(scene.model, tails[2])]

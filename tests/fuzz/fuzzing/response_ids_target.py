"""A fuzz target: ids of stored responses, from clients and in the answers of engines.

An id that no gateway has made for the tenant is unknown, and a gateway's own one is found. What the
rewriter changes in an answer is the id alone: set back, the answer is the engine's.
"""

import re
from collections.abc import Callable, Hashable

from fuzzing.target import Target, refused

from fairlead.fleet.model import Fleet, Instance, InstanceState, Model, ModelRouting, SloTargets
from fairlead_gateway.caller_key import CallerKey
from fairlead_gateway.errors import UnknownResponse
from fairlead_gateway.openai.response_ids import HeldResponse, ResponseIdRewriter, ResponseIds

_MODEL = Model("default", "tiny", SloTargets(), ModelRouting("round-robin"))
_INSTANCES = tuple(
    Instance(f"e-{number}/0/0", "default", "tiny", "main", f"http://h:{number}", state=InstanceState.READY)
    for number in range(1, 4)
)
_FLEET = Fleet(1, 1, {_MODEL.key: _MODEL}, {_MODEL.key: _INSTANCES})
_IDS = ResponseIds(b"secret")
_ACME, _OTHER = CallerKey("acme"), CallerKey("other")
_OWN = [_IDS.client_id(f"resp_{number}", _INSTANCES[number % 3].id, _ACME) for number in range(3)]
_ENGINE_ID = re.compile(rb'"(?:id|response_id)": ?"(resp_[A-Za-z0-9_-]{1,128})"')
_NAMES = re.compile(rb"[^\s\"',:{}\[\]]+")
_TAG_CHARACTERS = 40


def find(text: str, tenant: CallerKey) -> HeldResponse | None:
    """Returns what an id names; None if it is unknown. Any other error is a finding."""
    try:
        return _IDS.find(text, tenant, _FLEET)
    except UnknownResponse as error:
        refused(error)
        return None


def check(data: bytes) -> Hashable:
    """Checks the words of an input as ids of clients, and the input as an answer of an engine."""
    known = 0
    for word in (*_NAMES.findall(data)[:8], data):
        text = word.decode("utf-8", "replace")
        held = find(text, _ACME)
        assert find(text, _OTHER) is None, "found by another tenant"
        if held is not None:
            known += 1
            assert text == _IDS.client_id(held.engine_id, held.instance_id, _ACME), "an id that no gateway has made"
            assert text == held.client_id
            assert held.engine_id == text[:-_TAG_CHARACTERS]
    return known, rewritten(data)


def rewritten(data: bytes) -> bool:
    """Checks that a rewritten answer differs by the id alone, whatever its pieces are."""
    match = _ENGINE_ID.search(data)
    rewriter = ResponseIdRewriter(_IDS, _INSTANCES[0].id, _ACME, None)
    out = rewriter.rewrite(data)
    if match is None:
        assert out == data, "changed without an id"
        return False
    engine_id = match[1].decode()
    client_id = _IDS.client_id(engine_id, _INSTANCES[0].id, _ACME)
    assert b'"%b"' % client_id.encode() in out, "the id of the engine stays"
    if client_id.encode() not in data:
        assert out.replace(client_id.encode(), match[1]) == data, "more is changed than the id"
    held = find(client_id, _ACME)
    assert held is not None
    assert (held.engine_id, held.instance_id) == (engine_id, _INSTANCES[0].id)
    assert rewriter.rewrite(data) == out, "the second time is another one"
    at = match.end()
    first, last = ResponseIdRewriter(_IDS, _INSTANCES[0].id, _ACME, None).rewrite_events([data[:at], data[at:]])
    assert first + last == out, "cut otherwise, other bytes"
    return True


def grow(draw: Callable[[], float]) -> bytes:
    """Writes an answer, or an id of a gateway with another character in some place."""
    own = _OWN[int(draw() * len(_OWN))].encode()
    if draw() < 0.5:
        at = int(draw() * len(own))
        return own[:at] + bytes((45 + int(draw() * 78),)) + own[at + int(draw() * 2) :]
    return b'{"id":"%b","previous_response_id":"%b","output":[]}' % (own[: int(draw() * 99)], own)


_SEEDS = [
    *(own.encode() for own in _OWN),
    b'{"id":"resp_1","output":[{"id":"msg_1","text":"\\"id\\":\\"resp_9\\""}],"previous_response_id":null}',
    b'event: response.created\ndata: {"response":{"id": "resp_a-b","error":"no \'resp_a-b\'"}}\n\n',
    b'{"response_id":"resp_2","id":"resp_2","metadata":{"id":"resp_7"}}',
]
_WORDS = [b"resp_", b'"id":"resp_1"', b'"id": "', b'"response_id":"', b"'resp_1'", b'"resp_1"', b'\\"', b"=", b"-", b"_",
          b"+", b"/", b"A", b"\xc3\xa9", b"\0", b"\xff", b"{", b"}", b",", b'"', *(own.encode() for own in _OWN)]  # fmt: skip
_PIECES = re.compile(rb"[A-Za-z0-9_-]+|[^A-Za-z0-9_-]")
RESPONSE_IDS = Target("response_ids", "ids of stored responses", check, _SEEDS, _WORDS, _PIECES, 0.02, grow)

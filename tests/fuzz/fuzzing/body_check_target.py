"""A fuzz target: the checking process of large bodies, and the protocol between it and a worker.

A body means the same whether the worker parses it or the checking process does; a bad body gets the
same error. The messages are encoded and decoded, as between processes.
"""

import re
from collections.abc import Callable, Hashable
from io import BytesIO
from zlib import crc32

import msgspec
from fuzzing.splice_target import FLEET, HEAD, grow
from fuzzing.splice_target import SEEDS as BODY_SEEDS
from fuzzing.splice_target import WORDS as BODY_WORDS
from fuzzing.target import Target, refused

from fairlead.limits import Limits
from fairlead_gateway.body_check.messages import BodyQuery
from fairlead_gateway.body_check.process import reply_of
from fairlead_gateway.body_check.worker.client import BodyChecker
from fairlead_gateway.dialects.table import BODY_TYPES
from fairlead_gateway.errors import BadRequest, GatewayError
from fairlead_gateway.ipc.child_process import LENGTH_BYTES, ChildProcess, Reply, encode_frame, serve
from fairlead_gateway.openai.body_parser import ModelRequest, parse_body
from fairlead_gateway.openai.request import bind_by_name, build_route_request
from fairlead_gateway.routing.prefix.prefix_hash import ChainStarts

LIMITS = Limits(name_bytes=200, json_depth=12, json_values=200, json_containers=60, stop_bytes=60)
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/v1/chat/completions")
_MAX_REPLY_BYTES = 16_384


class DirectChild(ChildProcess):
    """The checking process's own code, without a process."""

    def exchange(self, query: object, reply_type: type[Reply], body: bytes = b"") -> Reply:
        """Returns the reply to a query."""
        queries, replies = BytesIO(encode_frame(query) + body), BytesIO()
        serve(queries, replies, BodyQuery, reply_of(queries, LIMITS))
        frame = replies.getvalue()
        assert len(frame) < _MAX_REPLY_BYTES, "the reply grows with the body"
        assert int.from_bytes(frame[:LENGTH_BYTES], "big") == len(frame) - LENGTH_BYTES
        return msgspec.msgpack.decode(frame[LENGTH_BYTES:], type=reply_type)


_CHECKER = BodyChecker(LIMITS)
_CHECKER._child = DirectChild("checking", (), {}, reply_seconds=1)


def check(body: bytes) -> Hashable:
    """Checks that the worker and the checking process agree."""
    path = _PATHS[crc32(body) % len(_PATHS)]
    kind = BODY_TYPES[path]
    own = result_of(lambda: parse_body(kind, body, LIMITS))
    checked = result_of(lambda: _CHECKER.parse_body(kind, body))
    if isinstance(own, BadRequest):
        assert isinstance(checked, BadRequest), "the process accepts what the worker refuses"
        assert described(checked) == described(own)
        refused(own)
        return path, own.code, own.param
    if isinstance(checked, BadRequest):
        refused(checked)
        assert checked.code == "out_of_range", "the process refuses what the worker accepts"
        assert len(body) > LIMITS.name_bytes
        return path, "long", checked.param
    has_members = own.members is not None
    mine, its = request_of(path, own), request_of(path, checked)
    assert mine == its, "the process sees another request"
    return path, own.stream, own.is_passthrough, not has_members, own.messages_end > 0, str(mine)[:12]


def result_of(parse: Callable[[], ModelRequest]) -> ModelRequest | BadRequest:
    """Returns what `parse` returns or raises."""
    try:
        return parse()
    except BadRequest as error:
        return error


def described(error: BadRequest) -> tuple[object, ...]:
    """Returns what a client sees of an error."""
    return error.status, error.message, error.param, error.code, error.hint


def request_of(path: str, request: ModelRequest) -> object:
    """Returns what later stages read of a body, or their error."""
    try:
        bind_by_name(path, request, FLEET, LIMITS)
    except GatewayError as error:
        refused(error)
        return error.code, error.param
    route = build_route_request(request, HEAD, "r", ChainStarts(b"secret"))
    flags = request.model_name, request.session, request.max_tokens, request.stream, request.has_cache_variants
    return (
        *flags,
        request.is_passthrough,
        request.strip_usage,
        route.chain,
        route.prompt_tokens,
        request.body,
        texts(path, request),
    )


def texts(path: str, request: ModelRequest) -> object:
    """Returns the messages of a chat."""
    return request.messages() if path == _PATHS[0] else None


WORDS = [
    *BODY_WORDS, b'"user":"' + b"u" * 300 + b'"', b'"stream_options":{"x":"' + b"y" * 300 + b'"}', b'"suffix":"s"',
    b'"tool_choice":"auto"', b'"tool_choice":{"type":"function"}', b'"priority":1', b'"rid":"a"', b'"lora_path":"/x"',
    b'"messages":[{"role":"user","content":"hi","x":1}]', b'"prompt":["x","x"]', b'"x":"x"', b'"input":["x"]',
]  # fmt: skip
PIECES = re.compile(rb'"(?:[^"\\]|\\.)*"?|[{}\[\],:]|[^"{}\[\],:]+', re.DOTALL)
SEEDS = [
    *BODY_SEEDS,
    b'{"suffix":"x","prompt":"x","model":"tiny"}',
    b'{"user":"[1]","input":[1],"model":"default/tiny"}',
    b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],"tools":[{"type":"function","function":{"name":"f"}}]}',
]
BODY_CHECK = Target("body_check", "bodies that a process checks", check, SEEDS, WORDS, PIECES, 0.04, grow)

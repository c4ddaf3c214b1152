"""Room 2, model: from a body to the model that the client means, and to the body that an engine may get.

A client names a model ``namespace/name``, or by its bare name where that is unique; an engine knows the bare name only. Other
changes that are ever made to a body: the usage of a stream is asked for, which engines tell only when asked, and fields
with which engines hand over caches are cut out (``handoff``).
"""

import msgspec
from msgspec import UNSET

from fairlead.fleet.model import Fleet, Model
from fairlead.limits import Limits
from fairlead_gateway.worker.openai.body_parser import ParsedBody, parse_body
from fairlead_gateway.worker.openai.json_edit import prepend_members, set_members
from fairlead_gateway.worker.openai.kv_transfer_fields import strip_kv_transfer_fields
from fairlead_gateway.worker.openai.model_names import resolve_model_entry
from fairlead_gateway.worker.openai.schemas import (
    ChatRequest,
    CommonFields,
    CompletionRequest,
    EmbeddingRequest,
    GenerationFields,
    GenericRequest,
)
from fairlead_gateway.worker.openai.validation import decode_stream_options

BODY_TYPES: dict[str, type[CommonFields]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    **dict.fromkeys(("/tokenize", "/detokenize"), GenericRequest),
    **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), GenericRequest),
    **dict.fromkeys(("/score", "/v1/score", "/classify", "/v1/classify"), GenericRequest),
}


class ModelRequest:
    """A request that was understood. ``body`` goes to the engine, ``given`` is what the client sent; ``strip_usage``: the client did
    not ask for it. A passed-on one has its own ``method`` and ``target``; of what is ``opaque`` neither prompt nor answer are
    understood here. ``max_tokens`` is what the client allows the answer to be."""

    __slots__ = (
        "body",
        "client_body",
        "fields",
        "has_cache_variants",
        "is_passthrough",
        "max_tokens",
        "messages_end",
        "messages_start",
        "method",
        "model",
        "model_key",
        "session",
        "stream",
        "strip_usage",
        "target",
    )

    def __init__(
        self,
        parsed: ParsedBody,
        model_key: str,
        model: Model,
        body: bytes,
        *,
        client_body: bytes = b"",
        strip_usage: bool = False,
        method: str = "POST",
        target: str | None = None,
    ) -> None:
        self.fields = parsed.fields
        self.model_key = model_key
        self.model = model
        self.body = body
        self.client_body = client_body
        self.messages_start: int = parsed.messages_start
        self.messages_end: int = parsed.messages_end
        self.stream: bool = parsed.stream
        self.strip_usage = strip_usage
        self.max_tokens = parsed.max_tokens
        self.session = parsed.session
        self.has_cache_variants: bool = parsed.has_cache_variants
        self.is_passthrough: bool = parsed.is_passthrough
        self.method = method
        self.target = target

    def messages(self) -> bytes:
        """The JSON text of a chat's messages."""
        if self.messages_end:
            return self.client_body[self.messages_start - 1 : self.messages_end + 1]
        return bytes(self.fields.messages) if isinstance(self.fields, ChatRequest) else b""

    def release_body(self) -> None:
        """Let the prompt go, when nobody will be asked again."""
        self.body = self.client_body = b""
        self.fields.release_body()


def parse_request(path: str, body: bytes, fleet: Fleet, limits: Limits) -> ModelRequest:
    """Read a request for a model. Raises BadRequest naming the field, UnknownModel naming near ones."""
    given, asked = body, parse_body(BODY_TYPES[path], body, limits)
    if asked.may_carry_kv_transfer:
        body = strip_kv_transfer_fields(body)
    key, model = resolve_model_entry(asked.model, fleet)
    name = model.name
    if asked.model == name and not asked.stream:
        return ModelRequest(asked, key, model, body, client_body=given)
    changes: dict[str, bytes] = {}
    new: dict[str, bytes] = {}
    if asked.model != name:
        changes["model"] = msgspec.json.encode(name)
    parsed = asked.fields
    strip = False
    if asked.stream and isinstance(parsed, GenerationFields):
        options = decode_stream_options(parsed, limits)
        # With continuous statistics the client would see more than it asked for; its usage is read from its own events.
        strip = options is None or not (options.include_usage or options.continuous_usage_stats)
        if strip:
            own = bytes(parsed.stream_options) if options is not None and parsed.stream_options else b"{}"
            asking = set_members(own, {"include_usage": b"true"})
            (new if parsed.stream_options is UNSET else changes)["stream_options"] = asking
    body = set_members(body, changes) if changes else body
    return ModelRequest(
        asked, key, model, prepend_members(body, new) if new else body, client_body=given, strip_usage=strip
    )

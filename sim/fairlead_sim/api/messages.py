"""``/v1/messages``: Anthropic's form of generation, with its errors, usage and events."""

import json
from typing import Any

from fairlead_sim.api.app import RequestContext
from fairlead_sim.engine.chat_template import BILLING_HEADER
from fairlead_sim.generation import reply_script, requests
from fairlead_sim.generation.reply_parser import ReplyDelta, is_json
from fairlead_sim.generation.requests import GenerationRequest, injected_token_ids, validate_named
from fairlead_sim.generation.responses import GenerationResponse, ResponseChoice, ResponseHost
from fairlead_sim.generation.streaming import PartStream, json_bytes
from fairlead_sim.http.connection import ResponseWriter, http_chunk
from fairlead_sim.http.errors import InvalidRequest
from fairlead_sim.http.fields import NO_OBJECT, RequestFields, json_body

_ROLES = ("user", "assistant", "system")
_BLOCKS = (
    *("text", "image", "tool_use", "tool_result", "tool_reference", "thinking", "redacted_thinking"),
    *("tool_addition", "tool_removal"),
)
_STOPS = {"length": "max_tokens", "stop": "end_turn"}
_DELTAS = {
    "content": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}
_CHOICES = {"any": "required", "tool": "named"}


def create_message(context: RequestContext) -> None:
    engine = context.engine
    fields = RequestFields(json_body(context.request))
    generation_request = requests.parse_common(fields, context.request, engine.new_id())
    fields.require("max_tokens")
    generation_request.max_tokens = fields.integer("max_tokens")
    if generation_request.max_tokens is not None and generation_request.max_tokens <= 0:
        fields.add_value_error("max_tokens", "max_tokens must be positive", generation_request.max_tokens)
    stops = fields.items("stop_sequences")
    generation_request.n, generation_request.stop = 1, () if stops is None else fields.strings("stop_sequences")
    choice = fields.mapping("tool_choice") or {}
    if choice.get("type") == "tool" and not choice.get("name"):
        fields.add_value_error("tool_choice", "tool_choice.name is required when type is 'tool'", choice)
    thinking = fields.mapping("thinking") or {}
    budget = thinking.get("budget_tokens") if thinking.get("type") == "enabled" else None
    if isinstance(budget, int) and budget >= (generation_request.max_tokens or budget + 1):
        fields.add_value_error("", "thinking.budget_tokens must be less than max_tokens", fields.body)
    output = fields.mapping("output_config") or {}
    turns, tools = message_turns(fields)
    if isinstance(output.get("format"), dict):
        generation_request.forced_text = reply_script.parse_forced_text(
            RequestFields({"structured_outputs": {"json": output["format"].get("schema")}})
        )
    engine.models.resolve(generation_request)
    kind = choice.get("type", "auto" if tools else "none")
    name = choice.get("name") if kind == "tool" else None
    engine.prompt_parser.require_tool_parser(_CHOICES.get(kind, kind), name)
    engine.prompt_parser.apply_tool_choice(generation_request, tools, _CHOICES.get(kind, kind), name, one_call=False)
    requests.validate_sampling(fields, generation_request)
    prompt = engine.prompt_parser.from_chat(turns, tools=tools, injected=injected_token_ids(fields))
    generation_request.prompts = [prompt]
    context.begin(generation_request, AnthropicMessage, AnthropicMessageStream)


def count_tokens(context: RequestContext) -> None:
    """Sends the length of the prompt in tokens."""
    engine = context.engine
    fields = RequestFields(json_body(context.request))
    generation_request = GenerationRequest(model=fields.text("model") or "", request_id="")
    turns, tools = message_turns(fields)
    engine.models.resolve(generation_request)
    generation_request.prompts = [engine.prompt_parser.from_chat(turns, tools=tools)]
    requests.validate_prompts(generation_request, engine.settings.max_model_len, engine.tokenizer.vocab_size)
    count = len(generation_request.prompts[0].tokens)
    body = {"input_tokens": count, "context_management": {"original_input_tokens": count}}
    context.writer.send(200, json_bytes(body))


def message_turns(fields: RequestFields) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the turns and tools of the chat request that vLLM makes of a message request.

    Raises MalformedRequest for these and earlier findings.
    """
    if fields.require("model") == "":
        fields.add_value_error("model", "Model is required", "")
    turns: list[dict[str, Any]] = []
    if not isinstance(fields.body.get("system"), list):
        fields.text("system")
    system = _system_text(fields.body.get("system"), keeps_string=True)
    if system:
        turns.append({"role": "system", "content": system})
    messages = _parse_messages(fields)
    tools = fields.items("tools") or []
    validate_named(fields, "tools", tools)
    for at, tool in enumerate(tools):
        if isinstance(tool, dict) and not isinstance(tool.get("input_schema"), dict):
            fields.add_wrong("missing", f"tools.{at}.input_schema", "Field required", tool)
    fields.check()
    for message in messages:
        turns += _turns_of(message)
    return turns, list(map(_chat_tool, tools))


def _parse_messages(fields: RequestFields) -> list[dict[str, Any]]:
    if "messages" not in fields.body:
        fields.add_missing("messages")
    messages = fields.items("messages") or []
    for at, message in enumerate(messages):
        where = f"messages.{at}"
        if not isinstance(message, dict):
            fields.add_wrong("model_attributes_type", where, NO_OBJECT, message)
            continue
        fields.add_unless_literal(f"{where}.role", message, _ROLES)
        content = message.get("content")
        if "content" not in message:
            fields.add_wrong("missing", f"{where}.content", "Field required", message)
        elif not isinstance(content, str):
            before = len(fields.findings)
            fields.add_wrong("string_type", f"{where}.content", "Input should be a valid string", content)
            for number, block in enumerate(content if isinstance(content, list) else ()):
                if isinstance(block, dict):
                    fields.add_unless_literal(f"{where}.content.{number}.type", block, _BLOCKS)
                else:
                    fields.add_wrong("model_attributes_type", f"{where}.content.{number}", NO_OBJECT, block)
            if isinstance(content, list) and len(fields.findings) == before + 1:
                fields.findings.pop()
    return messages


def _system_text(system: Any, *, keeps_string: bool = False) -> str:
    """Returns the text of a system prompt without the blocks that begin with a billing header.

    keeps_string: a string stays; the chat template leaves out its first line.
    """
    if isinstance(system, str):
        return system if keeps_string or not system.startswith(BILLING_HEADER) else ""
    listed = system if isinstance(system, list) else ()
    blocks = [block for block in listed if isinstance(block, dict) and block.get("type") == "text"]
    texts = [text for block in blocks if isinstance(text := block.get("text"), str)]
    return "".join(text for text in texts if not text.startswith(BILLING_HEADER))


def _turns_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the chat turns of one message: the tool results first, then what else it has."""
    role, content = message["role"], message["content"]
    if role == "system":
        text = _system_text(content)
        return [{"role": role, "content": text}] if text else []
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    turn: dict[str, Any] = {"role": role}
    results, parts = [], []
    for block in content:
        kind = block["type"]
        if kind == "text" and block.get("text"):
            parts.append(block["text"])
        elif kind == "image" and block.get("source"):
            raise InvalidRequest("The model is not a multimodal model")
        elif kind == "thinking" and block.get("thinking") is not None:
            turn["reasoning"] = turn.get("reasoning", "") + str(block["thinking"])
        elif kind == "tool_use":
            function = {"name": block.get("name") or "", "arguments": json.dumps(block.get("input") or {})}
            turn.setdefault("tool_calls", []).append({"function": function})
        elif kind == "tool_result" and role == "user":
            results.append({"role": "tool", "content": _result_text(block.get("content"))})
        elif kind == "tool_result":
            parts.append(f"Tool result: {block.get('content') or ''}")
    if parts:
        turn["content"] = parts
    return [*results, turn] if parts or role != "user" else results


def _result_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    items = content if isinstance(content, list) else ()
    blocks = [item for item in items if isinstance(item, dict) and item.get("type") == "text"]
    return "\n".join(str(block.get("text", "")) for block in blocks)


def _chat_tool(tool: dict[str, Any]) -> dict[str, Any]:
    schema = tool["input_schema"]
    return {"function": tool | {"parameters": schema if "type" in schema else schema | {"type": "object"}}}


def _message_usage(response: GenerationResponse) -> dict[str, int]:
    if not response.host.reports_details:
        return {"input_tokens": response.prompt_tokens, "output_tokens": response.completion_tokens}
    cached, created = response.cached_tokens, response.created_cache_tokens
    return {
        "input_tokens": response.prompt_tokens - cached - created,
        "output_tokens": response.completion_tokens,
        "cache_creation_input_tokens": created,
        "cache_read_input_tokens": cached,
    }


def _stop_fields(choice: ResponseChoice, *, called: bool, complete: bool) -> dict[str, str | None]:
    """Returns ``stop_reason`` and ``stop_sequence``.

    - called: the reply has a tool call.
    - complete: the last call is whole.
    """
    reason, stop = choice.reason, choice.stop_reason
    if reason == "stop" and not complete and isinstance(stop, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    reason = "tool_use" if reason == "stop" and called else _STOPS.get(reason or "")
    return {"stop_reason": reason, "stop_sequence": None}


class AnthropicMessage(GenerationResponse):
    """The JSON object of one message."""

    id_prefix = "chatcmpl-"

    def finish(self) -> None:
        choice, reply = self.choices[0], self.choices[0].parsed_reply
        content: list[dict[str, Any]] = []
        if reply.reasoning:
            content.append({"type": "thinking", "thinking": reply.reasoning, "signature": _signature(self.host)})
        if reply.content:
            content.append({"type": "text", "text": reply.content})
        for call in reply.calls:
            content.append(_tool_block(self.host.new_id(), call.name) | {"input": json.loads(call.arguments)})
        stops = _stop_fields(choice, called=bool(reply.calls), complete=bool(reply.calls))
        body = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": content or [{"type": "text", "text": ""}],
            "model": self.request.model,
            **{name: value for name, value in stops.items() if value is not None},
            "usage": _message_usage(self),
        }
        if (transfer := self.host.transfer_params(self)) is not None:
            body["kv_transfer_params"] = transfer
        self.writer.send(200, json_bytes(body))


def _signature(host: ResponseHost) -> str:
    return host.new_id() + host.new_id()


def _tool_block(number: str, name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"chatcmpl-tool-{number}", "name": name, "input": {}}


class AnthropicMessageStream(PartStream):
    """A stream of named events around the blocks of a message."""

    id_prefix = "chatcmpl-"

    def __init__(self, host: ResponseHost, generation_request: GenerationRequest, writer: ResponseWriter) -> None:
        super().__init__(host, generation_request, writer)
        self._index = 0
        self._arguments: str | None = None  # of the latest call

    def frame_event(self, event: bytes) -> bytes:
        return b"event: content_block_delta\ndata: %b\n\n" % event

    def opening_events(self) -> bytes:
        super().opening_events()
        message: dict[str, object] = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self.request.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": self.prompt_tokens, "output_tokens": 0},
        }
        return _named_event("message_start", message=message)

    def token_event(self, choice: ResponseChoice, text: bytes, ids: list[int], reason: str | None) -> bytes:
        return b'{"type":"content_block_delta","delta":{"type":"text_delta","text":"%b"},"index":0}' % text

    def open_part(self, delta: ReplyDelta) -> bytes:
        if delta.name is not None:
            block = _tool_block(self.host.new_id(), delta.name)
            self._arguments = ""
        elif delta.kind == "reasoning":
            block = {"type": "thinking", "thinking": ""}
        else:
            block = {"type": "text", "text": ""}
        return _named_event("content_block_start", content_block=block, index=self._index)

    def grow_part(self, delta: ReplyDelta) -> bytes:
        kind, name = _DELTAS[delta.kind]
        if delta.kind == "call" and self._arguments is not None:
            self._arguments += delta.text
        return self._delta_event({"type": kind, name: delta.text})

    def close_part(self) -> bytes:
        if self.part is None:
            return b""
        chunks = b""
        if self.part.kind == "reasoning":
            chunks = self._delta_event({"type": "signature_delta", "signature": _signature(self.host)})
        chunks += _named_event("content_block_stop", index=self._index)
        self._index += 1
        return chunks

    def closing_events(self) -> bytes:
        called = self._arguments is not None
        stops = _stop_fields(self.choices[0], called=called, complete=called and is_json(self._arguments or ""))
        return (
            self.close_part()
            + _named_event("message_delta", delta=stops, usage=_message_usage(self))
            + _named_event("message_stop")
        )

    def _delta_event(self, delta: dict[str, str]) -> bytes:
        return _named_event("content_block_delta", delta=delta, index=self._index)


def _named_event(kind: str, **parts: object) -> bytes:
    return http_chunk(b"event: %b\ndata: %b\n\n" % (kind.encode(), json_bytes({"type": kind, **parts})))

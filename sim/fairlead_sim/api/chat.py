"""``/v1/chat/completions``: a conversation in the fixed template, whole or as a stream."""

from typing import Any

from fairlead_sim.api.app import RequestContext
from fairlead_sim.generation import reply_script, requests
from fairlead_sim.generation.reply_parser import ReplyDelta
from fairlead_sim.generation.requests import (
    GenerationRequest,
    PromptParser,
    injected_token_ids,
    parse_messages,
    parse_tools,
)
from fairlead_sim.generation.responses import GenerationResponse, ResponseChoice, ResponseHost
from fairlead_sim.generation.streaming import DONE_CHUNK, StreamingChoice, StreamingResponse, json_bytes
from fairlead_sim.http.connection import HttpRequest, ResponseWriter, http_chunk
from fairlead_sim.http.errors import InvalidRequest, MalformedRequest
from fairlead_sim.http.fields import RequestFields, json_body


def create_chat_completion(context: RequestContext) -> None:
    engine = context.engine
    context.require_generation()
    fields = RequestFields(json_body(context.request))
    generation_request = parse_chat_request(fields, context.request, engine.new_id(), engine.prompt_parser)
    context.begin(generation_request, ChatCompletion, ChatCompletionStream)


def parse_chat_request(
    fields: RequestFields, request: HttpRequest, request_id: str, prompt_parser: PromptParser
) -> GenerationRequest:
    """Returns the request of a chat body.

    Raises MalformedRequest, ResourceNotFound or InvalidRequest.
    """
    _validate_tool_usage(fields.body)
    generation_request = requests.parse_common(fields, request, request_id)
    latest, older = fields.integer("max_completion_tokens"), fields.integer("max_tokens")
    generation_request.max_tokens = older if latest is None else latest
    wants_logprobs, top = fields.flag("logprobs"), fields.integer("top_logprobs")
    messages, tools = parse_messages(fields), parse_tools(fields)
    unfinished = _continues_last_message(fields, messages)
    injected = injected_token_ids(fields)
    one_call = not fields.flag("parallel_tool_calls", True)
    template_options = fields.mapping("chat_template_kwargs") or {}
    generation_request.may_reason = template_options.get("enable_thinking", True) is not False
    fields.check()
    prompt_parser.resolve_model(generation_request)
    if top is not None and not wants_logprobs:
        raise InvalidRequest.for_value(
            "when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs", top
        )
    generation_request.logprobs = (top or 0) if wants_logprobs else None
    generation_request.uses_cache = generation_request.prompt_logprobs is None
    choice = fields.body.get("tool_choice") or ("auto" if tools else "none")
    name = choice["function"]["name"] if isinstance(choice, dict) else None
    prompt_parser.require_tool_parser(choice, name)
    prompt_parser.apply_tool_choice(generation_request, tools, choice, name, one_call=one_call)
    requests.validate_sampling(fields, generation_request)
    prompt = prompt_parser.from_chat(messages, tools=tools, unfinished=unfinished, injected=injected)
    generation_request.prompts = [prompt]
    return generation_request


def _continues_last_message(fields: RequestFields, messages: list[dict[str, Any]]) -> bool:
    """Whether the answer continues the last message.

    Raises MalformedRequest if a generation prompt is requested as well.
    """
    continues = fields.flag("continue_final_message")
    if continues and fields.flag("add_generation_prompt", True):
        raise MalformedRequest(
            ["Value error, Cannot set both `continue_final_message` and `add_generation_prompt` to True."]
        )
    return continues and bool(messages)


def _validate_tool_usage(body: dict[str, Any]) -> None:
    """Raises InvalidRequest where vLLM does before it looks at types."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    listed = tools if isinstance(tools, list) else ()
    functions = [tool.get("function") for tool in listed if isinstance(tool, dict)]
    problem, param = None, "tool_choice"
    if tools == []:
        problem = "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely."
        param = "tools"
    elif choice is None or choice == "none":
        return
    elif tools is None:
        problem = "When using `tool_choice`, `tools` must be set."
    elif isinstance(choice, dict) and not isinstance(name, str):
        usage = 'Correct usage: `{"type": "function", "function": {"name": "my_function"}}`'
        problem, param = f"Invalid value for `function`: `{function}` in `tool_choice`! {usage}", "tool_choice.function"
    elif isinstance(choice, dict) and name not in [known.get("name") for known in functions if isinstance(known, dict)]:
        problem = "The tool specified in `tool_choice` does not match any of the specified `tools`"
    elif not isinstance(choice, dict) and choice not in ("auto", "required"):
        named = 'Only named tools, "none", "auto" or "required" are supported.'
        problem = f"Invalid value for `tool_choice`: {choice}! {named}"
    if problem is not None:
        raise InvalidRequest.for_param(problem, param)


class ChatCompletion(GenerationResponse):
    """The JSON object with all choices."""

    id_prefix = "chatcmpl-"

    def finish(self) -> None:
        generation_request = self.request
        prompt = generation_request.prompts[0].tokens
        prompt_logprob_count = generation_request.prompt_logprobs
        body = {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": generation_request.model,
            "choices": [self._choice(choice) for choice in self.choices],
            "service_tier": None,
            "system_fingerprint": self.host.fingerprint,
            "usage": self.usage(self.created_cache_tokens),
            "prompt_logprobs": reply_script.prompt_logprobs(self.host.tokenizer, prompt, prompt_logprob_count)
            if prompt_logprob_count is not None
            else None,
            "prompt_token_ids": prompt if generation_request.return_token_ids else None,
            "prompt_text": None,
            "kv_transfer_params": self.host.transfer_params(self),
            "ec_transfer_params": None,
            "metrics": None,
        }
        self.writer.send(200, json_bytes(body))

    def _choice(self, choice: ResponseChoice) -> dict[str, Any]:
        generation_request = self.request
        choice_logprobs = None
        if generation_request.logprobs is not None:
            choice_logprobs = reply_script.chat_logprobs(
                self.host.tokenizer, choice.ids, 0, generation_request.logprobs
            )
        reply = choice.parsed_reply
        forced = generation_request.tool_choice in ("required", "named")
        message: dict[str, Any] = {
            "role": "assistant",
            "content": reply.content or "" if forced else reply.content,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
        }
        if reply.calls:
            message["tool_calls"] = [
                {
                    "id": f"chatcmpl-tool-{self.host.new_id()}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in reply.calls
            ]
        called = bool(reply.calls) if generation_request.tool_choice == "auto" else choice.reason == "stop"
        calls = generation_request.tool_choice in ("auto", "required") and called
        return {
            "index": choice.index,
            "message": message | {"reasoning": reply.reasoning},
            "logprobs": choice_logprobs,
            "finish_reason": "tool_calls" if calls else choice.reason,
            "stop_reason": choice.stop_reason,
            "token_ids": choice.ids if generation_request.return_token_ids else None,
            "routed_experts": None,
        }


class ChatCompletionStream(StreamingResponse):
    """A stream of a role event per choice and an event per token."""

    id_prefix = "chatcmpl-"
    reports_token_ids = True

    def __init__(self, host: ResponseHost, generation_request: GenerationRequest, writer: ResponseWriter) -> None:
        super().__init__(host, generation_request, writer)
        self._called: set[int] = set()  # choices with a tool call
        self._opening = b'{"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,"choices":[' % (
            json_bytes(self.id),
            self.created,
            json_bytes(generation_request.model),
        )

    def opening_events(self) -> bytes:
        super().opening_events()
        prompt = self.request.prompts[0].tokens
        ids = json_bytes(prompt) if self.request.return_token_ids else b"null"
        usage = b""
        if self.request.continuous_usage:
            reasoning = b'{"reasoning_tokens":0}' if self.host.parses_reasoning else b"null"
            usage = (
                b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":0,"completion_tokens_details":%b}'
                % (len(prompt), len(prompt), reasoning)
            )
        events = [
            b'data: %b{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]%b,'
            b'"prompt_token_ids":%b,"prompt_text":null}\n\n' % (self._opening, choice.index, usage, ids)
            for choice in self.choices
        ]
        return b"".join(map(http_chunk, events))

    def step_chunks(
        self, choice: StreamingChoice, deltas: list[ReplyDelta], ids: list[int], reason: str | None
    ) -> bytes:
        if not choice.is_parsed and (deltas[0].text or not self.host.parses_tools):
            return super().step_chunks(choice, deltas, ids, reason)
        deltas = [delta for delta in deltas if delta.text or delta.name is not None]
        if not deltas and reason is None and self.request.logprobs is None and not self.request.return_token_ids:
            return b""
        message: dict[str, Any] = {}
        for delta in deltas:
            if delta.kind != "call":
                message[delta.kind] = delta.text
                continue
            call: dict[str, Any] = {"index": delta.number, "function": {"arguments": delta.text}}
            if delta.name is not None:
                self._called.add(choice.index)
                call = {"id": f"chatcmpl-tool-{self.host.new_id()}", "type": "function", "index": delta.number}
                call["function"] = {"name": delta.name}
            message = {"content": None} | message
            if not (delta.number and self.request.markup.one_call):
                message.setdefault("tool_calls", []).append(call)
        if reason == "stop" and choice.index in self._called and self.request.tool_choice != "named":
            reason = "tool_calls"
        return http_chunk(self.frame_event(self._event(choice, json_bytes(message), ids, reason)))

    def token_event(self, choice: ResponseChoice, text: bytes, ids: list[int], reason: str | None) -> bytes:
        return self._event(choice, b'{"content":"%b"}' % text, ids, reason)

    def _event(self, choice: ResponseChoice, delta: bytes, ids: list[int], reason: str | None) -> bytes:
        generation_request = self.request
        token_logprobs = token_ids = b"null"
        if generation_request.logprobs is not None:
            at = max(0, choice.delivered - 1)
            token_logprobs = json_bytes(
                reply_script.chat_logprobs(self.host.tokenizer, ids, at, generation_request.logprobs)
            )
        if generation_request.return_token_ids:
            token_ids = json_bytes(ids)
        stop = b"" if reason is None else b'"stop_reason":%b,' % json_bytes(choice.stop_reason)
        return (b'%b{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b,%b"token_ids":%b}]%b%b}') % (
            self._opening,
            choice.index,
            delta,
            token_logprobs,
            json_bytes(reason),
            stop,
            token_ids,
            self.running_usage(choice, details=True),
            self.fingerprint_field(reason),
        )

    def closing_events(self) -> bytes:
        if not self.request.include_usage:
            return DONE_CHUNK
        fingerprint = json_bytes(self.host.fingerprint)
        usage = b'%b],%b,"system_fingerprint":%b}' % (self._opening, self.final_usage(created=True), fingerprint)
        return http_chunk(b"data: %b\n\n" % usage) + DONE_CHUNK

"""``/v1/chat/completions``: a conversation in the fixed template, whole or as a stream."""

from typing import Any

from fairlead_sim.api.app import RequestContext
from fairlead_sim.generation import reply_script, requests
from fairlead_sim.generation.requests import (
    GenerationRequest,
    PromptParser,
    TokenizedPrompt,
    injected_token_ids,
    parse_messages,
    parse_tools,
)
from fairlead_sim.generation.responses import GenerationResponse, ResponseChoice, ResponseHost
from fairlead_sim.generation.streaming import DONE_CHUNK, StreamingResponse, json_bytes
from fairlead_sim.http.connection import HttpRequest, ResponseWriter, http_chunk
from fairlead_sim.http.errors import InvalidRequest, MalformedRequest
from fairlead_sim.http.fields import RequestFields, json_body

_NO_PARSER = "requires --tool-call-parser to be set"


def create_chat_completion(context: RequestContext) -> None:
    engine = context.engine
    context.require_generation()
    fields = RequestFields(json_body(context.request))
    generation_request = parse_chat_request(fields, context.request, context.new_request_id(), engine.prompt_parser)
    engine.begin(
        generation_request,
        ChatCompletionStream if generation_request.stream else ChatCompletion,
        context.writer,
        context.fault,
    )


def parse_chat_request(
    fields: RequestFields, request: HttpRequest, request_id: str, prompt_parser: PromptParser
) -> GenerationRequest:
    """Returns the request of a chat body.

    Raises MalformedRequest, ResourceNotFound or InvalidRequest.
    """
    generation_request = requests.parse_common(fields, request, request_id)
    latest, older = fields.integer("max_completion_tokens"), fields.integer("max_tokens")
    generation_request.max_tokens = older if latest is None else latest
    wants_logprobs, top = fields.flag("logprobs"), fields.integer("top_logprobs")
    messages, tools = parse_messages(fields), parse_tools(fields)
    unfinished = _continues_last_message(fields, messages)
    injected = injected_token_ids(fields)
    fields.check()
    prompt_parser.resolve_model(generation_request)
    if top is not None and not wants_logprobs:
        raise InvalidRequest.for_value(
            "when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs", top
        )
    generation_request.logprobs = (top or 0) if wants_logprobs else None
    generation_request.uses_cache = generation_request.prompt_logprobs is None
    _validate_tools(fields, auto=prompt_parser.auto_tools)
    requests.validate_sampling(fields, generation_request)
    generation_request.prompts = [
        prompt_parser.from_chat(messages, tools=tools, unfinished=unfinished)
        if injected is None
        else TokenizedPrompt(injected, is_token_ids=True)
    ]
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


def _validate_tools(fields: RequestFields, *, auto: bool) -> None:
    """Checks the tools, which are never called.

    Raises InvalidRequest for a forced call, and for any tools without ``auto``.
    """
    tools, choice = fields.items("tools"), fields.body.get("tool_choice")
    fields.check()
    if not tools or choice == "none":
        return
    if choice == "required":
        raise InvalidRequest(f'tool_choice="required" {_NO_PARSER}')
    if isinstance(choice, dict):
        raise InvalidRequest(f"tool_choice with a named function {_NO_PARSER}")
    if not auto:
        raise InvalidRequest('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set')


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
        return {
            "index": choice.index,
            "message": {
                "role": "assistant",
                "content": choice.text,
                "refusal": None,
                "annotations": None,
                "audio": None,
                "function_call": None,
                "reasoning": None,
            },
            "logprobs": choice_logprobs,
            "finish_reason": choice.reason,
            "stop_reason": choice.stop_reason,
            "token_ids": choice.ids if generation_request.return_token_ids else None,
            "routed_experts": None,
        }


class ChatCompletionStream(StreamingResponse):
    """A stream of a role event per choice and an event per token."""

    id_prefix = "chatcmpl-"

    def __init__(self, host: ResponseHost, generation_request: GenerationRequest, writer: ResponseWriter) -> None:
        super().__init__(host, generation_request, writer)
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
            usage = (
                b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":0,"completion_tokens_details":null}'
                % (len(prompt), len(prompt))
            )
        events = [
            b'data: %b{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]%b,'
            b'"prompt_token_ids":%b,"prompt_text":null}\n\n' % (self._opening, choice.index, usage, ids)
            for choice in self.choices
        ]
        return b"".join(map(http_chunk, events))

    def token_event(self, choice: ResponseChoice, text: bytes, ids: list[int], reason: str | None) -> bytes:
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
        return (b'%b{"index":%d,"delta":{"content":"%b"},"logprobs":%b,"finish_reason":%b,%b"token_ids":%b}]%b%b}') % (
            self._opening,
            choice.index,
            text,
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

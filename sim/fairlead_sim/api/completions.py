"""``/v1/completions``: several prompts with n choices each, whole or as a stream.

``/v1/embeddings``: the prompt is computed, and the answer is a unit vector of its tokens.
"""

import base64
import hashlib
import math
from array import array
from typing import Any

from fairlead_sim.api.app import RequestContext
from fairlead_sim.generation import reply_script, requests
from fairlead_sim.generation.requests import (
    GenerationRequest,
    PromptParser,
    TokenizedPrompt,
    parse_completion_prompts,
    parse_prompts,
)
from fairlead_sim.generation.responses import GenerationResponse, ResponseChoice, ResponseHost
from fairlead_sim.generation.streaming import DONE_CHUNK, StreamingResponse, json_bytes
from fairlead_sim.http.connection import HttpRequest, ResponseWriter, http_chunk
from fairlead_sim.http.errors import InvalidRequest, RouteNotFound
from fairlead_sim.http.fields import RequestFields, json_body


def create_completion(context: RequestContext) -> None:
    engine = context.engine
    context.require_generation()
    fields = RequestFields(json_body(context.request))
    generation_request = parse_completion_request(fields, context.request, engine.new_id(), engine.prompt_parser)
    context.begin(generation_request, TextCompletion, TextCompletionStream)


def parse_completion_request(
    fields: RequestFields, request: HttpRequest, request_id: str, prompt_parser: PromptParser
) -> GenerationRequest:
    """Returns the request of a completions body.

    Raises MalformedRequest, ResourceNotFound or InvalidRequest.
    """
    generation_request = requests.parse_common(fields, request, request_id)
    generation_request.max_tokens = fields.integer("max_tokens", requests.DEFAULT_COMPLETION_TOKENS)
    generation_request.logprobs = fields.integer("logprobs")
    generation_request.echo = fields.flag("echo")
    fields.check()
    prompt_parser.resolve_model(generation_request)
    if fields.body.get("suffix"):
        raise InvalidRequest("suffix is not currently supported")
    if generation_request.echo and generation_request.logprobs is not None:
        generation_request.prompt_logprobs = generation_request.logprobs
    generation_request.uses_cache = generation_request.prompt_logprobs is None
    generation_request.prompts = parse_completion_prompts(fields, prompt_parser)
    requests.validate_sampling(fields, generation_request)
    return generation_request


def _echoed_prompt(response: GenerationResponse, choice: ResponseChoice) -> str:
    """Returns the text of an echoed prompt, else an empty string."""
    if not response.request.echo:
        return ""
    text = choice.prompt.text
    return text if text is not None else response.host.tokenizer.decode(choice.prompt.tokens)


class TextCompletion(GenerationResponse):
    """The JSON object with all choices."""

    def finish(self) -> None:
        body = {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.request.model,
            "choices": [self._choice(choice) for choice in self.choices],
            "service_tier": None,
            "system_fingerprint": self.host.fingerprint,
            "usage": self.usage(None),
            "kv_transfer_params": self.host.transfer_params(self),
            "ec_transfer_params": None,
            "metrics": None,
        }
        self.writer.send(200, json_bytes(body))

    def _choice(self, choice: ResponseChoice) -> dict[str, Any]:
        generation_request, tokenizer = self.request, self.host.tokenizer
        choice_logprobs = None
        if generation_request.logprobs is not None:
            ids = [*choice.prompt.tokens, *choice.ids] if generation_request.echo else choice.ids
            choice_logprobs = reply_script.completion_logprobs(
                tokenizer, ids, generation_request.logprobs, first=generation_request.echo
            )
        prompt_logprob_count = generation_request.prompt_logprobs
        prompt_found = (
            reply_script.prompt_logprobs(tokenizer, choice.prompt.tokens, prompt_logprob_count)
            if prompt_logprob_count is not None
            else None
        )
        return {
            "index": choice.index,
            "text": _echoed_prompt(self, choice) + choice.text,
            "logprobs": choice_logprobs,
            "finish_reason": choice.reason,
            "stop_reason": choice.stop_reason,
            "token_ids": choice.ids if generation_request.return_token_ids else None,
            "prompt_logprobs": prompt_found,
            "prompt_token_ids": choice.prompt.tokens if generation_request.return_token_ids else None,
            "routed_experts": None,
        }


class TextCompletionStream(StreamingResponse):
    """A stream of an event per token; the first event of a choice echoes the prompt on request."""

    reports_token_ids = True

    def __init__(self, host: ResponseHost, generation_request: GenerationRequest, writer: ResponseWriter) -> None:
        super().__init__(host, generation_request, writer)
        self._opening = b'{"id":%b,"object":"text_completion","created":%d,"model":%b,"choices":[' % (
            json_bytes(self.id),
            self.created,
            json_bytes(generation_request.model),
        )

    def token_event(self, choice: ResponseChoice, text: bytes, ids: list[int], reason: str | None) -> bytes:
        generation_request = self.request
        token_logprobs = prompt_ids = token_ids = b"null"
        first = choice.delivered <= 1
        if generation_request.logprobs is not None:
            token_logprobs = json_bytes(
                reply_script.completion_logprobs(
                    self.host.tokenizer, ids, generation_request.logprobs, begin=4 * max(0, choice.delivered - 1)
                )
            )
        if generation_request.return_token_ids:
            token_ids = json_bytes(ids)
            prompt_ids = json_bytes(choice.prompt.tokens) if first else prompt_ids
        if generation_request.echo and first and choice.delivered:
            text = json_bytes(_echoed_prompt(self, choice))[1:-1] + text
        return (
            b'%b{"index":%d,"text":"%b","logprobs":%b,"finish_reason":%b,"stop_reason":%b,'
            b'"prompt_token_ids":%b,"token_ids":%b}]%b%b}'
        ) % (
            self._opening,
            choice.index,
            text,
            token_logprobs,
            json_bytes(reason),
            json_bytes(choice.stop_reason),
            prompt_ids,
            token_ids,
            self.running_usage(choice, details=False),
            self.fingerprint_field(reason),
        )

    def closing_events(self) -> bytes:
        if not self.request.include_usage:
            return DONE_CHUNK
        fingerprint = json_bytes(self.host.fingerprint)
        usage = b'%b],%b,"system_fingerprint":%b}' % (self._opening, self.final_usage(created=False), fingerprint)
        return http_chunk(b"data: %b\n\n" % usage) + DONE_CHUNK


def embeddings(context: RequestContext) -> None:
    engine = context.engine
    if engine.settings.task == "generate":
        raise RouteNotFound
    fields = RequestFields(json_body(context.request))
    generation_request = requests.parse_common(fields, context.request, engine.new_id())
    dimensions = fields.integer("dimensions") or engine.settings.embedding_dimensions
    encoding = fields.text("encoding_format", "float")
    fields.check()
    engine.models.resolve(generation_request)
    if "input" not in fields.body:
        fields.add_missing("input")
    generation_request.prompts = parse_prompts(fields, "input", engine.prompt_parser)
    fields.check()
    if encoding not in ("float", "base64"):
        raise InvalidRequest.for_value("encoding_format must be float or base64", "encoding_format", encoding)
    if not 1 <= dimensions <= 65_536:
        raise InvalidRequest.for_value("dimensions must be from 1 to 65536", "dimensions", dimensions)
    requests.validate_prompts(generation_request, engine.settings.max_model_len, engine.tokenizer.vocab_size)
    response = EmbeddingResponse(engine, generation_request, context.writer)
    response.dimensions = dimensions
    response.is_base64 = encoding == "base64"
    engine.compute(response, generation_request.prompts)


class EmbeddingResponse(GenerationResponse):
    """The JSON object with a vector per input."""

    id_prefix = "embd-"
    dimensions = 1
    is_base64 = False

    def finish(self) -> None:
        tokens = self.prompt_tokens
        body = {
            "id": self.id,
            "object": "list",
            "created": self.created,
            "model": self.request.model,
            "data": [
                {"index": at, "object": "embedding", "embedding": self._vector(choice.prompt)}
                for at, choice in enumerate(self.choices)
            ],
            "usage": {
                "prompt_tokens": tokens,
                "total_tokens": tokens,
                "completion_tokens": 0,
                "prompt_tokens_details": None,
            },
        }
        self.writer.send(200, json_bytes(body))

    def _vector(self, prompt: TokenizedPrompt) -> list[float] | str:
        values = embedding_vector(prompt.tokens, self.dimensions)
        return base64.b64encode(values.tobytes()).decode() if self.is_base64 else list(values)


def embedding_vector(tokens: list[int], dimensions: int) -> "array[float]":
    """Returns a unit vector that depends on every token; equal tokens have equal vectors."""
    numbers = array("H", hashlib.shake_128(array("I", tokens).tobytes()).digest(2 * dimensions))
    centred = [value / 32_767.5 - 1.0 for value in numbers]
    length = math.sqrt(sum(value * value for value in centred)) or 1.0
    return array("f", [value / length for value in centred])

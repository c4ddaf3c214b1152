"""Token endpoints: tokenize, detokenize, render, and generation from token ids."""

from typing import Any

from fairlead_sim.api import chat, completions
from fairlead_sim.api.admin import send_json
from fairlead_sim.api.app import RequestContext
from fairlead_sim.generation import requests
from fairlead_sim.generation.requests import GenerationRequest, TokenizedPrompt, parse_messages, parse_tools
from fairlead_sim.generation.responses import GenerationResponse, ResponseChoice
from fairlead_sim.generation.streaming import json_bytes
from fairlead_sim.http.errors import InvalidRequest
from fairlead_sim.http.fields import RequestFields, json_body


def tokenize(context: RequestContext) -> None:
    """Sends the token ids of a prompt or a conversation."""
    engine = context.engine
    fields = RequestFields(json_body(context.request))
    _resolve_model(context, fields)
    tokenizer = engine.tokenizer
    if "messages" in fields.body:
        messages, tools = parse_messages(fields), parse_tools(fields)
        fields.check()
        tokens = tokenizer.encode_chat(messages, tools=tools)
        if not fields.flag("add_generation_prompt", True):
            tokens = tokens[:-2]
    else:
        fields.require("prompt")
        text = fields.text("prompt")
        fields.check()
        tokens = tokenizer.encode(text or "")
    strings = [tokenizer.printable_piece(token) for token in tokens] if fields.flag("return_token_strs") else None
    fields.check()
    body = {
        "count": len(tokens),
        "max_model_len": engine.settings.max_model_len,
        "tokens": tokens,
        "token_strs": strings,
    }
    send_json(context, body)


def detokenize(context: RequestContext) -> None:
    engine = context.engine
    fields = RequestFields(json_body(context.request))
    _resolve_model(context, fields)
    fields.require("tokens")
    tokens = fields.token_ids("tokens")
    fields.check()
    for token in tokens:
        if not 0 <= token < engine.tokenizer.vocab_size:
            raise InvalidRequest(f"Token id {token} is out of vocabulary")
    send_json(context, {"prompt": engine.tokenizer.decode(tokens)})


def render_chat(context: RequestContext) -> None:
    """Sends the request that ``/v1/chat/completions`` would run."""
    engine = context.engine
    fields = RequestFields(json_body(context.request))
    generation_request = chat.parse_chat_request(fields, context.request, engine.new_id(), engine.prompt_parser)
    requests.validate_prompts(generation_request, engine.settings.max_model_len, engine.tokenizer.vocab_size)
    room = engine.settings.max_model_len - len(generation_request.prompts[0].tokens)
    max_tokens = room if generation_request.max_tokens is None else generation_request.max_tokens
    send_json(
        context,
        _rendered_request(context, fields, generation_request, generation_request.prompts[0], "chatcmpl-", max_tokens),
    )


def render_completions(context: RequestContext) -> None:
    """Sends the requests that ``/v1/completions`` would run, one per prompt."""
    engine = context.engine
    fields = RequestFields(json_body(context.request))
    generation_request = completions.parse_completion_request(
        fields, context.request, engine.new_id(), engine.prompt_parser
    )
    requests.validate_prompts(generation_request, engine.settings.max_model_len, engine.tokenizer.vocab_size)
    max_tokens = (
        None if generation_request.max_tokens == requests.DEFAULT_COMPLETION_TOKENS else generation_request.max_tokens
    )
    send_json(
        context,
        [
            _rendered_request(context, fields, generation_request, prompt, "cmpl-", max_tokens)
            for prompt in generation_request.prompts
        ],
    )


def _rendered_request(
    context: RequestContext,
    fields: RequestFields,
    generation_request: GenerationRequest,
    prompt: TokenizedPrompt,
    prefix: str,
    max_tokens: int | None,
) -> dict[str, Any]:
    offsets = _token_offsets(context, prompt.tokens) if fields.flag("return_token_offsets") else None
    return {
        "request_id": prefix + generation_request.request_id,
        "token_ids": prompt.tokens,
        "token_offsets": offsets,
        "features": None,
        "content_parts": None,
        "sampling_params": _sampling_params(fields, generation_request, max_tokens),
        "model": generation_request.model,
        "reasoning_ended": None,
        "reasoning_parser_kwargs": None,
        "return_token_ids": True if generation_request.return_token_ids else None,
        "output_mode": "tokens",
        "stream": generation_request.stream,
        "stream_options": fields.mapping("stream_options"),
        "cache_salt": generation_request.cache_salt,
        "priority": generation_request.priority,
        "kv_transfer_params": fields.mapping("kv_transfer_params"),
        "ec_transfer_params": None,
    }


def _sampling_params(
    fields: RequestFields, generation_request: GenerationRequest, max_tokens: int | None
) -> dict[str, Any]:
    def number(name: str, default: float) -> float:
        value = fields.number(name, default)
        return default if value is None else value

    params: dict[str, Any] = {
        "presence_penalty": number("presence_penalty", 0.0),
        "frequency_penalty": number("frequency_penalty", 0.0),
        "repetition_penalty": number("repetition_penalty", 1.0),
        "temperature": number("temperature", 1.0),
        "top_p": number("top_p", 1.0),
        "min_p": number("min_p", 0.0),
        "stop": list(generation_request.stop),
        "stop_token_ids": sorted(generation_request.stop_token_ids),
    }
    for name, value, default in (
        ("n", generation_request.n, 1),
        ("seed", generation_request.seed, None),
        ("min_tokens", generation_request.min_tokens, 0),
    ):
        if value != default:
            params[name] = value
    if max_tokens is not None:
        params["max_tokens"] = max_tokens
    return params | {
        "output_kind": 2,
        "skip_clone": True,
        "bad_words": [],
        "skip_reading_prefix_cache": not generation_request.uses_cache,
    }


def _token_offsets(context: RequestContext, tokens: list[int]) -> list[list[int]]:
    """Returns where each token's text begins and ends, in characters."""
    offsets, at = [], 0
    for token in tokens:
        end = at + len(context.engine.tokenizer.piece(token))
        offsets.append([at, end])
        at = end
    return offsets


def generate_from_tokens(context: RequestContext) -> None:
    """Serves ``/inference/v1/generate``: token ids in, token ids out."""
    engine = context.engine
    fields = RequestFields(json_body(context.request))
    generation_request = requests.parse_common(fields, context.request, engine.new_id())
    fields.require("token_ids")
    tokens = fields.token_ids("token_ids")
    fields.require("sampling_params")
    sampling_params = fields.mapping("sampling_params")
    fields.check()
    engine.models.resolve(generation_request)
    sampling = RequestFields(sampling_params, where="body.sampling_params")
    generation_request.max_tokens = sampling.integer("max_tokens", requests.DEFAULT_COMPLETION_TOKENS)
    generation_request.min_tokens = sampling.integer("min_tokens", 0) or 0
    generation_request.seed = sampling.integer("seed")
    generation_request.n = sampling.integer("n", 1) or 0
    generation_request.stop_token_ids = frozenset(sampling.token_ids("stop_token_ids"))
    requests.validate_sampling(sampling, generation_request)
    generation_request.prompts = [TokenizedPrompt(tokens, is_token_ids=True)]
    engine.begin(generation_request, TokensResponse, context.writer, context.fault)


class TokensResponse(GenerationResponse):
    """The response of ``/inference/v1/generate``."""

    id_prefix = "generate-tokens-"

    def finish(self) -> None:
        body = {
            "request_id": self.id,
            "model": self.request.model,
            "created": self.created,
            "usage": self.usage(None),
            "prompt_logprobs": None,
            "prompt_token_id_logprobs": None,
            "prompt_token_ids": None,
            "mm_placeholders": None,
            "metrics": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "output_mode": "tokens",
            "choices": [_choice_fields(choice) for choice in self.choices],
        }
        self.writer.send(200, json_bytes(body))


def _choice_fields(choice: ResponseChoice) -> dict[str, Any]:
    return {
        "index": choice.index,
        "finish_reason": choice.reason,
        "stop_reason": choice.stop_reason,
        "token_ids": choice.ids,
        "routed_experts": None,
        "sampling_mask": None,
        "weight_versions": [{"version": "default", "start": 0, "end": choice.delivered}],
        "logprobs": None,
    }


def _resolve_model(context: RequestContext, fields: RequestFields) -> None:
    generation_request = GenerationRequest(model=fields.text("model") or "", request_id="")
    fields.check()
    context.engine.models.resolve(generation_request)

"""Tokens in and out: ``/tokenize``, ``/detokenize``, the render endpoints, and generation on bare token ids."""

from typing import Any

from fairlead_sim.server import asks, chat, completions
from fairlead_sim.server.answers import Answer, Choice
from fairlead_sim.server.app import Call
from fairlead_sim.server.asks import Ask, Prompt
from fairlead_sim.server.fields import Fields, json_body
from fairlead_sim.server.generating import fresh_id
from fairlead_sim.server.info import answer
from fairlead_sim.server.problems import Refused
from fairlead_sim.server.prompts import conversation
from fairlead_sim.server.streams import quoted


def tokenize(call: Call) -> None:
    """A prompt or a conversation → token ids."""
    engine = call.engine
    fields = Fields(json_body(call.request))
    _resolve(call, fields)
    tokenizer = engine.tokenizer
    if "messages" in fields.body:
        messages = conversation(fields)
        fields.check()
        tokens = tokenizer.chat_tokens(messages)
        if not fields.flag("add_generation_prompt", True):
            tokens = tokens[:-2]
    else:
        fields.required("prompt")
        text = fields.text("prompt")
        fields.check()
        tokens = tokenizer.encode(text or "")
    strings = [tokenizer.symbol(token) for token in tokens] if fields.flag("return_token_strs") else None
    fields.check()
    body = {
        "count": len(tokens),
        "max_model_len": engine.settings.max_model_len,
        "tokens": tokens,
        "token_strs": strings,
    }
    answer(call, body)


def detokenize(call: Call) -> None:
    """Token ids → text."""
    engine = call.engine
    fields = Fields(json_body(call.request))
    _resolve(call, fields)
    fields.required("tokens")
    tokens = fields.token_ids("tokens")
    fields.check()
    for token in tokens:
        if not 0 <= token < engine.tokenizer.vocab_size:
            raise Refused(f"Token id {token} is out of vocabulary")
    answer(call, {"prompt": engine.tokenizer.decode(tokens)})


def render_chat(call: Call) -> None:
    """What ``/v1/chat/completions`` would run, without running it."""
    engine = call.engine
    fields = Fields(json_body(call.request))
    ask = chat.read(fields, call.request, fresh_id(call), engine.frontend)
    asks.fits(ask, engine.settings.max_model_len, engine.tokenizer.vocab_size)
    room = engine.settings.max_model_len - len(ask.prompts[0].tokens)
    wanted = room if ask.max_tokens is None else ask.max_tokens
    answer(call, _rendered(call, fields, ask, ask.prompts[0], "chatcmpl-", wanted))


def render_completions(call: Call) -> None:
    """The same for ``/v1/completions``: a list, one entry a prompt."""
    engine = call.engine
    fields = Fields(json_body(call.request))
    ask = completions.read(fields, call.request, fresh_id(call), engine.frontend)
    asks.fits(ask, engine.settings.max_model_len, engine.tokenizer.vocab_size)
    wanted = None if ask.max_tokens == asks.COMPLETION_TOKENS else ask.max_tokens
    answer(call, [_rendered(call, fields, ask, prompt, "cmpl-", wanted) for prompt in ask.prompts])


def _rendered(
    call: Call, fields: Fields, ask: Ask, prompt: Prompt, prefix: str, max_tokens: int | None
) -> dict[str, Any]:
    offsets = _offsets(call, prompt.tokens) if fields.flag("return_token_offsets") else None
    return {
        "request_id": prefix + ask.request_id,
        "token_ids": prompt.tokens,
        "token_offsets": offsets,
        "features": None,
        "content_parts": None,
        "sampling_params": _sampling(fields, ask, max_tokens),
        "model": ask.model,
        "reasoning_ended": None,
        "reasoning_parser_kwargs": None,
        "return_token_ids": True if ask.return_token_ids else None,
        "output_mode": "tokens",
        "stream": ask.stream,
        "stream_options": fields.mapping("stream_options"),
        "cache_salt": ask.salt,
        "priority": ask.priority,
        "kv_transfer_params": fields.mapping("kv_transfer_params"),
        "ec_transfer_params": None,
    }


def _sampling(fields: Fields, ask: Ask, max_tokens: int | None) -> dict[str, Any]:
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
        "stop": list(ask.stop),
        "stop_token_ids": sorted(ask.stop_token_ids),
    }
    for name, value, default in (("n", ask.n, 1), ("seed", ask.seed, None), ("min_tokens", ask.min_tokens, 0)):
        if value != default:
            params[name] = value
    if max_tokens is not None:
        params["max_tokens"] = max_tokens
    return params | {
        "output_kind": 2,
        "skip_clone": True,
        "bad_words": [],
        "skip_reading_prefix_cache": not ask.lookup,
    }


def _offsets(call: Call, tokens: list[int]) -> list[list[int]]:
    """Where each token's text begins and ends in the rendered text."""
    offsets, at = [], 0
    for token in tokens:
        end = at + len(call.engine.tokenizer.piece(token))
        offsets.append([at, end])
        at = end
    return offsets


def generate(call: Call) -> None:
    """``/inference/v1/generate``: token ids in, token ids out."""
    engine = call.engine
    fields = Fields(json_body(call.request))
    ask = asks.common(fields, call.request, fresh_id(call))
    fields.required("token_ids")
    tokens = fields.token_ids("token_ids")
    fields.required("sampling_params")
    given = fields.mapping("sampling_params")
    fields.check()
    engine.models.resolve(ask)
    sampling = Fields(given, where="body.sampling_params")
    ask.max_tokens = sampling.integer("max_tokens", asks.COMPLETION_TOKENS)
    ask.min_tokens = sampling.integer("min_tokens", 0) or 0
    ask.seed = sampling.integer("seed")
    ask.n = sampling.integer("n", 1) or 0
    ask.stop_token_ids = frozenset(sampling.token_ids("stop_token_ids"))
    asks.sound(sampling, ask)
    ask.prompts = [Prompt(tokens, given=True)]
    engine.begin(ask, TokensAnswer, call.reply, call.fault)


class TokensAnswer(Answer):
    """The answer of ``/inference/v1/generate``."""

    id_prefix = "generate-tokens-"

    def complete(self) -> None:
        body = {
            "request_id": self.id,
            "model": self.ask.model,
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
            "choices": [_tokens_choice(choice) for choice in self.choices],
        }
        self.reply.send(200, quoted(body))


def _tokens_choice(choice: Choice) -> dict[str, Any]:
    return {
        "index": choice.index,
        "finish_reason": choice.reason,
        "stop_reason": choice.stop_reason,
        "token_ids": choice.ids,
        "routed_experts": None,
        "sampling_mask": None,
        "weight_versions": [{"version": "default", "start": 0, "end": choice.count}],
        "logprobs": None,
    }


def _resolve(call: Call, fields: Fields) -> None:
    """Check the model's name."""
    ask = Ask(model=fields.text("model") or "", request_id="")
    fields.check()
    call.engine.models.resolve(ask)

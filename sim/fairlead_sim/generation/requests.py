"""The parsed request of every generating endpoint, with vLLM's defaults, checks and wording.

Prompts as clients write them: text, token ids, lists of either, or a conversation.

Text that is far too long is rejected before tokenization.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairlead_sim.engine.chat_template import tool_call_text, turn_texts
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.generation import reply_script
from fairlead_sim.generation.markup_writer import MarkupPlan
from fairlead_sim.generation.reply_parser import NO_MARKUP, ReplyMarkup
from fairlead_sim.generation.reply_script import TOKEN_BYTES, ReplyLimits
from fairlead_sim.http.connection import HttpRequest
from fairlead_sim.http.errors import InvalidRequest, MalformedRequest
from fairlead_sim.http.fields import RequestFields

MAX_LOGPROBS = 20
MAX_SEQUENCES = 16_384
DEFAULT_COMPLETION_TOKENS = 16

_SAMPLING_RANGES: dict[str, tuple[Any, str]] = {
    "presence_penalty": (lambda value: -2.0 <= value <= 2.0, "must be in [-2, 2]"),
    "frequency_penalty": (lambda value: -2.0 <= value <= 2.0, "must be in [-2, 2]"),
    "repetition_penalty": (lambda value: value > 0.0, "must be greater than zero"),
    "temperature": (lambda value: value >= 0.0, "must be non-negative"),
    "top_p": (lambda value: 0.0 < value <= 1.0, "must be in (0, 1]"),
    "min_p": (lambda value: 0.0 <= value <= 1.0, "must be in [0, 1]"),
}

_LARGE_LIMIT = 8_192
"""Tokens from which a limit is a maximum, as coding agents mean it, and no length of the answer."""
_NONE_GIVEN = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """A loaded LoRA adapter; ``number`` counts loads since the start, as KV events carry it."""

    name: str
    path: str
    number: int


@dataclass(slots=True)
class TokenizedPrompt:
    """One prompt.

    - text: for echo; None for token ids.
    - is_token_ids: the client sent token ids.
    """

    tokens: list[int]
    text: str | None = None
    is_token_ids: bool = False


@dataclass(slots=True)
class GenerationRequest:
    """One request for generated tokens.

    - request_id: the bare id, without ``cmpl-`` or ``chatcmpl-``.
    - tool_choice: ``none``, ``auto``, ``required`` or ``named``.
    - tools: definitions as a chat request has them.
    - may_reason: the client has not turned reasoning off.
    """

    model: str
    request_id: str
    prompts: list[TokenizedPrompt] = field(default_factory=list)
    adapter: LoraAdapter | None = None
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    include_stop: bool = False
    forced_text: str | None = None
    markup: ReplyMarkup = NO_MARKUP
    tool_choice: str = "none"
    tools: Sequence[dict[str, Any]] = ()
    may_reason: bool = True
    seed: int | None = None
    is_greedy: bool = False
    logprobs: int | None = None  # alternatives per token; 0: the token alone
    prompt_logprobs: int | None = None
    echo: bool = False
    return_token_ids: bool = False
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    cache_salt: str | None = None
    priority: int = 0
    session: str | None = None
    uses_cache: bool = True
    publishes_hits: bool = False
    rank: int | None = None
    load_metrics_format: str | None = None
    kv_transfer_params: dict[str, Any] | None = None  # KV from or for another engine
    reported_cached_tokens: int | None = None  # reported in place of the true number

    def markup_plan(self, call_share: float | None) -> MarkupPlan | None:
        """Returns the markup that a reply has by itself; None if it has none.

        Replies to requests with stop strings or stop tokens have none.
        """
        markup = self.markup
        tools = self.tools if markup.calls and self.tool_choice == "auto" and self.forced_text is None else ()
        reasons = markup.reasoning and self.may_reason
        if call_share is None or self.stop or self.stop_token_ids or not (reasons or tools):
            return None
        return MarkupPlan(reasons, tools, call_share, may_end=not self.ignore_eos)

    def reply_limits(self, prompt: TokenizedPrompt, max_model_len: int, length_factor: float = 1.0) -> ReplyLimits:
        """Returns the limits of the answer to one prompt: as requested, else by the model's
        length.

        length_factor: of answers that end naturally.
        """
        room = max_model_len - len(prompt.tokens)
        return ReplyLimits(
            max_tokens=room if self.max_tokens is None else self.max_tokens,
            min_tokens=self.min_tokens,
            may_end_naturally=(self.max_tokens is None or self.max_tokens >= _LARGE_LIMIT) and not self.ignore_eos,
            length_factor=length_factor,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            include_stop=self.include_stop,
            forced_text=self.forced_text,
        )


def parse_common(fields: RequestFields, request: HttpRequest, request_id: str) -> GenerationRequest:
    """Returns a request with the fields that all generating endpoints share.

    Findings are collected; ``validate_sampling`` checks the values.
    """
    body, headers = fields.body, request.headers
    xargs = body.get("vllm_xargs")
    modes = (body.get("kv_cache_report_mode"), xargs.get("kv_cache_report_mode") if isinstance(xargs, dict) else None)
    named = headers.get("x-request-id") or fields.text("request_id")
    rank = headers.get("x-data-parallel-rank", "")
    priority = headers.get("x-vllm-priority", "")
    generation_request = GenerationRequest(model=fields.text("model") or "", request_id=named or request_id)
    generation_request.n = fields.integer("n", 1) or 0
    generation_request.min_tokens = fields.integer("min_tokens", 0) or 0
    generation_request.ignore_eos = fields.flag("ignore_eos")
    generation_request.stop = fields.strings("stop")
    generation_request.stop_token_ids = frozenset(fields.token_ids("stop_token_ids"))
    generation_request.include_stop = fields.flag("include_stop_str_in_output")
    generation_request.seed = fields.integer("seed")
    generation_request.prompt_logprobs = fields.integer("prompt_logprobs")
    generation_request.return_token_ids = fields.flag("return_token_ids")
    generation_request.stream = fields.flag("stream")
    generation_request.cache_salt = fields.text("cache_salt")
    generation_request.priority = fields.integer("priority", 0) or (
        int(priority) if priority.lstrip("-").isdecimal() else 0
    )
    generation_request.session = fields.text("session_id") or headers.get("x-session-id")
    generation_request.publishes_hits = "full" in modes
    generation_request.rank = int(rank) if rank.isdecimal() else None
    generation_request.load_metrics_format = headers.get("endpoint-load-metrics-format")
    generation_request.forced_text = reply_script.parse_forced_text(fields)
    generation_request.kv_transfer_params = fields.mapping("kv_transfer_params")
    if body.get("bootstrap_room") is not None:
        generation_request.kv_transfer_params = {
            name: body.get(name) for name in ("bootstrap_host", "bootstrap_port", "bootstrap_room")
        }
    _parse_stream_options(fields, generation_request)
    return generation_request


def _parse_stream_options(fields: RequestFields, request: GenerationRequest) -> None:
    options = fields.mapping("stream_options")
    if options is None:
        return
    if not request.stream:
        raise MalformedRequest(["Value error, Stream options can only be defined when `stream=True`."])
    request.include_usage = bool(options.get("include_usage"))
    request.continuous_usage = request.include_usage and bool(options.get("continuous_usage_stats"))


def validate_sampling(fields: RequestFields, request: GenerationRequest) -> None:
    """Checks the sampling values, and sets ``is_greedy``.

    Raises MalformedRequest for findings, InvalidRequest for the first value out of range.
    """
    fields.check()
    numbers = {name: fields.number(name) for name in _SAMPLING_RANGES}
    request.is_greedy = numbers["temperature"] == 0
    fields.check()
    if request.n < 1:
        raise InvalidRequest.for_value(f"n must be at least 1, got {request.n}.", "n", request.n)
    if request.n > MAX_SEQUENCES:
        message = f"n must be at most {MAX_SEQUENCES}, got {request.n}. "
        message += "To increase this limit, set the VLLM_MAX_N_SEQUENCES environment variable."
        raise InvalidRequest.for_value(message, "n", request.n)
    for name, value in numbers.items():
        if value is not None and not _SAMPLING_RANGES[name][0](value):
            raise InvalidRequest.for_value(f"{name} {_SAMPLING_RANGES[name][1]}, got {value}.", name, value)
    if request.max_tokens is not None and request.max_tokens < 1:
        raise InvalidRequest.for_value(
            f"max_tokens must be at least 1, got {request.max_tokens}.", "max_tokens", request.max_tokens
        )
    if request.min_tokens < 0:
        message = f"min_tokens must be greater than or equal to 0, got {request.min_tokens}."
        raise InvalidRequest.for_value(message, "min_tokens", request.min_tokens)
    if request.max_tokens is not None and request.min_tokens > request.max_tokens:
        message = f"min_tokens must be less than or equal to max_tokens={request.max_tokens}, got {request.min_tokens}."
        raise InvalidRequest.for_value(message, "min_tokens", request.min_tokens)
    if any(not string for string in request.stop):
        raise InvalidRequest("stop cannot contain an empty string.")
    for name, logprob_count in (("logprobs", request.logprobs), ("prompt_logprobs", request.prompt_logprobs)):
        if logprob_count is not None and logprob_count > MAX_LOGPROBS:
            what = "sample" if name == "logprobs" else "prompt"
            message = f"Requested {what} logprobs of {logprob_count}, which is greater than max allowed: {MAX_LOGPROBS}"
            raise InvalidRequest.for_value(message, name, logprob_count)


def validate_prompts(request: GenerationRequest, max_model_len: int, vocab_size: int) -> None:
    """Checks prompts and ``max_tokens`` against the model.

    Raises InvalidRequest for an empty prompt, an unknown token id or a length that does not fit.
    """
    for prompt in request.prompts:
        count = len(prompt.tokens)
        if not count:
            raise InvalidRequest("The decoder prompt cannot be empty")
        if prompt.is_token_ids and (min(prompt.tokens) < 0 or max(prompt.tokens) >= vocab_size):
            outside = next(token for token in prompt.tokens if not 0 <= token < vocab_size)
            raise InvalidRequest(f"Token id {outside} is out of vocabulary")
        if request.max_tokens is not None and request.max_tokens > max_model_len:
            message = (
                f"max_tokens={request.max_tokens} cannot be greater than max_model_len={max_model_len}. "
                "Please request fewer output tokens."
            )
            raise InvalidRequest.for_value(message, "max_tokens", request.max_tokens)
        if count >= max_model_len:
            raise prompt_too_long(count, max_model_len)
        if request.max_tokens is not None and count + request.max_tokens > max_model_len:
            message = (
                f"This model's maximum context length is {max_model_len} tokens. However, you requested {request.max_tokens} "
                f"output tokens and your prompt contains {count} input tokens, for a total of {count + request.max_tokens} "
                "tokens. Please reduce the length of the input prompt or the number of requested output tokens."
            )
            raise InvalidRequest.for_value(message, "input_tokens", count)


def prompt_too_long(count: int, max_model_len: int) -> InvalidRequest:
    """Returns the error of a prompt that leaves no room for output."""
    message = (
        f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains {count} "
        "input tokens, which exceeds this limit even without any output tokens. "
        "Please reduce the length of the input prompt."
    )
    return InvalidRequest.for_value(message, "input_tokens", count)


@dataclass(frozen=True, slots=True)
class PromptParser:
    """The parser of prompts.

    - resolve_model: sets the model of a request, or raises ResourceNotFound.
    - auto_tools, parses_reasoning: replies may have tool calls and reasoning.
    """

    tokenizer: Tokenizer
    max_model_len: int
    resolve_model: Callable[[GenerationRequest], None]
    auto_tools: bool
    parses_reasoning: bool

    def require_tool_parser(self, choice: str, name: str | None) -> None:
        """Raises InvalidRequest if a tool choice needs a parser that the engine lacks."""
        if self.auto_tools or choice == "none":
            return
        if name is None and choice == "auto":
            raise InvalidRequest(
                '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            )
        described = f'"{choice}"' if name is None else f'function "{name}"'
        raise InvalidRequest(f"tool_choice={described} requires --tool-call-parser to be set")

    def apply_tool_choice(
        self, request: GenerationRequest, tools: list[dict[str, Any]], choice: str, name: str | None, *, one_call: bool
    ) -> None:
        """Sets what the reply may have, and forces the call that ``required`` or a name demands.

        Raises InvalidRequest for a name that no tool has.
        """
        request.tool_choice = choice if name is None else "named"
        request.tools = tools
        calls = bool(tools) and choice != "none" and self.auto_tools
        request.markup = ReplyMarkup(self.parses_reasoning, calls, one_call)
        if not calls or (choice == "auto" and name is None):
            return
        found = next((tool["function"] for tool in tools if name in (None, tool["function"]["name"])), None)
        if found is None:
            raise InvalidRequest(f"The tool with name '{name}' is not found in the tools list.")
        schema = found.get("parameters")
        arguments = reply_script.minimal_value({"type": "object"} | (schema if isinstance(schema, dict) else {}))
        request.forced_text = tool_call_text(found["name"], arguments if isinstance(arguments, dict) else {})

    def from_text(self, text: str) -> TokenizedPrompt:
        """Returns a text prompt. Raises InvalidRequest if it cannot fit."""
        self._check_length(len(text))
        return TokenizedPrompt(self.tokenizer.encode(text), text)

    def from_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        unfinished: bool = False,
        injected: list[int] | None = None,
    ) -> TokenizedPrompt:
        """Returns the prompt of a conversation. Raises InvalidRequest if it cannot fit.

        - tools: definitions as a chat request has them.
        - unfinished: the answer continues the last message.
        - injected: token ids that replace the conversation.
        """
        if injected is not None:
            return TokenizedPrompt(injected, is_token_ids=True)
        turns = list(turn_texts(messages, tools))
        self._check_length(sum(len(text) for _, text in turns))
        return TokenizedPrompt(self.tokenizer.encode_turns(turns, continues_last=unfinished))

    def _check_length(self, characters: int) -> None:
        min_tokens = -(-characters // TOKEN_BYTES)
        if min_tokens > self.max_model_len:
            raise prompt_too_long(min_tokens, self.max_model_len)


def parse_completion_prompts(fields: RequestFields, prompt_parser: PromptParser) -> list[TokenizedPrompt]:
    """Returns the prompts of the completions endpoint. Raises InvalidRequest if there is none."""
    if fields.body.get("prompt") in (None, ""):
        raise InvalidRequest(_NONE_GIVEN, param="prompt")
    return parse_prompts(fields, "prompt", prompt_parser)


def parse_prompts(fields: RequestFields, name: str, prompt_parser: PromptParser) -> list[TokenizedPrompt]:
    """Returns the prompts of a text, token ids, or a list of either; wrong types are findings.

    Raises InvalidRequest for an empty list, or a text that cannot fit.
    """
    value = fields.body.get(name)
    if isinstance(value, str):
        return [prompt_parser.from_text(value)]
    if not isinstance(value, list):
        fields.add_wrong("string_type", name, "Input should be a valid string", value)
        return []
    if not value:
        raise InvalidRequest("You must pass at least one prompt")
    if _is_token_ids(value):
        return [TokenizedPrompt(value, is_token_ids=True)]
    prompts = []
    for at, item in enumerate(value):
        if isinstance(item, str):
            prompts.append(prompt_parser.from_text(item))
        elif isinstance(item, list) and _is_token_ids(item):
            prompts.append(TokenizedPrompt(item, is_token_ids=True))
        else:
            fields.add_wrong("string_type", f"{name}.{at}", "Input should be a valid string", item)
    return prompts


def parse_messages(fields: RequestFields) -> list[dict[str, Any]]:
    """Returns the objects in ``messages``; missing fields and wrong types are findings.

    Raises InvalidRequest for parts that need a multi-modal model.
    """
    if "messages" not in fields.body:
        fields.add_missing("messages")
        return []
    messages = fields.items("messages") or []
    for at, message in enumerate(messages):
        where = f"messages.{at}"
        if not isinstance(message, dict):
            fields.add_wrong("dict_type", where, "Input should be a valid dictionary", message)
        elif "role" not in message:
            fields.add_wrong("missing", f"{where}.role", "Field required", message)
        elif not isinstance(message["role"], str):
            fields.add_wrong("string_type", f"{where}.role", "Input should be a valid string", message["role"])
        else:
            _validate_content(fields, f"{where}.content", message.get("content"))
            validate_named(fields, f"{where}.tool_calls", message.get("tool_calls"), "function")
    return [message for message in messages if isinstance(message, dict)]


def parse_tools(fields: RequestFields) -> list[dict[str, Any]]:
    """Returns the tools of a chat body; what is no named function is a finding."""
    tools = fields.items("tools") or []
    validate_named(fields, "tools", tools, "function")
    return tools


def validate_named(fields: RequestFields, where: str, items: Any, *path: str) -> None:
    """Notes each item of a list that has no ``name``, under the fields of ``path`` if given."""
    for at, item in enumerate(items if isinstance(items, list) else ()):
        place = f"{where}.{at}"
        for name in (*path, "name"):
            if not isinstance(item, dict) or item.get(name) is None:
                fields.add_wrong("missing", f"{place}.{name}", "Field required", item)
                break
            item, place = item[name], f"{place}.{name}"
        else:
            if not isinstance(item, str):
                fields.add_wrong("string_type", place, "Input should be a valid string", item)


def injected_token_ids(fields: RequestFields) -> list[int] | None:
    """Returns the token ids in ``kv_transfer_params`` that replace the rendered prompt.

    A gateway passes its own tokenization this way.
    """
    params = fields.body.get("kv_transfer_params")
    ids = params.get("prompt_token_ids") if isinstance(params, dict) else None
    return ids if isinstance(ids, list) and ids and _is_token_ids(ids) else None


def _validate_content(fields: RequestFields, where: str, content: Any) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        fields.add_wrong("string_type", where, "Input should be a valid string", content)
        return
    for at, part in enumerate(content):
        if isinstance(part, str):
            continue
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            fields.add_wrong("missing", f"{where}.{at}.type", "Field required", part)
        elif part["type"] == "text" or "text" in part:
            if not isinstance(part.get("text"), str):
                fields.add_wrong(
                    "string_type", f"{where}.{at}.text", "Input should be a valid string", part.get("text")
                )
        elif part["type"] in ("image_url", "input_audio", "audio_url", "video_url"):
            raise InvalidRequest("The model is not a multimodal model")


def _is_token_ids(items: list[Any]) -> bool:
    return set(map(type, items)) == {int}

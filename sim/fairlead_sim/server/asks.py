"""What a client asked for: one value for every endpoint that generates, with vLLM's defaults, checks and words."""

from dataclasses import dataclass, field
from typing import Any

from fairlead_sim.server import structured
from fairlead_sim.server.connection import Request
from fairlead_sim.server.fields import Fields
from fairlead_sim.server.problems import Malformed, Refused
from fairlead_sim.server.scripts import Wish

MAX_LOGPROBS = 20
MAX_SEQUENCES = 16_384
COMPLETION_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter that is loaded: ``number`` counts loads since the start, as events carry it."""

    name: str
    path: str
    number: int


@dataclass(slots=True)
class Prompt:
    """One prompt; ``text`` is kept for echo where it came as text. ``given``: the ids are the client's, not ours."""

    tokens: list[int]
    text: str | None = None
    given: bool = False


@dataclass(slots=True)
class Ask:
    """One request for generated tokens. ``request_id`` is the bare id, without ``cmpl-`` or ``chatcmpl-``."""

    model: str
    request_id: str
    prompts: list[Prompt] = field(default_factory=list)
    adapter: Adapter | None = None
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    keep_stop: bool = False
    forced: str | None = None
    seed: int | None = None
    greedy: bool = False
    logprobs: int | None = None  # alternatives a token; 0 = the token alone
    prompt_logprobs: int | None = None
    echo: bool = False
    return_token_ids: bool = False
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    salt: str | None = None
    priority: int = 0
    session: str | None = None
    lookup: bool = True
    announce_hits: bool = False
    rank: int | None = None
    orca: str | None = None
    transfer: dict[str, Any] | None = None  # what the client says of KV that comes from, or goes to, another engine
    reported_cached_tokens: int | None = None  # told instead of what was found

    def wish(self, prompt: Prompt, max_model_len: int) -> Wish:
        """How long the answer to one prompt may get: as asked, else to a natural end within the model's length."""
        room = max_model_len - len(prompt.tokens)
        return Wish(
            max_tokens=room if self.max_tokens is None else self.max_tokens,
            min_tokens=self.min_tokens,
            natural=self.max_tokens is None and not self.ignore_eos,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            keep_stop=self.keep_stop,
            forced=self.forced,
        )


def common(fields: Fields, request: Request, request_id: str) -> Ask:
    """The parts that all generating endpoints share. Findings are collected, values are checked by ``sound``."""
    body, headers = fields.body, request.headers
    xargs = body.get("vllm_xargs")
    modes = (body.get("kv_cache_report_mode"), xargs.get("kv_cache_report_mode") if isinstance(xargs, dict) else None)
    named = headers.get("x-request-id") or fields.text("request_id")
    rank = headers.get("x-data-parallel-rank", "")
    priority = headers.get("x-vllm-priority", "")
    ask = Ask(model=fields.text("model") or "", request_id=named or request_id)
    ask.n = fields.integer("n", 1) or 0
    ask.min_tokens = fields.integer("min_tokens", 0) or 0
    ask.ignore_eos = fields.flag("ignore_eos")
    ask.stop = fields.strings("stop")
    ask.stop_token_ids = frozenset(fields.token_ids("stop_token_ids"))
    ask.keep_stop = fields.flag("include_stop_str_in_output")
    ask.seed = fields.integer("seed")
    ask.prompt_logprobs = fields.integer("prompt_logprobs")
    ask.return_token_ids = fields.flag("return_token_ids")
    ask.stream = fields.flag("stream")
    ask.salt = fields.text("cache_salt")
    ask.priority = fields.integer("priority", 0) or (int(priority) if priority.lstrip("-").isdecimal() else 0)
    ask.session = fields.text("session_id") or headers.get("x-session-id")
    ask.announce_hits = "full" in modes
    ask.rank = int(rank) if rank.isdecimal() else None
    ask.orca = headers.get("endpoint-load-metrics-format")
    ask.forced = structured.forced_text(fields)
    ask.transfer = fields.mapping("kv_transfer_params")
    if body.get("bootstrap_room") is not None:
        ask.transfer = {name: body.get(name) for name in ("bootstrap_host", "bootstrap_port", "bootstrap_room")}
    _stream_options(fields, ask)
    return ask


def _stream_options(fields: Fields, ask: Ask) -> None:
    options = fields.mapping("stream_options")
    if options is None:
        return
    if not ask.stream:
        raise Malformed(["Value error, Stream options can only be defined when `stream=True`."])
    ask.include_usage = bool(options.get("include_usage"))
    ask.continuous_usage = ask.include_usage and bool(options.get("continuous_usage_stats"))


def sound(fields: Fields, ask: Ask) -> None:
    """Check the sampling values. Raises Refused with the engine's words for the first that is out of range."""
    fields.check()
    numbers = {name: fields.number(name) for name in _RANGES}
    ask.greedy = numbers["temperature"] == 0
    fields.check()
    if ask.n < 1:
        raise Refused.value(f"n must be at least 1, got {ask.n}.", "n", ask.n)
    if ask.n > MAX_SEQUENCES:
        message = f"n must be at most {MAX_SEQUENCES}, got {ask.n}. "
        message += "To increase this limit, set the VLLM_MAX_N_SEQUENCES environment variable."
        raise Refused.value(message, "n", ask.n)
    for name, value in numbers.items():
        if value is not None and not _RANGES[name][0](value):
            raise Refused.value(f"{name} {_RANGES[name][1]}, got {value}.", name, value)
    if ask.max_tokens is not None and ask.max_tokens < 1:
        raise Refused.value(f"max_tokens must be at least 1, got {ask.max_tokens}.", "max_tokens", ask.max_tokens)
    if ask.min_tokens < 0:
        message = f"min_tokens must be greater than or equal to 0, got {ask.min_tokens}."
        raise Refused.value(message, "min_tokens", ask.min_tokens)
    if ask.max_tokens is not None and ask.min_tokens > ask.max_tokens:
        message = f"min_tokens must be less than or equal to max_tokens={ask.max_tokens}, got {ask.min_tokens}."
        raise Refused.value(message, "min_tokens", ask.min_tokens)
    if any(not string for string in ask.stop):
        raise Refused("stop cannot contain an empty string.")
    for name, wanted in (("logprobs", ask.logprobs), ("prompt_logprobs", ask.prompt_logprobs)):
        if wanted is not None and wanted > MAX_LOGPROBS:
            what = "sample" if name == "logprobs" else "prompt"
            message = f"Requested {what} logprobs of {wanted}, which is greater than max allowed: {MAX_LOGPROBS}"
            raise Refused.value(message, name, wanted)


_RANGES: dict[str, tuple[Any, str]] = {
    "presence_penalty": (lambda value: -2.0 <= value <= 2.0, "must be in [-2, 2]"),
    "frequency_penalty": (lambda value: -2.0 <= value <= 2.0, "must be in [-2, 2]"),
    "repetition_penalty": (lambda value: value > 0.0, "must be greater than zero"),
    "temperature": (lambda value: value >= 0.0, "must be non-negative"),
    "top_p": (lambda value: 0.0 < value <= 1.0, "must be in (0, 1]"),
    "min_p": (lambda value: 0.0 <= value <= 1.0, "must be in [0, 1]"),
}


def fits(ask: Ask, max_model_len: int, vocab_size: int) -> None:
    """Check the prompts against the model. Raises Refused."""
    for prompt in ask.prompts:
        count = len(prompt.tokens)
        if not count:
            raise Refused("The decoder prompt cannot be empty")
        if prompt.given and (min(prompt.tokens) < 0 or max(prompt.tokens) >= vocab_size):
            outside = next(token for token in prompt.tokens if not 0 <= token < vocab_size)
            raise Refused(f"Token id {outside} is out of vocabulary")
        if ask.max_tokens is not None and ask.max_tokens > max_model_len:
            message = (
                f"max_tokens={ask.max_tokens} cannot be greater than max_model_len={max_model_len}. "
                "Please request fewer output tokens."
            )
            raise Refused.value(message, "max_tokens", ask.max_tokens)
        if count >= max_model_len:
            raise too_long(count, max_model_len)
        if ask.max_tokens is not None and count + ask.max_tokens > max_model_len:
            message = (
                f"This model's maximum context length is {max_model_len} tokens. However, you requested {ask.max_tokens} "
                f"output tokens and your prompt contains {count} input tokens, for a total of {count + ask.max_tokens} "
                "tokens. Please reduce the length of the input prompt or the number of requested output tokens."
            )
            raise Refused.value(message, "input_tokens", count)


def too_long(count: int, max_model_len: int) -> Refused:
    """The problem of a prompt that leaves no room for output."""
    message = (
        f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains {count} "
        "input tokens, which exceeds this limit even without any output tokens. "
        "Please reduce the length of the input prompt."
    )
    return Refused.value(message, "input_tokens", count)

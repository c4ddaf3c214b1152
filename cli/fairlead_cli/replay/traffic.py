"""The requests to replay: from a recorded trace, or generated; with a name for the report.

A block's text is 512 tokens drawn from its id, four bytes a token. The last block is cut so that
the prompt has ``prompt_tokens`` tokens with the chat template. This is exact for the simulated
engine's tokenizer; other engines count other tokens, but equal ids still give equal text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from fairlead.errors import BadInput
from fairlead_cli.replay.client.open_loop_client import PlannedRequest
from fairlead_gateway.routing import PrefixChain, prefix_chain
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.workload.generators import conversation_traffic
from fairlead_sim.workload.traces import (
    BUNDLED_TRACE,
    MAX_PROMPT_TOKENS,
    TRACE_BLOCK_TOKENS,
    TraceRequest,
    at_rate,
    ideal_cached_share,
    read_mooncake,
    spread_ties,
)

BUNDLED_NAME: Final = "Mooncake conversation trace"
"""The name of the bundled trace in reports."""

TOKEN_BYTES = 4


@dataclass(frozen=True, slots=True)
class ReplayTraffic:
    """Requests that arrive in simulated seconds, with their source. ``rate``: mean requests per
    second.
    """

    requests: Sequence[TraceRequest]
    name: str
    rate: float

    @property
    def ideal_reuse(self) -> float:
        """Share of prompt tokens that one unlimited cache would have."""
        return ideal_cached_share(self.requests)

    def with_rate(self, rate: float) -> "ReplayTraffic":
        return ReplayTraffic(at_rate(self.requests, rate), self.name, rate)


def load_traffic(trace: Path | None, *, limit: int | None, rate: float | None, seed: int = 0) -> ReplayTraffic:
    """Returns the requests of a trace, or generated ones, at a mean of ``rate`` per second or at
    their own.

    limit: the first so many requests; None for the whole trace, or 1,000 generated ones. Raises
    BadInput below 1.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"--limit must be at least 1, not {limit}", field="--limit")
    if trace is None:
        requests = conversation_traffic(1_000 if limit is None else limit, seed=seed)
        name = f"generated conversations (seed {seed})"
    else:
        requests = spread_ties(read_mooncake(trace, max_prompt=MAX_PROMPT_TOKENS, limit=limit))
        name = BUNDLED_NAME if trace == BUNDLED_TRACE else trace.name
    span = requests[-1].arrival - requests[0].arrival
    own_rate = (len(requests) - 1) / span if span > 0 else 1.0
    mean_rate = own_rate if rate is None else rate
    return ReplayTraffic(at_rate(requests, mean_rate), name, mean_rate)


class PromptBuilder:
    """Builder of prompt texts; a block's text is drawn once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}
        self.template_tokens = len(tokenizer.encode_chat([{"role": "user", "content": ""}]))

    def text(self, request: TraceRequest) -> str:
        """Returns the user's message of a request."""
        prompt = "".join(map(self._block, request.blocks))
        tokens = max(1, request.prompt_tokens - self.template_tokens)
        return prompt[: tokens * TOKEN_BYTES]

    def messages(self, request: TraceRequest) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.text(request)}]

    def _block(self, block: int) -> str:
        text = self._texts.get(block)
        if text is None:
            text = self._texts[block] = self._tokenizer.random_text(TRACE_BLOCK_TOKENS, f"block {block}")
        return text


class ReplayTarget:
    """Address and model of the requests. Raises BadInput when ``url`` is not a plain
    ``http://host:port``.
    """

    def __init__(self, url: str, *, model: str, key: str | None = None) -> None:
        parts = urlsplit(url if "//" in url else f"//{url}")
        try:
            port = parts.port
        except ValueError as error:
            raise BadInput(f"{url!r} has no valid port", field="url") from error
        if parts.scheme not in ("", "http") or not parts.hostname:
            raise BadInput(f"replay cannot use {url!r}", field="url", hint="write it like http://127.0.0.1:8000")
        if parts.path.rstrip("/") not in ("", "/v1"):
            raise BadInput(f"replay cannot use the path of {url!r}", field="url", hint="leave the path out")
        self.host = parts.hostname
        self.port = port or 80
        self.url = f"http://{parts.netloc}"
        self.model = model
        authority = f"[{self.host}]" if ":" in self.host else self.host
        lines = [
            "POST /v1/chat/completions HTTP/1.1",
            f"host: {authority}:{self.port}",
            "content-type: application/json",
            "accept: text/event-stream",
            "user-agent: fairlead-replay",
        ]
        if key:
            lines.append(f"authorization: Bearer {key}")
        self._head = "\r\n".join(lines).encode()

    def encode(self, request: TraceRequest, messages: Sequence[Mapping[str, str]]) -> bytes:
        """Returns the whole HTTP request."""
        body = msgspec.json.encode(
            {
                "model": self.model,
                "messages": messages,
                "max_tokens": request.output_tokens,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
        session = f"\r\nx-session-id: {request.session}" if request.session else ""
        tail = f"\r\nx-request-id: {request.id}{session}\r\ncontent-length: {len(body)}\r\n\r\n"
        return self._head + tail.encode() + body


def prefix_chains(builder: PromptBuilder, *, secret: bytes, model_key: str) -> Callable[[TraceRequest], PrefixChain]:
    """Returns a function from a request to its prefix chain in a gateway with this secret, for the
    simulator.
    """

    def chain(request: TraceRequest) -> PrefixChain:
        text = msgspec.json.encode(builder.messages(request))[1:-1]  # the messages without their outer brackets
        return prefix_chain(text, secret=secret, seed=model_key.encode())

    return chain


def plan_requests(
    requests: Sequence[TraceRequest], target: ReplayTarget, *, speed: float, builder: PromptBuilder | None = None
) -> list[PlannedRequest]:
    """Returns all requests with their wall times; ``speed`` seconds of the trace pass in one.

    Raises BadInput for a speed that is not positive.
    """
    if speed <= 0:
        raise BadInput(f"the speed must be positive, got {speed}", field="speed")
    builder = builder or PromptBuilder(Tokenizer())
    return [
        PlannedRequest(
            request.id,
            request.arrival / speed,
            request.prompt_tokens,
            target.encode(request, builder.messages(request)),
        )
        for request in requests
    ]

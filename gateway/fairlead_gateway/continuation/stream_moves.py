"""Planned moves: whether a running stream leaves a draining engine before it ends there.

An engine that is drained ends when its streams have ended, or when its time is over. A stream can
go on at another engine from its tokens. That costs the computation of its prompt and of what it has
generated. It is worth it if the stream would otherwise stay for longer than that.

What is left is forecast from answers of the same caller that came this far. Without a forecast, it
is at most what the client's limit leaves. With neither, the stream may stay for any time, and it
moves. The time of a token, and that of the prompt, are those that this stream has seen at its
engine, queues included.

Source: Llumnix (arXiv 2406.03243) drains instances by migration. Ours computes the KV again, so it
compares that price with the rest.
"""

from dataclasses import dataclass
from typing import Final

from fairlead.units import format_duration

MOVES_AT_ONCE: Final = 8
"""Limit: streams of a worker that leave draining engines at once; the next ones follow after
`MOVE_INTERVAL_SECONDS`.
"""
MOVE_INTERVAL_SECONDS: Final = 0.5
MAX_MOVES: Final = 4
"""Limit: planned moves of one stream."""


@dataclass(frozen=True, slots=True)
class StreamProgress:
    """A running stream, as its gateway has seen it.

    prompt_tokens: that its engine has read, with what engines before it have generated.
    generated: tokens of its engine, also those that are held.
    first_seconds: from its dispatch there to the first token; None if that is not known.
    token_seconds: mean time per token; None before the second one.
    forecast_tokens: further tokens to expect; None without a forecast.
    limit_tokens: further tokens that the client allows; None without a limit.
    moves: planned ones so far.
    """

    prompt_tokens: int
    generated: int
    first_seconds: float | None
    token_seconds: float | None
    forecast_tokens: float | None
    limit_tokens: int | None
    moves: int = 0

    @property
    def rest_tokens(self) -> float | None:
        """The further tokens to expect at most; None with neither a forecast nor a limit."""
        bounds = [float(tokens) for tokens in (self.forecast_tokens, self.limit_tokens) if tokens is not None]
        return min(bounds, default=None)


@dataclass(frozen=True, slots=True)
class MoveDecision:
    """A decision on a move, with its reason.

    rest_seconds: that the stream would go on at its engine; None without a forecast.
    """

    moves: bool
    reason: str
    rest_seconds: float | None = None


def decide_move(stream: StreamProgress) -> MoveDecision:
    """Returns whether a stream leaves an engine that is drained."""
    if stream.moves >= MAX_MOVES:
        return MoveDecision(False, f"it has moved {stream.moves} times")
    rest_tokens = stream.rest_tokens
    if rest_tokens is None:
        return MoveDecision(True, "how long it goes on is not known")
    if stream.token_seconds is None or stream.first_seconds is None:
        return MoveDecision(True, "its speed is not known")
    rest_seconds = rest_tokens * stream.token_seconds
    share = (stream.prompt_tokens + stream.generated) / max(1, stream.prompt_tokens)
    price_seconds = stream.first_seconds * share
    rest, price = format_duration(rest_seconds), format_duration(price_seconds)
    if rest_seconds > price_seconds:
        forecast = None if stream.forecast_tokens is None else rest_seconds
        return MoveDecision(True, f"{rest} are left, and a move costs {price}", forecast)
    return MoveDecision(False, f"only {rest} are left, and a move costs {price}")

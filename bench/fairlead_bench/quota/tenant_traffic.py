"""Traffic of one tenant that wants more than its limits: the same requests for every product."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

BYTES_PER_TOKEN = 4.0
"""The estimate of every product that estimates prompts."""
TTFT_SECONDS = 0.15
TPOT_SECONDS = 0.02
WINDOW_SECONDS = 60.0
_PROMPT_TOKENS = (5.0, 0.7)
_OUTPUT_TOKENS = (5.0, 0.8)
"""Mean and deviation of the logarithm: a median of 148 tokens."""
_MAX_OUTPUT_TOKENS = 4_000
INPUT_TOKEN_NANO_USD = 500
OUTPUT_TOKEN_NANO_USD = 1_500
"""Prices of a token, in billionths of a US dollar."""
_MAX_FAN_OUT = 8


@dataclass(frozen=True, slots=True)
class TenantRequest:
    """One request, with what its answer will turn out to be.

    at: seconds after the beginning.
    replica: the gateway that gets it.
    max_tokens: None if its client states none.
    """

    at: float
    replica: int
    prompt_bytes: int
    prompt_tokens: int
    output_tokens: int
    max_tokens: int | None

    @property
    def tokens(self) -> int:
        """The tokens that the engine will report."""
        return self.prompt_tokens + self.output_tokens

    @property
    def nano_usd(self) -> int:
        """The cost of the tokens that the engine will report, in billionths of a US dollar."""
        return self.prompt_tokens * INPUT_TOKEN_NANO_USD + self.output_tokens * OUTPUT_TOKEN_NANO_USD

    @property
    def seconds(self) -> float:
        """The duration of its answer."""
        return TTFT_SECONDS + TPOT_SECONDS * self.output_tokens


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """The limits of a tenant in one minute, or the budget of a day; None: not limited.

    budget: in billionths of a US dollar.
    """

    requests: int | None = None
    tokens: int | None = None
    budget: int | None = None


@dataclass(frozen=True, slots=True)
class TrafficCase:
    """Limits and the traffic that meets them.

    requests_per_minute: how much the tenant sends, on average.
    max_tokens: what its clients state.
    """

    name: str
    limits: TenantLimits
    requests_per_minute: float
    max_tokens: int | None = None


def tenant_requests(case: TrafficCase, seconds: float, replicas: int, seed: int) -> Sequence[TenantRequest]:
    """Returns the requests of a case in the order of their times.

    Clients send one to eight requests at once, as agents do, at random times.
    """
    draw = random.Random(f"{case.name} {seed}")
    rate = case.requests_per_minute / WINDOW_SECONDS / ((1 + _MAX_FAN_OUT) / 2)
    found = []
    at = draw.expovariate(rate)
    while at < seconds:
        found += [_request(case, draw, at, replicas) for _ in range(draw.randrange(1, _MAX_FAN_OUT + 1))]
        at += draw.expovariate(rate)
    return found


def _request(case: TrafficCase, draw: random.Random, at: float, replicas: int) -> TenantRequest:
    prompt_bytes = max(40, int(BYTES_PER_TOKEN * draw.lognormvariate(*_PROMPT_TOKENS)))
    prompt_tokens = max(1, round(prompt_bytes / draw.uniform(3.4, 4.6)))
    output_tokens = min(_MAX_OUTPUT_TOKENS, max(1, round(draw.lognormvariate(*_OUTPUT_TOKENS))))
    if case.max_tokens is not None:
        output_tokens = min(output_tokens, case.max_tokens)
    return TenantRequest(at, draw.randrange(replicas), prompt_bytes, prompt_tokens, output_tokens, case.max_tokens)

"""Step model: the seconds of an engine step, from the coefficients of a profile.

A replica that gets r requests per second, each with `prompt` tokens to compute and `output` tokens
to generate, works in steps. Each step generates one token for every running sequence and computes
prompts that arrived meanwhile. With steps of T seconds, B = r·output·T sequences run, with context
= prompt + output/2 tokens each, and a step computes r·prompt·T prompt tokens. So

    T = a + b·B + c·context·B + d·r·prompt·T
    T = a / (1 - r·w),   w = d·prompt + output·(b + c·context)

A request costs `w` engine-seconds. So r·w is the share of time that goes into requests and not into
the base of the steps. Saturation is r·w -> 1.
"""

from dataclasses import dataclass

from fairlead.engine_profile import EngineProfile


@dataclass(frozen=True, slots=True)
class MeanRequest:
    """The mean request of a workload.

    cached_share: share of the prompt tokens that is cached, 0..1.
    prompt_variability: variance of prompt lengths, in squares of their mean.
    running_answer: answer of a running sequence, in mean answers.
    """

    prompt_tokens: float
    output_tokens: float
    cached_share: float = 0.0
    prompt_variability: float = 1.0
    running_answer: float = 2.0

    @property
    def computed_tokens(self) -> float:
        """Prompt tokens that are not cached."""
        return self.prompt_tokens * (1.0 - self.cached_share)

    @property
    def context_tokens(self) -> float:
        """Mean tokens of a running sequence, over its time."""
        return self.prompt_tokens + self.output_tokens / 2


@dataclass(frozen=True, slots=True)
class LatencyTargets:
    """Latency targets of a request; None: no such target.

    allowed_miss_share: share of requests that may miss them.
    """

    ttft_seconds: float | None
    itl_seconds: float | None
    allowed_miss_share: float = 0.01


@dataclass(frozen=True, slots=True)
class StepModel:
    """The seconds of an engine step: a base, and the cost of each sequence, resident token and
    prompt token.

    If the profile has a floor for reading weights, decoded tokens cost nothing above it.
    """

    base_seconds: float
    sequence_seconds: float
    resident_token_seconds: float
    prompt_token_seconds: float
    attention_seconds: float
    chunk_tokens: int
    max_sequences: int
    kv_tokens: int

    @classmethod
    def from_profile(cls, profile: EngineProfile, factor: float = 1.0) -> "StepModel":
        """Returns the step model of a profile, with all times multiplied by `factor`."""
        # A decoded token is computed like a prompt token, unless the floor hides it.
        decoded = 0.0 if profile.weights_seconds else profile.prefill_token_seconds
        return cls(
            max(1e-6, (profile.step_seconds + profile.weights_seconds) * factor),
            (profile.sequence_seconds + decoded) * factor,
            profile.resident_token_seconds * factor,
            profile.prefill_token_seconds * factor,
            profile.attention_seconds * factor,
            max(1, profile.step_tokens),
            max(1, profile.max_sequences),
            max(1, profile.kv_tokens),
        )

    def prompt_seconds(self, request: MeanRequest) -> float:
        """Returns the engine-seconds of a prompt, without the base of the steps."""
        computed = request.computed_tokens
        return self.prompt_token_seconds * computed + self.attention_seconds * computed * (
            request.prompt_tokens - computed / 2
        )

    def token_seconds(self, context: float) -> float:
        """Returns the engine-seconds of one generated token, without the base of the steps."""
        return self.sequence_seconds + self.resident_token_seconds * context

    def engine_seconds(self, request: MeanRequest) -> float:
        """Returns the engine-seconds of one request (`w` in the formulas above)."""
        seconds = self.prompt_seconds(request) + request.output_tokens * self.token_seconds(request.context_tokens)
        return max(1e-9, seconds)

"""The values that sizing of prefill and decode engines works on.

Traffic is a handful of classes, each with a rate and the means of its lengths. Rates are requests per second, lengths tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fairlead.decision import Input


@dataclass(frozen=True, slots=True)
class Traffic:
    """One class of requests: ``requests_per_second``, and mean tokens of a prompt, of what the prefilling engine finds of it
    in its cache, and of an answer."""

    requests_per_second: float
    prompt_tokens: float
    output_tokens: float
    cached_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Transfer:
    """How long a prefilled prompt travels to the engine that decodes it: a fixed part, and seconds per token."""

    seconds: float = 0.02
    token_seconds: float = 0.0

    def of(self, tokens: float) -> float:
        """Seconds for a prompt of so many tokens."""
        return self.seconds + self.token_seconds * tokens


@dataclass(frozen=True, slots=True)
class Need:
    """What a role needs. ``engines`` is how many would be exactly enough, margin included; ``replicas`` the whole number
    that is. One engine carries ``requests_per_second`` of this traffic. ``rule`` is the closed-list name of what decided,
    ``reason`` one sentence."""

    engines: float
    replicas: int
    requests_per_second: float
    rule: str
    reason: str
    inputs: Mapping[str, Input] = field(default_factory=dict)

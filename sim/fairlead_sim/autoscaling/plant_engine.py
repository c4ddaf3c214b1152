"""The interface of a plant's engines, with what all engine models share."""

from abc import ABC, abstractmethod

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Role
from fairlead_gateway.routing.request import DEFAULT_OUTPUT_TOKENS
from fairlead_sim.autoscaling.request_table import RequestTable

BLOCK_TOKENS = 16


class StepTotals:
    """The counters of an engine since the last observation.

    Histograms count per bucket; the last bucket is beyond all bounds.

    - prompt_tokens: of prompts with a first token, the cached ones included.
    - cached_tokens: prompt tokens found in the cache; None for an engine without one.
    """

    def __init__(self, ttft_bounds: tuple[float, ...], itl_bounds: tuple[float, ...]) -> None:
        self._ttft_bounds = ttft_bounds
        self._itl_bounds = itl_bounds
        self.prompt_tokens = 0
        self.cached_tokens: int | None = None
        self.generated_tokens = 0
        self.gap_seconds = 0.0
        self.finished = 0
        self.first_tokens = 0
        self.ttft_seconds = 0.0
        self.ttft_counts = [0] * (len(ttft_bounds) + 1)
        self.itl_counts = [0] * (len(itl_bounds) + 1)

    def add_gaps(self, tokens: int, seconds: float) -> None:
        """Counts tokens, each ``seconds`` after the one before."""
        self.gap_seconds += tokens * seconds

    def add_answer(self, seconds: float, gaps: int) -> None:
        """Counts a finished answer by its mean gap, as gateways do: ``gaps`` in ``seconds``."""
        self.finished += 1
        if gaps < 1:
            return
        bucket = 0
        for bound in self._itl_bounds:
            if seconds <= bound * gaps:
                break
            bucket += 1
        self.itl_counts[bucket] += 1

    def add_first_token(self, seconds: float, prompt_tokens: int) -> None:
        """Counts a first token ``seconds`` after its request."""
        self.prompt_tokens += prompt_tokens
        self.generated_tokens += 1
        self.first_tokens += 1
        self.ttft_seconds += seconds
        bucket = 0
        for bound in self._ttft_bounds:
            if seconds <= bound:
                break
            bucket += 1
        self.ttft_counts[bucket] += 1

    def empty_copy(self) -> "StepTotals":
        """Returns new counters at zero, with the same bounds."""
        totals = StepTotals(self._ttft_bounds, self._itl_bounds)
        totals.cached_tokens = None if self.cached_tokens is None else 0
        return totals


class PlantEngine(ABC):
    """One engine of the plant.

    - next_step_at: when its next step can begin.
    - slowdown: factor on every step; 1 is the profile's speed.
    - backlog_seconds, inflight_tokens: the load that a gateway counts, for engines with a role.

    A prefill engine answers with one token that no client sees. A decode engine computes one token
    of a prompt whose KV was transferred, and all tokens of a prompt that stayed with it.
    """

    def __init__(self, profile: EngineProfile, role: Role, requests: RequestTable, totals: StepTotals) -> None:
        self.profile = profile
        self.role = role
        self.requests = requests
        self.totals = totals
        self.next_step_at = 0.0
        self.slowdown = 1.0
        self.backlog_seconds = 0.0
        self.inflight_tokens = 0.0

    @abstractmethod
    def add(self, request: int, now: float) -> None:
        """Queues a request; ``advance`` has been called up to ``now``."""

    @abstractmethod
    def advance(self, until: float) -> None:
        """Takes every step that begins before ``until``."""

    @abstractmethod
    def drop_abandoned(self, now: float) -> None:
        """Drops waiting requests whose clients gave up."""

    @abstractmethod
    def evict(self) -> list[int]:
        """Removes and returns all requests in order of arrival."""

    @abstractmethod
    def running(self) -> int:
        """Returns the number of sequences in the batch."""

    @abstractmethod
    def waiting(self) -> int:
        """Returns the number of queued sequences."""

    @abstractmethod
    def kv_share(self) -> float:
        """Returns the share (0..1) of KV memory that running sequences fill."""

    @abstractmethod
    def load_tokens(self) -> int:
        """Returns the tokens in flight; uncomputed prompt tokens count twice."""

    @abstractmethod
    def uncomputed_tokens(self) -> int:
        """Returns the prompt tokens that this engine has yet to compute."""

    # Shared by both engine models --------------------------------------------------------------------------------------------

    def prompt_tokens_to_compute(self, request: int) -> int:
        return (
            1
            if self.role is Role.DECODE and not self.requests.computed_at_decode[request]
            else self.requests.prompt[request]
        )

    def tokens_to_generate(self, request: int) -> int:
        return 1 if self.role is Role.PREFILL else self.requests.output[request]

    def blocks_needed(self, request: int) -> int:
        """Returns the KV blocks of a prompt with its answer."""
        return -(-(self.requests.prompt[request] + self.tokens_to_generate(request) - 1) // BLOCK_TOKENS)

    def on_routed(self, request: int) -> None:
        """Adds a request to the gateway's load."""
        if self.role is not Role.SERVE:
            self.backlog_seconds += self._prefill_seconds(request)
            self.inflight_tokens += self.requests.prompt[request] + DEFAULT_OUTPUT_TOKENS

    def on_client_gone(self, request: int) -> None:
        """Removes a request from the gateway's load; its client gave up before the first token."""
        if self.role is not Role.SERVE:
            self.backlog_seconds -= self._prefill_seconds(request)
            self.inflight_tokens -= self.requests.prompt[request] + DEFAULT_OUTPUT_TOKENS

    def on_first_token(self, request: int, now: float) -> None:
        book = self.requests
        if self.role is not Role.SERVE:
            self.backlog_seconds -= self._prefill_seconds(request)
        self.totals.add_first_token(now - book.sent[request], self.prompt_tokens_to_compute(request))
        if self.role is not Role.PREFILL and book.first[request] < 0.0:
            book.first[request] = now

    def on_finished(self, request: int, now: float) -> None:
        if self.role is not Role.SERVE:
            self.inflight_tokens -= self.requests.prompt[request] + DEFAULT_OUTPUT_TOKENS
        book = self.requests
        if self.role is Role.PREFILL:
            self.totals.finished += 1
            book.prefilled.append((now, request))
        else:
            book.end[request] = now
            self.totals.add_answer(now - book.first[request], book.output[request] - 1)

    def _prefill_seconds(self, request: int) -> float:
        prompt = self.requests.prompt[request]
        return self.profile.prefill_time(prompt, prompt - self.prompt_tokens_to_compute(request))

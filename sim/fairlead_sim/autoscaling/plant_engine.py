"""Plant engine."""

from abc import ABC, abstractmethod

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Role
from fairlead_gateway.routing.router import DEFAULT_OUTPUT_TOKENS
from fairlead_sim.autoscaling.request_table import RequestTable

BLOCK_TOKENS = 16


class StepTotals:
    """What an engine counted since the counters were last taken. Histograms are counts per bucket, the last one beyond all bounds."""

    def __init__(self, ttft_bounds: tuple[float, ...], itl_bounds: tuple[float, ...]) -> None:
        self._ttft_bounds = ttft_bounds
        self._itl_bounds = itl_bounds
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.gap_seconds = 0.0
        self.finished = 0
        self.first_tokens = 0
        self.ttft_seconds = 0.0
        self.ttft_counts = [0] * (len(ttft_bounds) + 1)
        self.itl_counts = [0] * (len(itl_bounds) + 1)

    def add_gaps(self, tokens: int, seconds: float) -> None:
        """So many tokens came, each so long after the one before it."""
        self.gap_seconds += tokens * seconds
        bucket = 0
        for bound in self._itl_bounds:
            if seconds <= bound:
                break
            bucket += 1
        self.itl_counts[bucket] += tokens

    def add_first_token(self, seconds: float, prompt_tokens: int) -> None:
        """A first token came so long after its request."""
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
        """The same with nothing counted."""
        return StepTotals(self._ttft_bounds, self._itl_bounds)


class PlantEngine(ABC):
    """What the plant asks of an engine. ``at`` is when its next step can begin; ``factor`` stretches every step (1 = as its profile
    says). A decode engine computes one token of each prompt whose KV came from a prefill engine, which answered with a single token
    that no client sees, and all of one that was kept there. ``backlog_seconds`` and ``inflight_tokens`` are what a gateway's ledger
    has of an engine with a role."""

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
        """Queue a request; ``advance`` has been called up to ``now``."""

    @abstractmethod
    def advance(self, until: float) -> None:
        """Take every step that begins before ``until``."""

    @abstractmethod
    def drop_abandoned(self, now: float) -> None:
        """Drop waiting requests whose clients gave up."""

    @abstractmethod
    def evict(self) -> list[int]:
        """Everything that is here, in the order in which it came; nothing is afterwards."""

    @abstractmethod
    def running(self) -> int:
        """Sequences in the batch."""

    @abstractmethod
    def waiting(self) -> int:
        """Sequences queued."""

    @abstractmethod
    def kv_share(self) -> float:
        """Of the KV memory that running sequences fill, 0..1."""

    @abstractmethod
    def load_tokens(self) -> int:
        """What a router goes by: tokens in flight, those of prompts not yet computed twice."""

    # What both kinds do alike --------------------------------------------------------------------------------------------

    def prompt_tokens_to_compute(self, request: int) -> int:
        """Prompt tokens that this engine computes."""
        return (
            1
            if self.role is Role.DECODE and not self.requests.computed_at_decode[request]
            else self.requests.prompt[request]
        )

    def tokens_to_generate(self, request: int) -> int:
        """Tokens that this engine answers with."""
        return 1 if self.role is Role.PREFILL else self.requests.output[request]

    def blocks_needed(self, request: int) -> int:
        """KV blocks that a prompt and its answer take."""
        return -(-(self.requests.prompt[request] + self.tokens_to_generate(request) - 1) // BLOCK_TOKENS)

    def on_routed(self, request: int) -> None:
        """It was sent here."""
        if self.role is not Role.SERVE:
            self.backlog_seconds += self._prefill_seconds(request)
            self.inflight_tokens += self.requests.prompt[request] + DEFAULT_OUTPUT_TOKENS

    def on_client_gone(self, request: int) -> None:
        """Its client has gone before the first token."""
        if self.role is not Role.SERVE:
            self.backlog_seconds -= self._prefill_seconds(request)
            self.inflight_tokens -= self.requests.prompt[request] + DEFAULT_OUTPUT_TOKENS

    def on_first_token(self, request: int, now: float) -> None:
        """Its first token came."""
        book = self.requests
        if self.role is not Role.SERVE:
            self.backlog_seconds -= self._prefill_seconds(request)
        self.totals.add_first_token(now - book.sent[request], self.prompt_tokens_to_compute(request))
        if self.role is not Role.PREFILL and book.first[request] < 0.0:
            book.first[request] = now

    def on_finished(self, request: int, now: float) -> None:
        """Its last token came."""
        if self.role is not Role.SERVE:
            self.inflight_tokens -= self.requests.prompt[request] + DEFAULT_OUTPUT_TOKENS
        self.totals.finished += 1
        if self.role is Role.PREFILL:
            self.requests.prefilled.append((now, request))
        else:
            self.requests.end[request] = now

    def _prefill_seconds(self, request: int) -> float:
        prompt = self.requests.prompt[request]
        return self.profile.prefill_time(prompt, prompt - self.prompt_tokens_to_compute(request))

"""The token-level engine in the plant, to compare the aggregated engine with."""

from itertools import count

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Role
from fairlead_sim.autoscaling.plant_engine import BLOCK_TOKENS, PlantEngine, StepTotals
from fairlead_sim.autoscaling.request_table import RequestTable
from fairlead_sim.engine.scheduler import EngineCore
from fairlead_sim.engine.sequence import EngineSequence


class TokenEngine(PlantEngine):
    """A plant engine that is an ``EngineCore``, without a prefix cache.

    preempting: admits a prompt that fits without its output, and preempts later.
    """

    def __init__(
        self,
        profile: EngineProfile,
        role: Role,
        requests: RequestTable,
        totals: StepTotals,
        *,
        preempting: bool = False,
    ) -> None:
        super().__init__(profile, role, requests, totals)
        self._core = EngineCore(profile, block_tokens=BLOCK_TOKENS, max_queue=1 << 30, events=False)
        self._order = count()
        self._requests_by_name: dict[str, int] = {}
        self._reserve_tokens = 0 if preempting else None
        self._preempted_at: dict[str, float] = {}  # preempted answer → time of its last token

    def add(self, request: int, now: float) -> None:
        if self._core.is_idle:
            self.next_step_at = max(self.next_step_at, now)
        book, name = self.requests, f"{request}/{next(self._order)}"
        self._requests_by_name[name] = request
        sequence = EngineSequence(
            name,
            now,
            book.prompt[request],
            self.tokens_to_generate(request),
            reserve_tokens=self._reserve_tokens,
            uses_cache=False,
        )
        sequence.pulled_tokens = book.prompt[request] - self.prompt_tokens_to_compute(request)
        self.on_routed(request)
        self._core.add(sequence)

    def advance(self, until: float) -> None:
        while self.next_step_at < until:
            self.drop_abandoned(self.next_step_at)
            step = self._core.step(self.next_step_at)
            if step is None:
                return
            seconds = self.slowdown * step.seconds
            for sequence in step.preempted:
                if sequence.generated:
                    self._preempted_at.setdefault(sequence.id, self.next_step_at)
            self.next_step_at += seconds
            decoded = len(step.tokens) - len(step.decode_starts)
            self.totals.generated_tokens += decoded
            self.totals.add_gaps(decoded, seconds)
            for sequence in step.decode_starts:
                before = self._preempted_at.pop(sequence.id, None)
                if before is not None:
                    self.totals.generated_tokens += 1
                    self.totals.add_gaps(1, self.next_step_at - before)
            for sequence in step.first_tokens:
                self.on_first_token(self._requests_by_name[sequence.id], self.next_step_at)
            for sequence, _ in step.finished:
                self.on_finished(self._requests_by_name.pop(sequence.id), self.next_step_at)

    def evict(self) -> list[int]:
        requests = sorted(self._requests_by_name.values())
        for name in self._requests_by_name:
            self._core.abort(name)
        self._requests_by_name.clear()
        self.backlog_seconds = self.inflight_tokens = 0.0
        self._preempted_at.clear()
        return requests

    def running(self) -> int:
        return self._core.stats.running

    def waiting(self) -> int:
        return self._core.stats.waiting

    def kv_share(self) -> float:
        return self._core.stats.kv_usage

    def load_tokens(self) -> int:
        burden = 0
        for sequence in self._core.sequences():
            burden += sequence.prompt_tokens + sequence.generated
            if not sequence.generated:
                burden += sequence.prompt_tokens - sequence.computed
        return burden

    def uncomputed_tokens(self) -> int:
        tokens = 0
        for sequence in self._core.sequences():
            if not sequence.generated:
                tokens += sequence.prompt_tokens - max(sequence.computed, sequence.pulled_tokens)
        return tokens

    def drop_abandoned(self, now: float) -> None:
        for sequence in self._core.sequences():
            request = self._requests_by_name[sequence.id]
            if not sequence.generated and self.requests.has_given_up(request, now):
                self._core.abort(sequence.id)
                del self._requests_by_name[sequence.id]
                self.on_client_gone(request)
                self.requests.abandoned += 1

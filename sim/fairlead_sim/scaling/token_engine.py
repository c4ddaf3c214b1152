"""The token-level engine in the plant's clothes: what the aggregated one is compared with."""

from itertools import count

from fairlead.fleet import Role
from fairlead.profile import EngineProfile
from fairlead_sim.engine import EngineCore
from fairlead_sim.scaling.book import Book
from fairlead_sim.scaling.engine import BLOCK_TOKENS, Engine, Tally
from fairlead_sim.sequence import Sequence


class TokenEngine(Engine):
    """``EngineCore``, step by step. Nothing is found in its cache. ``preempting``: a prompt is admitted where it fits, and its answer
    may have to make room for others later."""

    def __init__(
        self, profile: EngineProfile, role: Role, book: Book, tally: Tally, *, preempting: bool = False
    ) -> None:
        super().__init__(profile, role, book, tally)
        self._core = EngineCore(profile, block_tokens=BLOCK_TOKENS, max_queue=1 << 30, events=False)
        self._order = count()
        self._here: dict[str, int] = {}
        self._reserve_tokens = 0 if preempting else None
        self._put_back: dict[str, float] = {}  # when the last token came of answers that were preempted

    def add(self, request: int, now: float) -> None:
        if self._core.idle:
            self.at = max(self.at, now)
        book, name = self.book, f"{request}/{next(self._order)}"
        self._here[name] = request
        sequence = Sequence(
            name,
            now,
            book.prompt[request],
            self.to_generate(request),
            reserve_tokens=self._reserve_tokens,
            lookup=False,
        )
        sequence.pulled_tokens = book.prompt[request] - self.to_compute(request)
        self.came(request)
        self._core.add(sequence)

    def advance(self, until: float) -> None:
        while self.at < until:
            self.sweep(self.at)
            step = self._core.step(self.at)
            if step is None:
                return
            seconds = self.factor * step.seconds
            for sequence in step.preempted:
                if sequence.generated:
                    self._put_back.setdefault(sequence.id, self.at)
            self.at += seconds
            decoded = len(step.tokens) - len(step.joined)
            self.tally.generated_tokens += decoded
            self.tally.gaps(decoded, seconds)
            for sequence in step.joined:
                before = self._put_back.pop(sequence.id, None)
                if before is not None:
                    self.tally.generated_tokens += 1
                    self.tally.gaps(1, self.at - before)
            for sequence in step.first:
                self.answered(self._here[sequence.id], self.at)
            for sequence, _ in step.finished:
                self.ended(self._here.pop(sequence.id), self.at)

    def evict(self) -> list[int]:
        here = sorted(self._here.values())
        for name in self._here:
            self._core.abort(name)
        self._here.clear()
        self.backlog_seconds = self.inflight_tokens = 0.0
        self._put_back.clear()
        return here

    def running(self) -> int:
        return self._core.stats.running

    def waiting(self) -> int:
        return self._core.stats.waiting

    def kv_share(self) -> float:
        return self._core.stats.kv_usage

    def burden_tokens(self) -> int:
        burden = 0
        for sequence in self._core.sequences():
            burden += sequence.prompt_tokens + sequence.generated
            if not sequence.generated:
                burden += sequence.prompt_tokens - sequence.computed
        return burden

    def sweep(self, now: float) -> None:
        for sequence in self._core.sequences():
            request = self._here[sequence.id]
            if not sequence.generated and self.book.gone(request, now):
                self._core.abort(sequence.id)
                del self._here[sequence.id]
                self.left(request)
                self.book.abandoned += 1

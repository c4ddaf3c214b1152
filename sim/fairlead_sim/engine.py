"""The scheduler core of a simulated engine: continuous batching over a block prefix cache, timed by a profile.

The core has no clock and does no I/O. ``step(now)`` plans one step and says how long it takes; the caller waits that long, on a real
or a virtual clock, delivers the results and calls again. One step:

1. Every decoding sequence gets one token. A sequence whose blocks are full needs another first; where none is left, the
   last-come running sequence is put back to the queue and computed anew later (preemption).
2. What is left of the step's token budget goes to prompts under way, then to new ones in the queue's order, in chunks. The queue's
   head is admitted when the rest of its prompt and its reserved output fit beside what was promised to the others, and
   nobody overtakes it. Whole blocks found in the cache are not computed, but at least one token always is.
3. A prompt completed in this step yields its first token in it.

Stretches in which sequences only decode need not be stepped through: ``steady`` says for how many steps nothing else happens,
``foresee`` when each of them ends, to the last bit as ``step`` would have it, and ``advance`` takes them all at once.

A block is findable from the moment its computation is planned: a sequence planned later in the same step reads what this very
step writes, as real engines do. Block keys know nothing of text; they are the caller's, or chained from token ids.
"""

import heapq
from array import array
from itertools import count

from xxhash import xxh3_64_intdigest

from fairlead.errors import BadInput, Unavailable
from fairlead.limits import Limits
from fairlead.profile import EngineProfile
from fairlead_sim.blocks import BlockPool, Stored, chain_root, chained
from fairlead_sim.sequence import EngineStats, Sequence, SequenceState, Step

__all__ = ["EngineCore", "EngineStats", "QueueFull", "Sequence", "SequenceState", "Step"]

_RUNNING = SequenceState.RUNNING


class QueueFull(Unavailable):
    """Raised when the engine has as many unfinished sequences as it may."""


class EngineCore:
    """One engine. ``max_queue`` caps all unfinished sequences at admission, as ``--max-num-queued-reqs`` does. ``pool``: memory
    that it shares with other engines, which none does in reality (``fairlead_sim.pooled``)."""

    def __init__(
        self,
        profile: EngineProfile,
        *,
        block_tokens: int = 16,
        max_queue: int | None = None,
        scheduling: str = "fcfs",
        events: bool = True,
        pool: BlockPool | None = None,
    ) -> None:
        if scheduling not in ("fcfs", "priority"):
            raise BadInput(f"no scheduling is called {scheduling!r}", field="scheduling", hint="fcfs or priority")
        if not 0 < block_tokens <= profile.kv_tokens:
            raise BadInput(f"a block of {block_tokens} tokens does not fit the engine", field="block_tokens")
        self.profile = profile
        self.block_tokens = block_tokens
        self.pool = pool or BlockPool(profile.kv_tokens // block_tokens, block_tokens, events=events)
        self._cap = Limits().sim_queue if max_queue is None else max_queue
        self._by_priority = scheduling == "priority"
        self._max_sequences = max(1, min(profile.max_sequences, profile.step_tokens))
        self._order = count()
        self._sequences: dict[str, Sequence] = {}
        self._queue: list[tuple[tuple[float, float, int], Sequence]] = []  # a heap; the aborted stay until they surface
        self._waiting = 0
        self._prefilling: list[Sequence] = []
        self._decoding: list[Sequence] = []
        self._growing: list[Sequence] = []  # decoding, and their blocks are full
        self._resident = 0  # KV tokens that the next decode step reads
        self._promised = 0  # blocks reserved for running sequences and not taken yet
        self._paused = False
        self._computed_total = self._cached_total = self._pulled_total = self._generated_total = 0
        self._queries_total = self._hits_total = self._preempted_total = self._steps_total = 0

    # What callers ask for ------------------------------------------------------------------------------------------------

    @property
    def max_tokens(self) -> int:
        """The longest sequence, prompt and output together, that memory holds."""
        return self.pool.blocks * self.block_tokens

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not self._sequences

    @property
    def paused(self) -> bool:
        """Whether ``step`` is stopped."""
        return self._paused

    def sequences(self) -> list[Sequence]:
        """Everything running or waiting, oldest first."""
        return list(self._sequences.values())

    def add(self, sequence: Sequence) -> None:
        """Queue a fresh sequence. Raises QueueFull, or BadInput when it could never run here."""
        if len(self._sequences) >= self._cap:
            raise QueueFull(f"the engine already has {len(self._sequences)} unfinished requests")
        if sequence.id in self._sequences:
            raise BadInput(f"a request {sequence.id!r} is already here", field="id")
        if sequence.prompt_tokens < 1 or sequence.max_tokens < 0:
            raise BadInput("a prompt has at least one token, an output none or more", field="prompt_tokens")
        longest = sequence.prompt_tokens + max(0, sequence.max_tokens - 1)
        if longest > self.max_tokens:
            raise BadInput(f"{longest} tokens do not fit the engine's {self.max_tokens}", field="max_tokens")
        turn = next(self._order)
        sequence.rank = (sequence.priority, sequence.arrival, turn) if self._by_priority else (0, 0, turn)
        sequence.chain = list(sequence.keys[: sequence.prompt_tokens // self.block_tokens])
        self._sequences[sequence.id] = sequence
        self._enqueue(sequence)

    def abort(self, sequence_id: str) -> bool:
        """Drop a sequence at once, its blocks stay findable; False when it is not here."""
        return self._end(sequence_id, SequenceState.ABORTED, "abort")

    def finish(self, sequence_id: str, reason: str) -> bool:
        """End a sequence early and well, as a stop string does; False when it is not here any more."""
        return self._end(sequence_id, SequenceState.FINISHED, reason)

    def pause(self) -> None:
        """No more steps until ``resume``; everything stays where it is and may be added to."""
        self._paused = True

    def resume(self) -> None:
        """Go on after ``pause``."""
        self._paused = False

    def reset_prefix_cache(self, *, preempt_running: bool = False) -> bool:
        """Forget all cached blocks; False while any runs. ``preempt_running`` puts those back to the queue first.

        Listeners hear of it with the events of the next step.
        """
        if preempt_running:
            for sequence in sorted(self._running(), key=_rank, reverse=True):
                self._preempt(sequence)
        return self.pool.clear()

    @property
    def stats(self) -> EngineStats:
        """Gauges and counters at this moment."""
        return EngineStats(
            running=len(self._decoding) + len(self._prefilling),
            waiting=self._waiting,
            kv_usage=self.pool.held / self.pool.blocks,
            blocks=self.pool.blocks,
            resident_blocks=self.pool.resident,
            prompt_tokens_total=self._computed_total + self._cached_total + self._pulled_total,
            computed_prompt_tokens_total=self._computed_total,
            cached_prompt_tokens_total=self._cached_total,
            generation_tokens_total=self._generated_total,
            prefix_queries_total=self._queries_total,
            prefix_hits_total=self._hits_total,
            preemptions_total=self._preempted_total,
            steps_total=self._steps_total,
            pulled_prompt_tokens_total=self._pulled_total,
        )

    def step(self, now: float) -> Step | None:
        """Plan the step that begins at ``now``; None when there is nothing to do or the engine is paused."""
        if self._paused or not self._sequences:
            return None
        step = Step()
        if self._growing:
            self._grow(step)
        joined: list[Sequence] = []
        attention, chunks = 0.0, 0
        if self._prefilling or self._waiting:
            attention, chunks = self._prefill(step, joined, now)
        decoding = self._decoding
        profile = self.profile
        step.seconds = profile.step(
            computed=len(decoding) + step.prefilled,
            sequences=len(decoding) + chunks,
            resident=self._resident,
            attention=attention,
            hit=step.hits,
        )
        self._resident += len(decoding)
        turning = []
        for sequence in decoding:
            sequence.generated += 1
            sequence.due -= 1
            if not sequence.due:
                turning.append(sequence)
        step.tokens = decoding.copy()
        for sequence in turning:
            self._turn(sequence, step)
        if step.finished:
            self._decoding = [sequence for sequence in decoding if sequence.state is _RUNNING]
        if joined:
            self._join(joined, step, now + step.seconds)
        self._generated_total += len(step.tokens)
        self._steps_total += 1
        step.events = self.pool.drain()
        return step

    def steady(self) -> int:
        """For how many steps from now on every one is one more token for each decoding sequence and nothing else; often none."""
        if self._paused or self._waiting or self._prefilling or self._growing or not self._decoding:
            return 0
        return min([sequence.due for sequence in self._decoding]) - 1

    def foresee(self, now: float, steps: int, ends: "array[float]") -> float:
        """When each of so many steady steps ends, the first beginning at ``now``, put behind ``ends``; the last of them is
        returned. Nothing changes by it."""
        profile, decoding, resident = self.profile, len(self._decoding), self._resident
        fixed = profile.step(computed=decoding, sequences=decoding, resident=0)
        each = profile.resident_token_seconds
        for _ in range(steps):
            now = now + (fixed + each * resident)
            ends.append(now)
            resident += decoding
        return now

    def advance(self, steps: int) -> None:
        """Take so many steady steps at once."""
        decoding = self._decoding
        tokens = steps * len(decoding)
        self._resident += tokens
        self._generated_total += tokens
        self._steps_total += steps
        for sequence in decoding:
            sequence.generated += steps
            sequence.due -= steps

    # Prompts -------------------------------------------------------------------------------------------------------------

    def _prefill(self, step: Step, joined: list[Sequence], now: float) -> tuple[float, int]:
        """Spend the budget that decoding leaves on prompts: (attention pairs, chunks)."""
        budget = self.profile.step_tokens - len(self._decoding)
        attention, chunks = 0.0, 0
        for sequence in tuple(self._prefilling):  # at most one: a prompt stays incomplete only when the budget is spent
            done = self._chunk(sequence, budget, step) if budget > 0 else 0
            if done:
                budget -= done
                attention += done * (sequence.computed - done / 2)
                chunks += 1
        while budget > 0 and self._waiting and not step.preempted:
            admitted = self._admit(step, now)
            if admitted is None:
                break
            done = self._chunk(admitted, budget, step)
            budget -= done
            attention += done * (admitted.computed - done / 2)
            chunks += 1
        for sequence in self._prefilling:
            if sequence.computed == sequence.prompt_tokens + sequence.generated:
                joined.append(sequence)
        if joined:
            self._prefilling = [sequence for sequence in self._prefilling if sequence not in joined]
        return attention, chunks

    def _admit(self, step: Step, now: float) -> Sequence | None:
        """Move the queue's head to the running ones if it fits."""
        if self._running_count() >= self._max_sequences:
            return None
        sequence = self._head()
        block_tokens = self.block_tokens
        target = sequence.prompt_tokens + sequence.generated
        limit = (target - 1) // block_tokens if sequence.lookup else 0
        hits = self.pool.match(sequence.chain, limit)
        reserve = sequence.max_tokens if sequence.reserve_tokens is None else sequence.reserve_tokens
        longest = sequence.prompt_tokens + max(0, min(reserve, sequence.max_tokens) - 1)
        need = -(-max(target, longest) // block_tokens)
        if need - len(hits) > self.pool.available - self.pool.kept(hits) - self._promised:
            return None
        heapq.heappop(self._queue)
        self._waiting -= 1
        self.pool.hold(hits)
        sequence.state = _RUNNING
        sequence.blocks = hits
        sequence.computed = len(hits) * block_tokens
        sequence.reserved_blocks = need
        self._promised += need - len(hits)
        step.hits += sequence.computed
        if sequence.admitted_at is None:
            sequence.admitted_at = now
            sequence.cached_tokens = sequence.computed
            if sequence.lookup:
                self._queries_total += target
                self._hits_total += sequence.computed
            if sequence.announce_hits and hits and self.pool.recording:
                self.pool.announce(self._stored(sequence, 0, len(hits)))
        self._prefilling.append(sequence)
        if sequence.pulled_tokens and not self._write_pulled(sequence, step):
            return None
        return sequence

    def _write_pulled(self, sequence: Sequence, step: Step) -> bool:
        """Put KV that came from another engine into blocks of its own; the last token is always computed here."""
        begin = len(sequence.blocks)
        reached = min(sequence.pulled_tokens, sequence.prompt_tokens - 1)
        for _ in range(begin, -(-reached // self.block_tokens)):
            if not self._take(sequence, step):
                return False
        sequence.pulled_tokens = max(0, reached - sequence.computed)
        sequence.computed += sequence.pulled_tokens
        self._store(sequence, begin, sequence.computed // self.block_tokens)
        return True

    def _chunk(self, sequence: Sequence, budget: int, step: Step) -> int:
        """Compute up to ``budget`` more tokens of a prompt: how many. 0 when it had to be put back itself."""
        target = sequence.prompt_tokens + sequence.generated
        size = min(budget, target - sequence.computed)
        needed = -(-(sequence.computed + size) // self.block_tokens) - len(sequence.blocks)
        for _ in range(needed):
            if not self._take(sequence, step):
                return 0
        begin = sequence.computed // self.block_tokens
        sequence.computed += size
        step.prefilled += size
        self._store(sequence, begin, sequence.computed // self.block_tokens)
        return size

    def _join(self, joined: list[Sequence], step: Step, end: float) -> None:
        """Prompts completed in this step give their first token and decode from the next step on."""
        for sequence in joined:
            if sequence.first_token_at is None:
                self._computed_total += sequence.prompt_tokens - sequence.cached_tokens - sequence.pulled_tokens
                self._cached_total += sequence.cached_tokens
                self._pulled_total += sequence.pulled_tokens
                sequence.first_token_at = end
                if sequence.max_tokens:
                    step.first.append(sequence)
            if not sequence.max_tokens:
                self._complete(sequence, "stop", step)
                continue
            sequence.generated += 1
            step.tokens.append(sequence)
            step.joined.append(sequence)
            if sequence.generated >= sequence.max_tokens:
                self._complete(sequence, "length", step)
                continue
            self._decoding.append(sequence)
            self._resident += sequence.prompt_tokens + sequence.generated
            self._next_turn(sequence)

    # Decoding ------------------------------------------------------------------------------------------------------------

    def _grow(self, step: Step) -> None:
        """Give each decoding sequence whose blocks are full one more."""
        growing, self._growing = self._growing, []
        for sequence in growing:
            if sequence.state is _RUNNING:
                self._take(sequence, step)

    def _turn(self, sequence: Sequence, step: Step) -> None:
        """A decoding sequence has filled a block or reached its end."""
        computed = sequence.prompt_tokens + sequence.generated - 1
        if computed % self.block_tokens == 0:
            full = computed // self.block_tokens
            self._store(sequence, full - 1, full)
        if sequence.generated >= sequence.max_tokens:
            self._resident -= sequence.prompt_tokens + sequence.generated
            self._complete(sequence, "length", step)
        else:
            self._next_turn(sequence)

    def _next_turn(self, sequence: Sequence) -> None:
        filled = (sequence.prompt_tokens + sequence.generated - 1) % self.block_tokens
        if not filled:
            self._growing.append(sequence)
        sequence.due = min(self.block_tokens - filled, sequence.max_tokens - sequence.generated)

    def _complete(self, sequence: Sequence, reason: str, step: Step) -> None:
        del self._sequences[sequence.id]
        self._give_back(sequence)
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason = reason
        step.finished.append((sequence, reason))

    # Blocks --------------------------------------------------------------------------------------------------------------

    def _take(self, sequence: Sequence, step: Step) -> bool:
        """One more block for a running sequence; False when it was put back itself to make room."""
        block = self.pool.take()
        while block is None:
            victim = max(self._running(), key=_rank)
            self._preempt(victim)
            step.preempted.append(victim)
            if victim is sequence:
                return False
            block = self.pool.take()
        if len(sequence.blocks) < sequence.reserved_blocks:
            self._promised -= 1
        sequence.blocks.append(block)
        return True

    def _give_back(self, sequence: Sequence) -> None:
        self._promised -= max(0, sequence.reserved_blocks - len(sequence.blocks))
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.reserved_blocks = 0

    def _store(self, sequence: Sequence, begin: int, end: int) -> None:
        """Make the sequence's blocks ``begin`` … ``end`` − 1 findable, as far as their keys can be known."""
        chain = sequence.chain
        while len(chain) < end:
            key = self._next_key(sequence)
            if key is None:
                end = len(chain)
                break
            chain.append(key)
        if begin < end:
            event = self._stored(sequence, begin, end) if self.pool.recording else None
            self.pool.store(sequence.blocks[begin:end], chain[begin:end], event)

    def _stored(self, sequence: Sequence, begin: int, end: int) -> Stored:
        size = self.block_tokens
        ids = sequence.tokens
        return Stored(
            keys=tuple(sequence.chain[begin:end]),
            parent=sequence.chain[begin - 1] if begin else None,
            tokens=None if ids is None else tuple(ids[begin * size : end * size]),
            block_tokens=size,
            adapter=sequence.adapter,
            salt=None if begin else sequence.salt,
            session=sequence.session,
        )

    def _next_key(self, sequence: Sequence) -> int | None:
        """The key behind the sequence's last one: from its token ids, made up where it has none, None if they lag."""
        at = len(sequence.chain)
        parent = sequence.chain[-1] if at else chain_root(salt=sequence.salt, adapter=sequence.adapter)
        if sequence.tokens is None:
            return xxh3_64_intdigest(sequence.id.encode("utf-8", "surrogatepass"), parent)
        begin, end = at * self.block_tokens, (at + 1) * self.block_tokens
        return chained(parent, sequence.tokens[begin:end]) if end <= len(sequence.tokens) else None

    # Leaving and coming back ---------------------------------------------------------------------------------------------

    def _running(self) -> list[Sequence]:
        return self._decoding + self._prefilling

    def _running_count(self) -> int:
        return len(self._decoding) + len(self._prefilling)

    def _withdraw(self, sequence: Sequence) -> None:
        """Take a running sequence out of its list and let its blocks go."""
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)
        else:
            self._decoding.remove(sequence)
            self._resident -= sequence.prompt_tokens + sequence.generated
        self._give_back(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the queue, where its old rank puts it before everyone who came later."""
        self._withdraw(sequence)
        sequence.computed = sequence.pulled_tokens = 0
        sequence.preemptions += 1
        self._preempted_total += 1
        self._enqueue(sequence)

    def _enqueue(self, sequence: Sequence) -> None:
        sequence.state = SequenceState.WAITING
        heapq.heappush(self._queue, (sequence.rank, sequence))
        self._waiting += 1

    def _head(self) -> Sequence:
        """The first of the queue that still waits; only called when one does."""
        while self._queue[0][1].state is not SequenceState.WAITING:
            heapq.heappop(self._queue)
        return self._queue[0][1]

    def _end(self, sequence_id: str, state: SequenceState, reason: str) -> bool:
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is None:
            return False
        if sequence.state is _RUNNING:
            self._withdraw(sequence)
        else:
            self._waiting -= 1
        sequence.state = state
        sequence.finish_reason = reason
        return True


def _rank(sequence: Sequence) -> tuple[float, float, int]:
    return sequence.rank

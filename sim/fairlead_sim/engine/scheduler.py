"""The scheduler of a simulated engine: continuous batching over a block prefix cache.

The core has no clock and does no I/O. ``step(now)`` plans one step and returns its duration by the
engine profile. The caller waits that long on a real or a virtual clock, delivers the results and
calls again. One step:

1. Every decoding sequence gets one token. A sequence whose blocks are full needs another block
   first. If none is left, the running sequence that came last returns to the queue and is computed
   again later (preemption).
2. The rest of the step's token budget goes to prompts: first to those in progress, then to new ones
   in queue order, in chunks. The head of the queue is admitted when the rest of its prompt and its
   reserved output fit with all other reservations. No sequence overtakes the head. Cached blocks
   are not computed, but at least one token always is.
3. A prompt that is complete in this step yields its first token in it.

A step is planned while the one before it runs. So a sequence that arrives during a step joins the
queue only when the next step is planned, unless the engine has no other work.
Source: ``step_with_batch_queue`` of vLLM's engine core, 0.32 (asynchronous scheduling).

Runs of steps that only decode need not be taken one by one. ``steady_steps`` returns their number,
``predict_step_ends`` their end times, equal to those of ``step`` to the last bit, and ``advance``
takes them at once.

A block is cached from the moment its computation is planned. A sequence that is planned later in
the same step reads it, as in real engines. Block keys come from the caller or are chained from
token ids.
"""

import heapq
from array import array
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Final

from fairlead.engine_profile import EngineProfile
from fairlead.errors import BadInput, Unavailable
from fairlead_sim.engine.block_pool import BlockEvicted, BlockPool
from fairlead_sim.engine.lower_tiers import LowerTier, find_tiers
from fairlead_sim.engine.sequence import EngineSequence, EngineStats, EngineStep, SequenceState

__all__ = ["EngineCore", "EngineSequence", "EngineStats", "EngineStep", "QueueFull", "SequenceState"]

SIM_QUEUE: Final = 100_000
"""Limit: requests waiting in one simulated engine."""

_RUNNING = SequenceState.RUNNING


class QueueFull(Unavailable):
    """Raised when the engine has its maximum of unfinished sequences."""


class EngineCore:
    """The scheduler of one engine.

    - max_queue: bound on all unfinished sequences, like ``--max-num-queued-reqs``.
    - pool: memory that several engines share; only ``experiments.ideal_bound`` does that.
    - lower_tiers: slower memory behind the pool, the fastest first; set before the first step.
    """

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
        self.lower_tiers: Sequence[LowerTier] = ()
        self._max_unfinished = SIM_QUEUE if max_queue is None else max_queue
        self._by_priority = scheduling == "priority"
        self._max_sequences = max(1, min(profile.max_sequences, profile.step_tokens))
        self._arrival_numbers = count()
        self._sequences: dict[str, EngineSequence] = {}
        # A heap; aborted sequences stay until they surface.
        self._queue: list[tuple[tuple[float, float, int], EngineSequence]] = []
        self._waiting = 0
        self._late: dict[str, EngineSequence] = {}  # arrived in the present step, after the next was planned
        self._is_stepping = False
        self._loading: list[EngineSequence] = []
        self._prefilling: list[EngineSequence] = []
        self._decoding: list[EngineSequence] = []
        self._block_full: list[EngineSequence] = []  # decoding sequences whose blocks are full
        self._resident = 0  # KV tokens that the next decode step reads
        self._reserved_blocks = 0  # reserved by running sequences, not allocated yet
        self._paused = False
        self._computed_total = self._cached_total = self._pulled_total = self._generated_total = 0
        self._queries_total = self._hits_total = self._preempted_total = self._steps_total = 0

    # Interface ------------------------------------------------------------------------------------------------

    @property
    def max_sequence_tokens(self) -> int:
        return self.pool.blocks * self.block_tokens

    @property
    def is_idle(self) -> bool:
        return not self._sequences

    @property
    def is_paused(self) -> bool:
        """Whether ``step`` returns None until ``resume``."""
        return self._paused

    @property
    def decoding_count(self) -> int:
        return len(self._decoding)

    def sequences(self) -> list[EngineSequence]:
        return list(self._sequences.values())

    def matched_blocks(self, keys: Sequence[int], tiers: Sequence[LowerTier] | None = None) -> int:
        """Returns how many blocks of a prompt are cached from its start on.

        tiers: the slower memory that counts; None: all.
        """
        matched = len(self.pool.match(keys, len(keys)))
        return matched + len(find_tiers(self.lower_tiers if tiers is None else tiers, keys[matched:]))

    def add(self, sequence: EngineSequence) -> None:
        """Queues a new sequence.

        Raises QueueFull, or BadInput for a sequence that could never run here.
        """
        if len(self._sequences) >= self._max_unfinished:
            raise QueueFull(f"the engine already has {len(self._sequences)} unfinished requests")
        if sequence.id in self._sequences:
            raise BadInput(f"the engine already has a request {sequence.id!r}", field="id")
        if sequence.prompt_tokens < 1 or sequence.max_tokens < 0:
            raise BadInput("a prompt has at least one token, an output none or more", field="prompt_tokens")
        max_length = sequence.prompt_tokens + max(0, sequence.max_tokens - 1)
        if max_length > self.max_sequence_tokens:
            raise BadInput(
                f"the request needs {max_length} tokens of memory, the engine has {self.max_sequence_tokens}",
                field="max_tokens",
            )
        arrival_number = next(self._arrival_numbers)
        sequence.rank = (
            (sequence.priority, sequence.arrival, arrival_number) if self._by_priority else (0, 0, arrival_number)
        )
        sequence.chain = list(sequence.keys[: sequence.prompt_tokens // self.block_tokens])
        self._sequences[sequence.id] = sequence
        if self._is_stepping:
            self._late[sequence.id] = sequence
        else:
            self._enqueue(sequence)

    def abort(self, sequence_id: str) -> bool:
        return self._end_early(sequence_id, SequenceState.ABORTED, "abort")

    def finish(self, sequence_id: str, reason: str) -> bool:
        """Ends a sequence early, as a stop string does. Returns False if the sequence is not
        here.
        """
        return self._end_early(sequence_id, SequenceState.FINISHED, reason)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    def reset_prefix_cache(self, *, preempt_running: bool = False) -> bool:
        """Empties the prefix cache. Returns False while any sequence runs.

        The event leaves with the next step.

        preempt_running: first returns the running sequences to the queue.
        """
        if preempt_running:
            for sequence in sorted(self._running(), key=_rank, reverse=True):
                self._preempt(sequence)
        return self.pool.clear()

    def clear_lower_tiers(self) -> None:
        """Drops what is in slower memory of this engine alone."""
        for tier in self.lower_tiers:
            if not tier.is_shared:
                tier.clear()

    @property
    def stats(self) -> EngineStats:
        """Returns the present gauges and counters."""
        return EngineStats(
            running=self._running_count(),
            waiting=self._waiting + len(self._late),
            kv_usage=self.pool.referenced / self.pool.blocks,
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

    def step(self, now: float) -> EngineStep | None:
        """Plans the step that begins at ``now``; None if there is nothing to do, or on pause."""
        self._is_stepping = False
        if self._paused or not self._sequences:
            self._enqueue_late()
            return None
        step = EngineStep()
        if self._loading:
            self._end_loads(now)
        if self._late and not (self._decoding or self._prefilling or self._waiting):
            self._enqueue_late()
        if self._block_full:
            self._allocate_for_decoding(step)
        prefilled: list[EngineSequence] = []
        attention, chunks = 0.0, 0
        if self._prefilling or self._waiting:
            attention, chunks = self._prefill(step, prefilled, now)
        decoding = self._decoding
        profile = self.profile
        if self._loading and not decoding and not step.prefilled:
            step.seconds = min([sequence.loaded_at for sequence in self._loading]) - now
        else:
            self._is_stepping = True
            step.seconds = profile.step_time(
                computed=len(decoding) + step.prefilled,
                sequences=len(decoding) + chunks,
                resident=self._resident,
                attention=attention,
                hit=step.cached,
            )
        self._resident += len(decoding)
        block_ends = []
        for sequence in decoding:
            sequence.generated += 1
            sequence.steps_to_block_end -= 1
            if not sequence.steps_to_block_end:
                block_ends.append(sequence)
        step.tokens = decoding.copy()
        for sequence in block_ends:
            self._end_block(sequence, step)
        if step.finished:
            self._decoding = [sequence for sequence in decoding if sequence.state is _RUNNING]
        if prefilled:
            self._complete_prefill(prefilled, step, now + step.seconds)
        self._generated_total += len(step.tokens)
        self._steps_total += 1
        self._enqueue_late()
        step.events = self.pool.drain_events()
        return step

    def steady_steps(self) -> int:
        """Returns how many steps from now on only decode; often 0."""
        is_mixed = self._waiting or self._late or self._prefilling or self._loading or self._block_full
        if self._paused or is_mixed or not self._decoding:
            return 0
        return min([sequence.steps_to_block_end for sequence in self._decoding]) - 1

    def predict_step_ends(self, now: float, steps: int, ends: "array[float]") -> float:
        """Appends the end times of the next steady steps to ``ends`` and returns the last one.

        The first step begins at ``now``. The state of the core does not change.
        """
        profile, decoding, resident = self.profile, len(self._decoding), self._resident
        fixed = profile.step_time(computed=decoding, sequences=decoding, resident=0)
        resident_token_seconds = profile.resident_token_seconds
        for _ in range(steps):
            now = now + (fixed + resident_token_seconds * resident)
            ends.append(now)
            resident += decoding
        return now

    def advance(self, steps: int) -> None:
        """Takes this many steady steps at once; at most ``steady_steps``."""
        decoding = self._decoding
        tokens = steps * len(decoding)
        self._resident += tokens
        self._generated_total += tokens
        self._steps_total += steps
        for sequence in decoding:
            sequence.generated += steps
            sequence.steps_to_block_end -= steps

    # Prompts -------------------------------------------------------------------------------------------------------------

    def _prefill(self, step: EngineStep, prefilled: list[EngineSequence], now: float) -> tuple[float, int]:
        """Spends the budget that decoding leaves on prompts. Returns (attention pairs, chunks)."""
        budget = self.profile.step_tokens - len(self._decoding)
        attention, chunks = 0.0, 0
        for sequence in tuple(self._prefilling):  # at most one: a prompt stays incomplete only when the budget is spent
            computed = self._compute_chunk(sequence, budget, step) if budget > 0 else 0
            if computed:
                budget -= computed
                attention += computed * (sequence.computed - computed / 2)
                chunks += 1
        while budget > 0 and self._waiting and not step.preempted:
            admitted = self._admit(step, now)
            if admitted is None:
                break
            if admitted.loaded_at > now:
                continue
            computed = self._compute_chunk(admitted, budget, step)
            budget -= computed
            attention += computed * (admitted.computed - computed / 2)
            chunks += 1
        for sequence in self._prefilling:
            if sequence.computed == sequence.prompt_tokens + sequence.generated:
                prefilled.append(sequence)
        if prefilled:
            self._prefilling = [sequence for sequence in self._prefilling if sequence not in prefilled]
        return attention, chunks

    def _admit(self, step: EngineStep, now: float) -> EngineSequence | None:
        """Starts the head of the queue and returns it; None if it does not fit or was preempted."""
        if self._running_count() >= self._max_sequences:
            return None
        sequence = self._queue_head()
        block_tokens = self.block_tokens
        target = sequence.prompt_tokens + sequence.generated
        limit = (target - 1) // block_tokens if sequence.uses_cache else 0
        hits = self.pool.match(sequence.chain, limit)
        reserve = sequence.max_tokens if sequence.reserve_tokens is None else sequence.reserve_tokens
        max_length = sequence.prompt_tokens + max(0, min(reserve, sequence.max_tokens) - 1)
        needed_blocks = -(-max(target, max_length) // block_tokens)
        if needed_blocks - len(hits) > self.pool.allocatable - self.pool.count_evictable(hits) - self._reserved_blocks:
            return None
        heapq.heappop(self._queue)
        self._waiting -= 1
        self.pool.acquire(hits)
        sequence.state = _RUNNING
        sequence.blocks = hits
        sequence.computed = len(hits) * block_tokens
        sequence.reserved_blocks = needed_blocks
        self._reserved_blocks += needed_blocks - len(hits)
        step.cached += sequence.computed
        if sequence.admitted_at is None:
            sequence.admitted_at = now
            sequence.cached_tokens = sequence.computed
            if sequence.uses_cache:
                self._queries_total += target
                self._hits_total += sequence.computed
            if sequence.publishes_hits and hits and self.pool.records_events:
                self.pool.publish(sequence.stored_event(0, len(hits), block_tokens))
        self._prefilling.append(sequence)
        can_load = self.lower_tiers or sequence.peer_blocks
        if can_load and sequence.uses_cache and not sequence.pulled_tokens:
            return self._load_blocks(sequence, limit, step, now)
        if sequence.pulled_tokens and not self._write_pulled(sequence, step):
            return None
        return sequence

    def _load_blocks(self, sequence: EngineSequence, limit: int, step: EngineStep, now: float) -> EngineSequence | None:
        """Begins to load the blocks of an admitted prompt that a peer or slower memory has.

        Returns None if the sequence was preempted.
        """
        first, seconds = len(sequence.blocks), 0.0
        copied = max(first, min(sequence.peer_blocks, limit))
        if copied > first and sequence.pull is not None:
            seconds = sequence.pull.transfer_seconds((copied - first) * self.block_tokens)
        tiers = find_tiers(self.lower_tiers, sequence.chain[copied:limit])
        reached = copied + len(tiers)
        if reached == first:
            return sequence
        sequence.loaded_at = now + seconds + sum([tier.block_seconds for tier in tiers])
        sequence.pulled_tokens = reached * self.block_tokens
        if not self._write_pulled(sequence, step):
            return None
        sequence.pulled_tokens = 0
        if sequence.first_token_at is None:
            sequence.cached_tokens = sequence.computed
        self._prefilling.remove(sequence)
        self._loading.append(sequence)
        return sequence

    def _end_loads(self, now: float) -> None:
        self._prefilling += [sequence for sequence in self._loading if sequence.loaded_at <= now]
        self._loading = [sequence for sequence in self._loading if sequence.loaded_at > now]

    def _write_pulled(self, sequence: EngineSequence, step: EngineStep) -> bool:
        """Caches the tokens that another engine computed, except the last one.

        Returns False if the sequence was preempted.
        """
        begin = len(sequence.blocks)
        reached = min(sequence.pulled_tokens, sequence.prompt_tokens + sequence.generated - 1)
        for _ in range(begin, -(-reached // self.block_tokens)):
            if not self._allocate_block(sequence, step):
                return False
        sequence.pulled_tokens = max(0, reached - sequence.computed)
        sequence.computed += sequence.pulled_tokens
        self._register_blocks(sequence, begin, sequence.computed // self.block_tokens)
        return True

    def _compute_chunk(self, sequence: EngineSequence, budget: int, step: EngineStep) -> int:
        """Computes up to ``budget`` tokens of a prompt. Returns their number; 0 after a
        preemption.
        """
        target = sequence.prompt_tokens + sequence.generated
        size = min(budget, target - sequence.computed)
        needed = -(-(sequence.computed + size) // self.block_tokens) - len(sequence.blocks)
        for _ in range(needed):
            if not self._allocate_block(sequence, step):
                return 0
        begin = sequence.computed // self.block_tokens
        sequence.computed += size
        step.prefilled += size
        self._register_blocks(sequence, begin, sequence.computed // self.block_tokens)
        return size

    def _complete_prefill(self, prefilled: list[EngineSequence], step: EngineStep, end: float) -> None:
        """Gives each completed prompt a token (none if ``max_tokens`` is 0); it decodes or ends."""
        for sequence in prefilled:
            if sequence.first_token_at is None:
                self._computed_total += sequence.prompt_tokens - sequence.cached_tokens - sequence.pulled_tokens
                self._cached_total += sequence.cached_tokens
                self._pulled_total += sequence.pulled_tokens
                sequence.first_token_at = end
                if sequence.max_tokens:
                    step.first_tokens.append(sequence)
            if not sequence.max_tokens:
                self._complete(sequence, "stop", step)
                continue
            sequence.generated += 1
            step.tokens.append(sequence)
            step.decode_starts.append(sequence)
            if sequence.generated >= sequence.max_tokens:
                self._complete(sequence, "length", step)
                continue
            self._decoding.append(sequence)
            self._resident += sequence.prompt_tokens + sequence.generated
            self._schedule_block_end(sequence)

    # Decoding ------------------------------------------------------------------------------------------------------------

    def _allocate_for_decoding(self, step: EngineStep) -> None:
        """Allocates a block for each decoding sequence whose blocks are full."""
        growing, self._block_full = self._block_full, []
        for sequence in growing:
            if sequence.state is _RUNNING:
                self._allocate_block(sequence, step)

    def _end_block(self, sequence: EngineSequence, step: EngineStep) -> None:
        """Registers a block that a decoding sequence has filled; ends it at ``max_tokens``."""
        computed = sequence.prompt_tokens + sequence.generated - 1
        if computed % self.block_tokens == 0:
            full = computed // self.block_tokens
            self._register_blocks(sequence, full - 1, full)
        if sequence.generated >= sequence.max_tokens:
            self._resident -= sequence.prompt_tokens + sequence.generated
            self._complete(sequence, "length", step)
        else:
            self._schedule_block_end(sequence)

    def _schedule_block_end(self, sequence: EngineSequence) -> None:
        filled = (sequence.prompt_tokens + sequence.generated - 1) % self.block_tokens
        if not filled:
            self._block_full.append(sequence)
        sequence.steps_to_block_end = min(self.block_tokens - filled, sequence.max_tokens - sequence.generated)

    def _complete(self, sequence: EngineSequence, reason: str, step: EngineStep) -> None:
        del self._sequences[sequence.id]
        self._release_blocks(sequence)
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason = reason
        step.finished.append((sequence, reason))

    # Blocks --------------------------------------------------------------------------------------------------------------

    def _allocate_block(self, sequence: EngineSequence, step: EngineStep) -> bool:
        """Allocates a block for a running sequence, if need be by preemption of the latest ones.

        Returns False if the sequence itself was preempted.
        """
        block = self.pool.allocate()
        while block is None:
            preempted = max(self._running(), key=_rank)
            self._preempt(preempted)
            step.preempted.append(preempted)
            if preempted is sequence:
                return False
            block = self.pool.allocate()
        if len(sequence.blocks) < sequence.reserved_blocks:
            self._reserved_blocks -= 1
        sequence.blocks.append(block)
        return True

    def _release_blocks(self, sequence: EngineSequence) -> None:
        self._reserved_blocks -= max(0, sequence.reserved_blocks - len(sequence.blocks))
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.reserved_blocks = 0
        for tier in self.lower_tiers:
            tier.touch(sequence.chain)

    def _register_blocks(self, sequence: EngineSequence, begin: int, end: int) -> None:
        """Caches the blocks from ``begin`` to ``end`` − 1 of a sequence.

        Blocks from the first unknown key on are left out.
        """
        chain = sequence.chain
        while len(chain) < end:
            key = sequence.next_key(self.block_tokens)
            if key is None:
                end = len(chain)
                break
            chain.append(key)
        if begin < end:
            event = sequence.stored_event(begin, end, self.block_tokens) if self.pool.records_events else None
            self.pool.register(sequence.blocks[begin:end], chain[begin:end], event)
            for tier in self.lower_tiers:
                self._store_below(tier, sequence, begin, end)

    def _store_below(self, tier: LowerTier, sequence: EngineSequence, begin: int, end: int) -> None:
        """Writes the blocks from ``begin`` to ``end`` − 1 to slower memory, and records its events.

        A shared store evicts in silence.
        """
        chain = sequence.chain
        new, gone = tier.store(chain[begin:end])
        if not self.pool.records_events:
            return
        for number in range(begin, end):
            if chain[number] in new:
                event = sequence.stored_event(number, number + 1, self.block_tokens)
                self.pool.publish(replace(event, tier=tier.name))
        if not tier.is_shared:
            for key in gone:
                self.pool.publish(BlockEvicted(key, tier.name))

    # Preemption and removal ---------------------------------------------------------------------------------------------

    def _running(self) -> list[EngineSequence]:
        return self._decoding + self._prefilling + self._loading

    def _running_count(self) -> int:
        return len(self._decoding) + len(self._prefilling) + len(self._loading)

    def _remove_running(self, sequence: EngineSequence) -> None:
        """Removes a running sequence from its list and releases its blocks."""
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)
        elif sequence in self._loading:
            self._loading.remove(sequence)
        else:
            self._decoding.remove(sequence)
            self._resident -= sequence.prompt_tokens + sequence.generated
        self._release_blocks(sequence)

    def _preempt(self, sequence: EngineSequence) -> None:
        """Returns a sequence to the queue, where its rank puts it before all later arrivals."""
        self._remove_running(sequence)
        sequence.computed = sequence.pulled_tokens = sequence.peer_blocks = 0
        sequence.loaded_at = 0.0
        sequence.preemptions += 1
        self._preempted_total += 1
        self._enqueue(sequence)

    def _enqueue(self, sequence: EngineSequence) -> None:
        sequence.state = SequenceState.WAITING
        heapq.heappush(self._queue, (sequence.rank, sequence))
        self._waiting += 1

    def _enqueue_late(self) -> None:
        for sequence in self._late.values():
            self._enqueue(sequence)
        self._late.clear()

    def _queue_head(self) -> EngineSequence:
        """Returns the first waiting sequence. There must be one."""
        while self._queue[0][1].state is not SequenceState.WAITING:
            heapq.heappop(self._queue)
        return self._queue[0][1]

    def _end_early(self, sequence_id: str, state: SequenceState, reason: str) -> bool:
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is None:
            return False
        if sequence.state is _RUNNING:
            self._remove_running(sequence)
        elif self._late.pop(sequence_id, None) is None:
            self._waiting -= 1
        sequence.state = state
        sequence.finish_reason = reason
        return True


def _rank(sequence: EngineSequence) -> tuple[float, float, int]:
    return sequence.rank

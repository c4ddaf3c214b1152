"""The values that pass between an engine core and its caller: a sequence, what one step did, and what the engine counts."""

from dataclasses import dataclass, field
from enum import StrEnum

from fairlead_sim.engine.block_pool import KvEvent


class SequenceState(StrEnum):
    """Where a sequence is in its life; ABORTED and FINISHED are the end."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    ABORTED = "aborted"


@dataclass(slots=True, eq=False)
class EngineSequence:
    """One prompt and the tokens generated from it. The caller gives the first part, the core fills the second.

    ``keys`` are the chained keys of the prompt's full blocks. ``tokens`` are the prompt's ids; the caller appends each generated
    id before the next step, so that blocks completed by decoding get true keys; None = ids unknown (keys are then made up).
    ``reserve_tokens`` = output tokens that must fit beside the prompt at admission; None = all of ``max_tokens``,
    0 = none, which lets more in and preempts when memory runs out. ``max_tokens`` 0 = compute the prompt only.
    """

    id: str
    arrival: float
    prompt_tokens: int
    max_tokens: int
    keys: tuple[int, ...] = ()
    tokens: list[int] | None = None
    priority: int = 0
    adapter: str | None = None
    salt: str | None = None
    session: str | None = None
    reserve_tokens: int | None = None
    uses_cache: bool = True  # False = compute the whole prompt, whatever is cached
    publishes_hits: bool = False  # True = tell of the blocks that were hit, too
    pulled_tokens: int = 0  # of the prompt, that another engine computed and whose KV is here; lost when preempted

    state: SequenceState = SequenceState.WAITING
    cached_tokens: int = 0  # of the prompt, found when it was first admitted
    generated: int = 0
    admitted_at: float | None = None
    first_token_at: float | None = None
    finish_reason: str | None = None
    preemptions: int = 0

    # The core's own book-keeping.
    rank: tuple[float, float, int] = (0.0, 0.0, 0)
    chain: list[int] = field(default_factory=list)  # keys of all blocks so far, generated ones included
    blocks: list[int] = field(default_factory=list)
    reserved_blocks: int = 0
    computed: int = 0  # tokens in KV while the prompt is being computed
    steps_to_block_end: int = 0  # decode steps until a block is full or the end is reached

    @property
    def is_done(self) -> bool:
        """Whether it has left the engine."""
        return self.state in (SequenceState.FINISHED, SequenceState.ABORTED)


@dataclass(slots=True)
class EngineStep:
    """What one engine step does; its results exist ``seconds`` after it began.

    A sequence aborted while the step runs is still listed: look at its state before delivering.
    """

    seconds: float = 0.0
    tokens: list[EngineSequence] = field(default_factory=list)  # each got exactly one token
    first_tokens: list[EngineSequence] = field(default_factory=list)  # of those, the ones whose first token it is
    decode_starts: list[EngineSequence] = field(
        default_factory=list
    )  # and those that begin to decode with it, for the first time or again
    finished: list[tuple[EngineSequence, str]] = field(
        default_factory=list
    )  # with the reason; the last token is in ``tokens``
    preempted: list[EngineSequence] = field(default_factory=list)
    events: list[KvEvent] = field(default_factory=list)
    prefilled: int = 0  # prompt tokens computed
    cached: int = 0  # prompt tokens found in the cache by the sequences admitted in this step


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges now and counters since the start. ``kv_usage`` = 0..1 of the blocks that running sequences hold."""

    running: int
    waiting: int
    kv_usage: float
    blocks: int
    resident_blocks: int
    prompt_tokens_total: int  # computed + cached, counted when a prompt is complete
    computed_prompt_tokens_total: int
    cached_prompt_tokens_total: int
    generation_tokens_total: int
    prefix_queries_total: int  # tokens looked up
    prefix_hits_total: int  # tokens found
    preemptions_total: int
    steps_total: int
    pulled_prompt_tokens_total: int = 0  # neither computed here nor cached: KV of another engine

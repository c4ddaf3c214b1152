"""The values between an engine core and its caller: sequence, step and statistics."""

from dataclasses import dataclass, field
from enum import StrEnum

from xxhash import xxh3_64_intdigest

from fairlead.fleet.model import KvPullSource
from fairlead_sim.engine.block_pool import BlocksStored, KvEvent, chain_key, chain_root


class SequenceState(StrEnum):
    """The stage of a sequence's life; ABORTED and FINISHED are final."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    ABORTED = "aborted"


@dataclass(slots=True, eq=False)
class EngineSequence:
    """One prompt and the tokens generated from it.

    The caller sets the first part of the fields, the core the second.

    - keys: the chained keys of the prompt's full blocks.
    - tokens: the prompt's ids. The caller appends each generated id before the next step, so that
      blocks completed by decoding get true keys. None: unknown, and keys are made up.
    - reserve_tokens: output tokens that must fit with the prompt at admission. None: all of
      ``max_tokens``. 0: none, which admits more and preempts when memory runs out.
    - max_tokens: 0 computes the prompt only.
    - uses_cache: False computes the whole prompt, whatever is cached.
    - publishes_hits: also reports the cached blocks that the prompt used.
    - pulled_tokens: prompt tokens whose KV another engine computed; lost by a preemption.
    - peer_blocks: blocks from the start of the prompt that another engine has cached; missing ones
      are copied as ``pull`` says.
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
    uses_cache: bool = True
    publishes_hits: bool = False
    pulled_tokens: int = 0
    peer_blocks: int = 0
    pull: KvPullSource | None = None

    state: SequenceState = SequenceState.WAITING
    cached_tokens: int = 0  # prompt tokens cached at the first admission
    generated: int = 0
    admitted_at: float | None = None
    first_token_at: float | None = None
    finish_reason: str | None = None
    preemptions: int = 0

    # State of the core.
    rank: tuple[float, float, int] = (0.0, 0.0, 0)
    chain: list[int] = field(default_factory=list)  # keys of all blocks so far, with generated ones
    blocks: list[int] = field(default_factory=list)
    reserved_blocks: int = 0
    computed: int = 0  # tokens in KV while the prompt is being computed
    loaded_at: float = 0.0  # when its blocks of slower memory are there
    steps_to_block_end: int = 0  # decode steps until a block is full or the end is reached

    @property
    def is_done(self) -> bool:
        return self.state in (SequenceState.FINISHED, SequenceState.ABORTED)

    def next_key(self, block_tokens: int) -> int | None:
        """Returns the key of the block behind ``chain``; None if the token ids lag behind.

        The key comes from token ids, or from the sequence's name where there are none.
        """
        at = len(self.chain)
        parent = self.chain[-1] if at else chain_root(salt=self.salt, adapter=self.adapter)
        if self.tokens is None:
            return xxh3_64_intdigest(self.id.encode("utf-8", "surrogatepass"), parent)
        begin, end = at * block_tokens, (at + 1) * block_tokens
        return chain_key(parent, self.tokens[begin:end]) if end <= len(self.tokens) else None

    def stored_event(self, begin: int, end: int, block_tokens: int) -> BlocksStored:
        """Returns the event of the sequence's blocks from ``begin`` to ``end`` - 1."""
        ids = self.tokens
        return BlocksStored(
            keys=tuple(self.chain[begin:end]),
            parent=self.chain[begin - 1] if begin else None,
            tokens=None if ids is None else tuple(ids[begin * block_tokens : end * block_tokens]),
            block_tokens=block_tokens,
            adapter=self.adapter,
            salt=None if begin else self.salt,
            session=self.session,
        )


@dataclass(slots=True)
class EngineStep:
    """The result of one engine step, due ``seconds`` after the step began.

    A sequence that is aborted during the step is still listed; check its state before delivery.

    - tokens: sequences that got one token each.
    - first_tokens: those of ``tokens`` that got their first token.
    - decode_starts: those of ``tokens`` that begin to decode, for the first time or after
      preemption.
    - finished: sequences and their finish reasons; the last token is in ``tokens``.
    - prefilled: computed prompt tokens.
    - cached: prompt tokens that the sequences admitted in this step found in the cache.
    """

    seconds: float = 0.0
    tokens: list[EngineSequence] = field(default_factory=list)
    first_tokens: list[EngineSequence] = field(default_factory=list)
    decode_starts: list[EngineSequence] = field(default_factory=list)
    finished: list[tuple[EngineSequence, str]] = field(default_factory=list)
    preempted: list[EngineSequence] = field(default_factory=list)
    events: list[KvEvent] = field(default_factory=list)
    prefilled: int = 0
    cached: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Present gauges, and counters since the start.

    - kv_usage: share (0..1) of the blocks that running sequences reference.
    - prompt_tokens_total: computed, cached and pulled, counted when a prompt is complete.
    - prefix_queries_total, prefix_hits_total: tokens looked up and found.
    - pulled_prompt_tokens_total: tokens whose KV another engine computed.
    """

    running: int
    waiting: int
    kv_usage: float
    blocks: int
    resident_blocks: int
    prompt_tokens_total: int
    computed_prompt_tokens_total: int
    cached_prompt_tokens_total: int
    generation_tokens_total: int
    prefix_queries_total: int
    prefix_hits_total: int
    preemptions_total: int
    steps_total: int
    pulled_prompt_tokens_total: int = 0

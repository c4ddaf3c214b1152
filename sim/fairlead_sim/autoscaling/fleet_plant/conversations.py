"""The requests of a load as turns of conversations, so that prompts have common prefixes.

A load says when requests arrive and how long their prompts and answers are. This module adds which
request continues which, and changes neither times nor lengths.

- Every prompt begins with the same system prompt.
- A conversation is open for its next turn after its last answer and a pause.
- The next turn is longer than the earlier prompt with its answer. It shares the earlier prompt.
- A request continues the longest open conversation that it can, or begins one. It begins one
  if an endless cache would have the wanted share of the prompt tokens so far.

Why the longest: the text that a turn adds is short in comparison with what it repeats.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random

from fairlead.errors import BadInput
from fairlead_gateway.routing import PrefixChain
from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.workload.trace_prompts import TracePromptCache, trace_chain, trace_keys
from fairlead_sim.workload.traces import TraceRequest

PREFIX_BLOCK_TOKENS = 64
"""The granularity of common prefixes and of the engines' memory, in tokens.

Why not 16, vLLM's default: an hour takes half the time. Where 99 % is attained, the share changes
by less than 0.1 points.
"""
NO_PARENT = -1
_TOKEN_SECONDS = 0.05
"""The assumed pace of answers, before which no next turn arrives."""

_REQUEST_SHIFT = 24
"""Block ids below ``1 << _REQUEST_SHIFT`` are the system prompt's."""


@dataclass(frozen=True, slots=True)
class ConversationOptions:
    """The common prefixes of a load's prompts.

    - cached_share: the share (0..1) of all prompt tokens that an endless cache would have. 0: no
      two prompts have anything in common.
    - system_tokens: length of the system prompt. Its share is the least that is possible.
    - pause_seconds: mean pause between an answer and the next turn.
    - open_seconds: a conversation without a next turn ends after this time.
    """

    cached_share: float = 0.3
    system_tokens: int = 128
    pause_seconds: float = 20.0
    open_seconds: float = 600.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.cached_share < 1.0:
            raise BadInput(f"a share is from 0 to below 1, got {self.cached_share}", field="cached_share")
        if self.system_tokens < 0 or self.pause_seconds <= 0.0 or self.open_seconds <= 0.0:
            raise BadInput("a system prompt has no negative length, a pause a positive one", field="conversations")


@dataclass(frozen=True, slots=True)
class ConversationTurns:
    """The order of requests in conversations.

    - parents: by request, the request whose prompt begins its own; ``NO_PARENT`` if none does.
    - cached_share: the share (0..1) of prompt tokens that an endless cache would have.
    """

    parents: Sequence[int]
    cached_share: float


def shared_tokens(tokens: int) -> int:
    """Returns the tokens of a prompt of this length in full blocks, which others can share."""
    return tokens - tokens % PREFIX_BLOCK_TOKENS


def conversation_turns(load: ArrivalTrace, options: ConversationOptions, random_: Random) -> ConversationTurns:
    """Returns the turns of this load."""
    parents = [NO_PARENT] * len(load)
    if not options.cached_share:
        return ConversationTurns(parents, 0.0)
    conversations = _OpenConversations(options, random_)
    total = cached = 0
    for request, (at, prompt, output) in enumerate(zip(load.arrivals, load.prompts, load.outputs, strict=True)):
        total += prompt
        reused = shared_tokens(min(prompt, options.system_tokens)) if request else 0
        if cached + reused < options.cached_share * total:
            parent = conversations.take_longest(prompt, at)
            parents[request] = parent
            if parent != NO_PARENT:
                reused = max(reused, shared_tokens(load.prompts[parent]))
        cached += reused
        conversations.add(request, prompt, output, at)
    return ConversationTurns(parents, cached / total if total else 0.0)


class _OpenConversations:
    """The conversations that may continue, each named by its last request."""

    def __init__(self, options: ConversationOptions, random_: Random) -> None:
        self._options = options
        self._random = random_
        self._open: list[tuple[int, int]] = []  # (tokens of prompt and answer, request), ascending
        self._answering: list[tuple[float, int, int]] = []  # heap of (time of the next turn, tokens, request)
        self._ends: list[tuple[float, int, int]] = []  # heap of (end, tokens, request)

    def add(self, request: int, prompt: int, output: int, now: float) -> None:
        next_at = now + output * _TOKEN_SECONDS + self._random.expovariate(1.0 / self._options.pause_seconds)
        heappush(self._answering, (next_at, prompt + output, request))

    def take_longest(self, prompt: int, now: float) -> int:
        """Removes and returns the longest open conversation that a prompt of this length can
        continue; ``NO_PARENT`` if there is none.
        """
        self._update(now)
        at = bisect_right(self._open, (prompt - 1, 1 << 62))
        return self._open.pop(at - 1)[1] if at else NO_PARENT

    def _update(self, now: float) -> None:
        while self._answering and self._answering[0][0] <= now:
            next_at, tokens, request = heappop(self._answering)
            insort(self._open, (tokens, request))
            heappush(self._ends, (next_at + self._options.open_seconds, tokens, request))
        while self._ends and self._ends[0][0] <= now:
            _, tokens, request = heappop(self._ends)
            at = bisect_left(self._open, (tokens, request))
            if at < len(self._open) and self._open[at] == (tokens, request):
                del self._open[at]


class ConversationPrompts(TracePromptCache):
    """The prompts of one load, made at their arrival and not kept.

    Why not kept: the block keys of a day of conversations would take gigabytes.
    """

    def __init__(
        self,
        load: ArrivalTrace,
        turns: ConversationTurns,
        options: ConversationOptions,
        *,
        secret: bytes,
        seed: bytes,
    ) -> None:
        super().__init__(PREFIX_BLOCK_TOKENS, secret=secret, seed=seed)
        self._load = load
        self._parents = turns.parents
        self._chain_secret = secret
        self._chain_seed = seed
        self._continued = bytearray(len(load))
        for parent in turns.parents:
            if parent != NO_PARENT:
                self._continued[parent] = 1
        system_blocks = options.system_tokens // PREFIX_BLOCK_TOKENS if options.cached_share else 0
        self._system = tuple(range(system_blocks))
        self._blocks_of: dict[int, Sequence[int]] = {}  # of requests whose next turn has not arrived

    def take(self, number: int) -> TraceRequest:
        """Returns the request with this number. Each is taken once, in order of arrival."""
        load, parent = self._load, self._parents[number]
        prompt = load.prompts[number]
        count = -(-prompt // PREFIX_BLOCK_TOKENS)
        if parent == NO_PARENT:
            begin: Sequence[int] = self._system
        else:
            begin = self._blocks_of.pop(parent)[: load.prompts[parent] // PREFIX_BLOCK_TOKENS]
        full = prompt // PREFIX_BLOCK_TOKENS
        shared = tuple(begin[:full])
        first_own = (number + 1) << _REQUEST_SHIFT
        blocks = shared + tuple(range(first_own + len(shared), first_own + count))
        if self._continued[number]:
            self._blocks_of[number] = blocks
        return TraceRequest(str(number), load.arrivals[number], prompt, load.outputs[number], blocks)

    def prefix_chain(self, request: TraceRequest) -> PrefixChain:
        return trace_chain(
            request.blocks,
            request.prompt_tokens,
            secret=self._chain_secret,
            seed=self._chain_seed,
            block_tokens=PREFIX_BLOCK_TOKENS,
        )

    def block_keys(self, request: TraceRequest) -> tuple[int, ...]:
        return trace_keys(
            request.blocks,
            request.prompt_tokens,
            PREFIX_BLOCK_TOKENS,
            trace_block_tokens=PREFIX_BLOCK_TOKENS,
        )


@dataclass(frozen=True, slots=True)
class FleetPlantOptions:
    """The prompts of the load, and the gateway.

    - conversations: the common prefixes of prompts.
    - preset: the routing preset; the gateway's default.
    - routing_seed: draws the homes of prefixes.
    """

    conversations: ConversationOptions = field(default_factory=ConversationOptions)
    preset: str = "dual-hash"
    routing_seed: int = 0

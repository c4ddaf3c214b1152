"""Conversations with the shape of Mooncake's published trace, for use without the trace.

Prompts over 20,480 tokens are left out. Block 0 is common to all requests: the system prompt. A
sixth of the first prompts is hardly longer than that; the rest reaches up to the bound. Sessions
grow turn by turn, and most have one turn only.

    | | requests | mean in / out | reuse of one endless cache | requests/s |
    |---|---|---|---|---|
    | trace | 10,091 | 6,781 / 335 | 0.37 | 2.85 |
    | trace, first | 1,000 | 7,144 / 336 | 0.24 | 2.35 |
    | seed 0 | 10,091 | 7,257 / 332 | 0.38 | 2.87 |
    | seed 0, first | 1,000 | 7,088 / 339 | 0.26 | 2.18 |
"""

import heapq
import math
import random
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from fairlead.errors import BadInput
from fairlead_sim.workload.generators.building_blocks import blocks_of
from fairlead_sim.workload.traces import MAX_PROMPT_TOKENS, TRACE_BLOCK_TOKENS, TraceRequest


@dataclass(frozen=True, slots=True)
class ConversationShape:
    """The parameters fitted to the trace; lengths in tokens, times in seconds."""

    sessions_per_second: float = 1.74
    system_tokens: int = 890
    continue_share: tuple[float, ...] = (0.36, 0.48, 0.56, 0.62)  # after turn 1, 2, 3 and later
    think_median_seconds: float = 120.0
    think_sigma: float = 0.85
    think_floor_seconds: float = 25.0
    rewind_share: float = 0.20  # the turn edits an earlier one and drops the rest


class _SessionTurn(NamedTuple):
    """The next request of a session, ordered by time."""

    at: float
    order: int
    session: "_Session"


@dataclass(slots=True)
class _Session:
    """A conversation in progress."""

    name: str
    tokens: int
    turn: int = 1
    blocks: list[int] = field(default_factory=list)


def conversation_traffic(
    requests: int, *, seed: int = 0, max_prompt: int = MAX_PROMPT_TOKENS, shape: ConversationShape | None = None
) -> list[TraceRequest]:
    """Returns ``requests`` requests by arrival, at the trace's rate; equal arguments give equal
    traffic.
    """
    if requests < 1 or max_prompt < TRACE_BLOCK_TOKENS * 4:
        raise BadInput(
            f"a conversation needs at least 1 request and prompts of {TRACE_BLOCK_TOKENS * 4} tokens", field="requests"
        )
    shape = shape or ConversationShape()
    random_ = random.Random(seed)
    fresh = count(1)  # block 0 is the system prompt
    order = count()
    turns: list[_SessionTurn] = []
    next_session = 0.0
    traffic: list[TraceRequest] = []
    while len(traffic) < requests:
        if not turns or turns[0].at > next_session:
            at, session = (
                next_session,
                _Session(f"s{next(order)}", _first_prompt_tokens(random_, shape, max_prompt), blocks=[0]),
            )
            next_session += random_.expovariate(shape.sessions_per_second)
        else:
            at, _, session = heapq.heappop(turns)
        output = _output_tokens(random_)
        session.blocks += [next(fresh) for _ in range(blocks_of(session.tokens) - len(session.blocks))]
        traffic.append(
            TraceRequest(f"g{len(traffic)}", at, session.tokens, output, tuple(session.blocks), session=session.name)
        )
        if _grow_session(session, output, random_, shape) and session.tokens <= max_prompt:
            think = random_.lognormvariate(math.log(shape.think_median_seconds), shape.think_sigma)
            heapq.heappush(turns, _SessionTurn(at + shape.think_floor_seconds + think, next(order), session))
    return traffic


def _grow_session(session: _Session, output: int, random_: random.Random, shape: ConversationShape) -> bool:
    """Extends the session to the prompt of its next turn. Returns False if the session ends."""
    if random_.random() >= shape.continue_share[min(session.turn, len(shape.continue_share)) - 1]:
        return False
    kept_tokens = session.tokens
    if random_.random() < shape.rewind_share:
        kept_tokens = max(TRACE_BLOCK_TOKENS, int(kept_tokens * random_.uniform(0.1, 0.9)))
    del session.blocks[max(1, kept_tokens // TRACE_BLOCK_TOKENS) :]  # a partial block gets a new id
    question = random_.lognormvariate(math.log(30), 0.8)
    if random_.random() < 0.25:  # a pasted text
        question += random_.lognormvariate(math.log(1_800), 1.1)
    session.tokens = session.tokens + output + max(5, int(question))
    session.turn += 1
    return True


def _first_prompt_tokens(random_: random.Random, shape: ConversationShape, max_prompt: int) -> int:
    """Returns the length of a first prompt.

    Of first prompts, 18 % are the system prompt and a sentence. In 13 % a short text follows the
    system prompt, in the rest a long document.
    """
    kind = random_.random()
    if kind < 0.18:
        return shape.system_tokens + int(random_.expovariate(1 / 40))
    if kind < 0.31:
        return shape.system_tokens + 130 + int(random_.expovariate(1 / 400))
    while True:
        tokens = shape.system_tokens + int(random_.lognormvariate(math.log(9_500), 0.9))
        if tokens <= max_prompt:
            return tokens


def _output_tokens(random_: random.Random) -> int:
    """Returns an answer's length: a quarter is short, the others are around 400, at most 2,000."""
    if random_.random() < 0.22:
        return min(2_000, 1 + int(random_.expovariate(1 / 60)))
    return max(1, min(2_000, int(random_.gammavariate(6.2, 66))))

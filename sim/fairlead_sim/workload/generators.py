"""Generated traffic, one family per module, from seeds.

Routers are compared on the five ``FAMILIES`` and on recorded traces (``docs/concepts/routing.md``).

- ``agents``, ``tenants``, ``rag``, ``flash_crowd``, ``bursty``: the families
- ``chat``: a session that several families use
- ``conversation``: a substitute for Mooncake's recorded trace
- ``building_blocks``: growing prompts, Zipf popularity, arrivals

The parts that all generators share: growing prompts, Zipf popularity, arrivals at varying
rates.

A chat session: some turns, a person's pauses between them, and now and then a long pasted
text.

Agents: programs with repeated calls, each behind the instructions and tools of its application.

30 applications (Zipf 1) have instructions of 2 to 16 blocks, and sessions arrive at random. A
session has about 8 calls. Each call follows 1 to 8 s after the answer before. Its prompt adds
300 to 3,000 tokens to the prompt and the answer of the call before. Answers are short (median 80
tokens).

Answers from documents: one system block, one to three of 2,000 documents and a question.

Documents have 2 to 12 blocks and a popularity of Zipf 0.9. They are ordered by popularity in the
prompt, so that popular pairs form common prefixes. Requests are independent and arrive at random.

50 tenants (Zipf 0.8), each with its own prefix of 1 to 12 blocks.

A tenant sends chats, agent sessions or questions about documents. About every 200 s each
sends four times as much for about 30 s, independently of the others.

Bursty chat: sessions over 12 prefixes (Zipf 1) of 0 to 6 blocks.

About every 90 s, five times as many sessions arrive for about 15 s.

A flash crowd: chat over 8 prefixes, and three new prefixes with half of the traffic for 150 s
each.

Conversations with the shape of Mooncake's published trace, for use without the trace.

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
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, count
from typing import Final, NamedTuple, Protocol

from fairlead.errors import BadInput
from fairlead_sim.workload.traces import MAX_PROMPT_TOKENS, TRACE_BLOCK_TOKENS, TraceRequest

HOUR_REQUESTS = 12_000
"""About the requests per hour of every family before scaling."""
HOUR_SECONDS = 3_600.0

TURNS: Final = 3.5
PAUSE_SECONDS: Final = 25.0
PAUSE_SIGMA: Final = 0.8
ASKED_TOKENS: Final = 900
ASKED_SIGMA: Final = 1.1
ANSWERED_TOKENS: Final = 250
ANSWERED_SIGMA: Final = 0.7
TOKEN_SECONDS: Final = 0.012
"""Seconds per token of the answer that a person waits for before reading."""

APPS: Final = 30
CALLS: Final = 8
CALLS_MADE: Final = 5.7
"""The mean calls of a session, since sessions end before their prompts get too long."""
OUTPUT_TOKENS: Final = 80
OUTPUT_SIGMA: Final = 0.8

DOCUMENTS: Final = 2_000
EXPONENT: Final = 0.9
QUESTION_TOKENS: Final = (20, 400)
RAG_OUTPUT_TOKENS: Final = (100, 400)
_MAX_BLOCKS: Final = (MAX_PROMPT_TOKENS - QUESTION_TOKENS[1]) // TRACE_BLOCK_TOKENS

TENANTS: Final = 50
TENANTS_EXPONENT: Final = 0.8
BURST: Final = 4.0
BURST_SECONDS: Final = 30.0
CYCLE_SECONDS: Final = 200.0
TENANTS_DOCUMENTS: Final = 30
KINDS: Final = ("chat", "agent", "rag")
_REQUESTS_PER_SESSION: Final = {"chat": TURNS, "agent": float(CALLS), "rag": 1.0}

PREFIXES: Final = 12
PREFIX_BLOCKS: Final = (0, 6)
BURSTY_BURST: Final = 5.0
BURSTY_BURST_SECONDS: Final = 15.0
BURSTY_CYCLE_SECONDS: Final = 90.0

FLASH_CROWD_PREFIXES: Final = 8
FLASH_CROWD_PREFIX_BLOCKS: Final = (0, 3)
CROWDS: Final = 3
CROWD_BLOCKS: Final = 20
CROWD_SECONDS: Final = 150.0


class BlockIds:
    """A source of unique ids for blocks of 512 tokens."""

    def __init__(self) -> None:
        self._next = count(1)

    def take(self, blocks: int) -> tuple[int, ...]:
        return tuple([next(self._next) for _ in range(blocks)])


class GrowingPrompt:
    """A prompt that begins with full ``blocks`` and grows.

    A partial block gets a new id when it grows.
    """

    def __init__(self, block_ids: BlockIds, blocks: Sequence[int], tokens: int = 0) -> None:
        self._fresh = block_ids
        self.replace(blocks, tokens)

    def replace(self, blocks: Sequence[int], tokens: int) -> None:
        """Begins again with full ``blocks`` and more tokens."""
        self._blocks = tuple(blocks)
        self.tokens = len(blocks) * TRACE_BLOCK_TOKENS
        if tokens:
            self.grow(tokens)

    def grow(self, tokens: int) -> None:
        """Adds tokens that no other prompt has."""
        whole = self._blocks[: self.tokens // TRACE_BLOCK_TOKENS]
        self.tokens += tokens
        self._blocks = whole + self._fresh.take(blocks_of(self.tokens) - len(whole))

    @property
    def blocks(self) -> tuple[int, ...]:
        return self._blocks


class ZipfDistribution:
    """A distribution of ranks, where rank k (from 1) has a weight of ``k ** -exponent``."""

    def __init__(self, items: int, exponent: float) -> None:
        self._sums = list(accumulate([(1 + rank) ** -exponent for rank in range(items)]))

    def draw(self, random_: random.Random) -> int:
        return bisect_left(self._sums, random_.random() * self._sums[-1])


def blocks_of(tokens: int) -> int:
    """Returns the number of blocks for this many tokens, with a partial one."""
    return -(-tokens // TRACE_BLOCK_TOKENS)


def poisson_process(
    random_: random.Random, rate: Callable[[float], float], max_rate: float, until: float
) -> Iterator[float]:
    """Yields event times of rate ``rate(t)`` per second, which is never above ``max_rate``."""
    at = random_.expovariate(max_rate)
    while at < until:
        if random_.random() * max_rate < rate(at):
            yield at
        at += random_.expovariate(max_rate)


def lognormal(
    random_: random.Random, median: float, sigma: float, *, minimum: float = 1.0, maximum: float = 1e9
) -> float:
    return min(maximum, max(minimum, random_.lognormvariate(math.log(median), sigma)))


def state_changes(random_: random.Random, low: float, high: float, until: float) -> list[float]:
    """Returns the change times of a state that begins low, up to the first change after ``until``.

    low, high: mean seconds in each state.
    """
    changes, at, is_high = [], 0.0, False
    while at < until:
        at += random_.expovariate(1 / (high if is_high else low))
        changes.append(at)
        is_high = not is_high
    return changes


def is_high(changes: Sequence[float], at: float) -> bool:
    return bisect_left(changes, at) % 2 == 1


class TrafficBuilder:
    """The collected requests of a family, in any order until ``build``."""

    def __init__(self, requests: int) -> None:
        if requests < 1:
            raise BadInput(f"there must be at least 1 request, not {requests}", field="requests")
        self.requested = requests
        self.seconds = HOUR_SECONDS * requests / HOUR_REQUESTS
        """About when the last request arrives."""
        self.until = 1.3 * self.seconds + 120.0
        """The end of session starts, late enough for the wanted number of requests."""
        self._requests: list[TraceRequest] = []

    def add(self, at: float, prompt: GrowingPrompt, output: int, session: str, tenant: str | None = None) -> bool:
        """Adds a request for the present prompt. Returns False if the prompt exceeds
        MAX_PROMPT_TOKENS.
        """
        if prompt.tokens > MAX_PROMPT_TOKENS:
            return False
        self._requests.append(
            TraceRequest("", at, prompt.tokens, output, prompt.blocks, session=session, tenant=tenant)
        )
        return True

    def build(self) -> list[TraceRequest]:
        self._requests.sort(key=_arrival)
        return [replace(request, id=f"g{number}") for number, request in enumerate(self._requests[: self.requested])]


def _arrival(request: TraceRequest) -> float:
    return request.arrival


def add_chat_session(
    into: TrafficBuilder,
    random_: random.Random,
    at: float,
    prompt: GrowingPrompt,
    session: str,
    tenant: str | None = None,
) -> None:
    """Adds one session from ``at`` on that continues ``prompt``; ``TURNS`` is its mean number of
    turns.
    """
    while True:
        prompt.grow(int(lognormal(random_, ASKED_TOKENS, ASKED_SIGMA, minimum=20, maximum=16_000)))
        output = int(lognormal(random_, ANSWERED_TOKENS, ANSWERED_SIGMA, maximum=2_000))
        if not into.add(at, prompt, output, session, tenant) or random_.random() < 1 / TURNS:
            return
        at += output * TOKEN_SECONDS + lognormal(random_, PAUSE_SECONDS, PAUSE_SIGMA)
        prompt.grow(output)


def agent_traffic(requests: int, *, seed: int) -> list[TraceRequest]:
    """Returns the first ``requests`` requests, by arrival; equal arguments give equal traffic."""
    random_, fresh, into = random.Random(f"agents {seed}"), BlockIds(), TrafficBuilder(requests)
    apps = [fresh.take(random_.randint(2, 16)) for _ in range(APPS)]
    popular = ZipfDistribution(APPS, 1.0)
    rate = HOUR_REQUESTS / HOUR_SECONDS / CALLS_MADE
    for number, at in enumerate(poisson_process(random_, lambda _: rate, rate, into.until)):
        add_agent_session(into, random_, at, GrowingPrompt(fresh, apps[popular.draw(random_)]), f"a{number}")
    return into.build()


def add_agent_session(
    into: TrafficBuilder,
    random_: random.Random,
    at: float,
    prompt: GrowingPrompt,
    session: str,
    tenant: str | None = None,
) -> None:
    """Adds one session from ``at`` on, behind the instructions in ``prompt``."""
    while True:
        prompt.grow(random_.randint(300, 3_000))
        output = int(lognormal(random_, OUTPUT_TOKENS, OUTPUT_SIGMA, maximum=1_000))
        if not into.add(at, prompt, output, session, tenant) or random_.random() < 1 / CALLS:
            return
        at += output * TOKEN_SECONDS + random_.uniform(1.0, 8.0)
        prompt.grow(output)


@dataclass(frozen=True, slots=True)
class AgentShape:
    """The shape of agent sessions, in tokens.

    Sessions belong to ``apps`` applications (Zipf 1) with their own instructions. Prompts grow
    by questions and answers.
    """

    apps: int = 12
    instruction_tokens: int = 1_024
    turns: int = 5
    question_tokens: int = 176
    answer_tokens: int = 60
    output_tokens: int = 8


def agent_sessions(sessions: int, *, seed: int = 0, shape: AgentShape | None = None) -> list[list[TraceRequest]]:
    """Returns the turns of each session for a closed loop; all arrivals are 0."""
    shape = shape or AgentShape()
    random_, new_ids = random.Random(seed), count(1_000_000)
    common = -(-shape.instruction_tokens // TRACE_BLOCK_TOKENS)
    generated = []
    for number in range(sessions):
        (app,) = random_.choices(range(shape.apps), [1 / (1 + app) for app in range(shape.apps)])
        blocks, tokens = [app * common + index for index in range(common)], shape.instruction_tokens
        session = []
        for turn in range(shape.turns):
            tokens += shape.question_tokens
            blocks += [next(new_ids) for _ in range(blocks_of(tokens) - len(blocks))]
            name = f"a{number}"
            session.append(
                TraceRequest(f"{name}.{turn}", 0.0, tokens, shape.output_tokens, tuple(blocks), session=name)
            )
            tokens += shape.answer_tokens
        generated.append(session)
    return generated


def rag_traffic(requests: int, *, seed: int) -> list[TraceRequest]:
    """Returns the first ``requests`` requests, by arrival; equal arguments give equal traffic."""
    random_, fresh, into = random.Random(f"rag {seed}"), BlockIds(), TrafficBuilder(requests)
    system, library = fresh.take(1), DocumentLibrary(fresh, random_, DOCUMENTS)
    rate = HOUR_REQUESTS / HOUR_SECONDS
    for number, at in enumerate(poisson_process(random_, lambda _: rate, rate, into.until)):
        prompt = rag_prompt(random_, fresh, system, library)
        into.add(at, prompt, random_.randint(*RAG_OUTPUT_TOKENS), f"q{number}")
    return into.build()


class DocumentLibrary:
    """Documents by descending popularity."""

    def __init__(self, fresh: BlockIds, random_: random.Random, documents: int) -> None:
        self._documents = [fresh.take(random_.randint(2, 12)) for _ in range(documents)]
        self._popular = ZipfDistribution(documents, EXPONENT)

    def pick_documents(self, random_: random.Random, max_blocks: int) -> tuple[int, ...]:
        """Returns the blocks of one to three documents that fit ``max_blocks``, the more popular
        first.
        """
        count = random_.randint(1, 3)
        ranks = sorted({self._popular.draw(random_) for _ in range(count)})
        blocks: tuple[int, ...] = ()
        for rank in ranks:
            if len(blocks) + len(self._documents[rank]) <= max_blocks:
                blocks += self._documents[rank]
        return blocks


def rag_prompt(
    random_: random.Random, fresh: BlockIds, system: Sequence[int], library: DocumentLibrary
) -> GrowingPrompt:
    document_blocks = library.pick_documents(random_, _MAX_BLOCKS - len(system))
    return GrowingPrompt(fresh, (*system, *document_blocks), random_.randint(*QUESTION_TOKENS))


def tenant_traffic(requests: int, *, seed: int) -> list[TraceRequest]:
    """Returns the first ``requests`` requests, by arrival; equal arguments give equal traffic."""
    random_, fresh, into = random.Random(f"tenants {seed}"), BlockIds(), TrafficBuilder(requests)
    weights = [(1 + rank) ** -TENANTS_EXPONENT for rank in range(TENANTS)]
    mean = 1.0 + (BURST - 1.0) * BURST_SECONDS / CYCLE_SECONDS
    for rank, weight in enumerate(weights):
        kind = KINDS[rank % len(KINDS)]
        rate = HOUR_REQUESTS / HOUR_SECONDS * weight / sum(weights) / mean / _REQUESTS_PER_SESSION[kind]
        _add_tenant(into, random_, fresh, kind, rate, f"t{rank}")
    return into.build()


def _add_tenant(
    into: TrafficBuilder, random_: random.Random, fresh: BlockIds, kind: str, rate: float, name: str
) -> None:
    """Adds all requests of one tenant; ``rate`` is that of its sessions outside bursts."""
    own = fresh.take(random_.randint(1, 12))
    library = DocumentLibrary(fresh, random_, TENANTS_DOCUMENTS) if kind == "rag" else None
    bursts = state_changes(random_, CYCLE_SECONDS - BURST_SECONDS, BURST_SECONDS, into.until)
    times = poisson_process(
        random_, lambda at: rate * (BURST if is_high(bursts, at) else 1.0), rate * BURST, into.until
    )
    for number, at in enumerate(times):
        session = f"{name}.{number}"
        if library is not None:
            prompt = rag_prompt(random_, fresh, own, library)
            into.add(at, prompt, random_.randint(*RAG_OUTPUT_TOKENS), session, name)
        elif kind == "chat":
            add_chat_session(into, random_, at, GrowingPrompt(fresh, own), session, name)
        else:
            add_agent_session(into, random_, at, GrowingPrompt(fresh, own), session, name)


def bursty_chat(requests: int, *, seed: int) -> list[TraceRequest]:
    """Returns the first ``requests`` requests, by arrival; equal arguments give equal traffic."""
    random_, fresh, into = random.Random(f"bursty {seed}"), BlockIds(), TrafficBuilder(requests)
    prefixes = [fresh.take(random_.randint(*PREFIX_BLOCKS)) for _ in range(PREFIXES)]
    popular = ZipfDistribution(PREFIXES, 1.0)
    bursts = state_changes(random_, BURSTY_CYCLE_SECONDS - BURSTY_BURST_SECONDS, BURSTY_BURST_SECONDS, into.until)
    mean = 1.0 + (BURSTY_BURST - 1.0) * BURSTY_BURST_SECONDS / BURSTY_CYCLE_SECONDS
    rate = HOUR_REQUESTS / HOUR_SECONDS / TURNS / mean
    times = poisson_process(
        random_, lambda at: rate * (BURSTY_BURST if is_high(bursts, at) else 1.0), rate * BURSTY_BURST, into.until
    )
    for number, at in enumerate(times):
        add_chat_session(into, random_, at, GrowingPrompt(fresh, prefixes[popular.draw(random_)]), f"b{number}")
    return into.build()


def flash_crowd_traffic(requests: int, *, seed: int) -> list[TraceRequest]:
    """Returns the first ``requests`` requests, by arrival; equal arguments give equal traffic."""
    random_, fresh, into = random.Random(f"flash crowd {seed}"), BlockIds(), TrafficBuilder(requests)
    prefixes = [fresh.take(random_.randint(*FLASH_CROWD_PREFIX_BLOCKS)) for _ in range(FLASH_CROWD_PREFIXES)]
    crowds = [(into.seconds * (1 + number) / (CROWDS + 1), fresh.take(CROWD_BLOCKS)) for number in range(CROWDS)]
    rate = HOUR_REQUESTS / HOUR_SECONDS / TURNS
    for number, at in enumerate(poisson_process(random_, lambda _: rate, rate, into.until)):
        prefix = random_.choice(prefixes)
        for begin, crowd in crowds:
            if begin <= at < begin + CROWD_SECONDS and random_.random() < 0.5:
                prefix = crowd
        add_chat_session(into, random_, at, GrowingPrompt(fresh, prefix), f"c{number}")
    return into.build()


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


__all__ = ["FAMILIES", "ConversationShape", "agent_sessions", "conversation_traffic"]


class TrafficFamily(Protocol):
    """A generator of the first ``requests`` requests, about 12,000 per hour."""

    def __call__(self, requests: int, *, seed: int) -> list[TraceRequest]: ...


FAMILIES: Mapping[str, TrafficFamily] = {
    "agents": agent_traffic,
    "tenants": tenant_traffic,
    "rag": rag_traffic,
    "flash-crowd": flash_crowd_traffic,
    "bursty": bursty_chat,
}
"""The five families over which benchmarks average, by name."""

"""Agents: programs with repeated calls, each behind the instructions and tools of its application.

30 applications (Zipf 1) have instructions of 2 to 16 blocks, and sessions arrive at random. A
session has about 8 calls. Each call follows 1 to 8 s after the answer before. Its prompt adds
300 to 3,000 tokens to the prompt and the answer of the call before. Answers are short (median 80
tokens).
"""

import random
from dataclasses import dataclass
from itertools import count
from typing import Final

from fairlead_sim.workload.generators.building_blocks import (
    HOUR_REQUESTS,
    HOUR_SECONDS,
    BlockIds,
    GrowingPrompt,
    TrafficBuilder,
    ZipfDistribution,
    blocks_of,
    lognormal,
    poisson_process,
)
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest

APPS: Final = 30
CALLS: Final = 8
CALLS_MADE: Final = 5.7
"""The mean calls of a session, since sessions end before their prompts get too long."""
OUTPUT_TOKENS: Final = 80
OUTPUT_SIGMA: Final = 0.8
TOKEN_SECONDS: Final = 0.012


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

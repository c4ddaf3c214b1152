"""Sessions of coding agents: long shared prompts, tools, people, sub-agents and compactions.

A session calls the model, runs a tool and calls again with the result. Each call waits for the end
of the call before, which is estimated as if each token of an answer took ``TOKEN_SECONDS``.

- Six agents (Zipf 1) have a system prompt and tools of 15,000 to 25,000 tokens. A session adds the
  instructions of its repository, and has a median of 43 calls.
- A call adds the answer before it and the result of a tool, 2,100 tokens in the mean.
- A tool takes milliseconds to two minutes. Before one call in nine, a person thinks instead, for up
  to five minutes.
- In 44 % of the sessions, calls start one to five sub-agents at once. These have the same system
  prompt and tools, contexts of their own and the session's name. The session waits for all of them.
- A prompt over 92 % of the context is replaced by a summary behind the system prompt.

    | | published | here |
    |---|---|---|
    | calls of a session, without those of sub-agents, median | 43 | 44 |
    | sessions with sub-agents | 0.44 | 0.44 |
    | calls of sub-agents | 0.24 | 0.24 |
    | first prompt, median tokens | 20,160 | 22,200 |
    | last prompt, median tokens | 115,008 | 65,600 |
    | output, median and p90 | 444 and 2,200 | 417 and 2,200 |
    | share that an endless cache has | over 0.96 | 0.955 |

Source: vLLM, "vLLM x AgentX" (vllm.ai/blog/2026-09-08-vllm-agentx): calls, outputs, sub-agents and
cached share. SemiAnalysis, "AgentX - InferenceXv3": the p90 of outputs, and idle times of at most
five minutes. The repository callanjfox/kv-cache-tester, page "Trace Replay Tester": prompts of 642
conversations, and contexts of 128,000 tokens. Issue 1632 of SemiAnalysisAI/InferenceX: the share of
sub-agents' calls, and how many run at once. TraceLab (arXiv 2606.30560): 8.9 steps by a person and
73.6 by tools in a session. Continuum (arXiv 2511.02230): tools take 0.925 s, with a deviation of
3.55 s.

Ours are the number of agents, the length of a sub-agent and thinking times. Contexts of 200,000
tokens and more, which this family does not have, make published last prompts longer.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Final

from fairlead.errors import BadInput
from fairlead_sim.workload.generators import (
    TOKEN_SECONDS,
    BlockIds,
    GrowingPrompt,
    ZipfDistribution,
    lognormal,
    poisson_process,
)
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest

AGENTS: Final = 6
PREFIX_TOKENS: Final = (15_000, 25_000)
REPOSITORY_TOKENS: Final = (500, 4_000)
CALLS: Final = 43
CALLS_SIGMA: Final = 0.9
MAX_CALLS: Final = 300
RESULT_TOKENS: Final = 500
RESULT_SIGMA: Final = 1.4
OUTPUT_TOKENS: Final = 420
OUTPUT_SIGMA: Final = 1.3
MAX_OUTPUT_TOKENS: Final = 4_000
TOOL_SECONDS: Final = 0.235
TOOL_SIGMA: Final = 1.66
MAX_TOOL_SECONDS: Final = 120.0
PERSON_SHARE: Final = 0.11
PERSON_SECONDS: Final = 30.0
PERSON_SIGMA: Final = 1.2
MAX_PERSON_SECONDS: Final = 300.0
SPAWNING_SHARE: Final = 0.44
SPAWNS: Final = (1, 2)
SUB_AGENT_WEIGHTS: Final = (50, 25, 31, 13, 18)
"""Sessions by the number of sub-agents at once, from one to five."""
SUB_AGENT_CALLS: Final = 10
SUB_AGENT_SIGMA: Final = 0.7
TASK_TOKENS: Final = (300, 2_000)
CONTEXT_TOKENS: Final = 128_000
COMPACTION_SHARE: Final = 0.92
SUMMARY_TOKENS: Final = (3_000, 10_000)
SESSION_CALLS: Final = 81.0
"""The mean calls of a session, with those of its sub-agents."""
RATE: Final = 1.6


def coding_agent_traffic(requests: int, *, seed: int) -> list[TraceRequest]:
    """Returns the first calls by arrival; equal arguments give equal calls.

    Sessions arrive at random, so that there are ``RATE`` calls per second once as many sessions end
    as begin.
    """
    if requests < 1:
        raise BadInput(f"there must be at least 1 request, not {requests}", field="requests")
    random_, fresh = random.Random(f"coding agents {seed}"), BlockIds()
    prefixes = [fresh.take(random_.randint(*PREFIX_TOKENS) // TRACE_BLOCK_TOKENS) for _ in range(AGENTS)]
    popular = ZipfDistribution(AGENTS, 1.0)
    starts = RATE / SESSION_CALLS
    made: list[TraceRequest] = []
    for number, at in enumerate(poisson_process(random_, lambda _: starts, starts, float("inf"))):
        if len(made) >= requests:
            made.sort(key=_arrival)
            if at > made[requests - 1].arrival:
                break
        made += _AgentSession(random_, fresh, prefixes[popular.draw(random_)], f"c{number}").calls(at)
    return made[:requests]


def _arrival(call: TraceRequest) -> float:
    return call.arrival


def _end(call: TraceRequest) -> float:
    return call.arrival + call.output_tokens * TOKEN_SECONDS


class _AgentSession:
    """One session, whose calls are drawn in their order."""

    def __init__(self, random_: random.Random, fresh: BlockIds, prefix: Sequence[int], name: str) -> None:
        self._random = random_
        self._fresh = fresh
        self._prefix = prefix
        self._name = name
        self._made = 0

    def calls(self, at: float) -> Iterator[TraceRequest]:
        """Yields the calls of the session and of its sub-agents."""
        random_ = self._random
        count = int(lognormal(random_, CALLS, CALLS_SIGMA, minimum=2, maximum=MAX_CALLS))
        spawns: set[int] = set()
        if random_.random() < SPAWNING_SHARE:
            spawns = {random_.randrange(count) for _ in range(random_.randint(*SPAWNS))}
        prompt = GrowingPrompt(self._fresh, self._prefix, random_.randint(*REPOSITORY_TOKENS))
        for number in range(count):
            is_person = random_.random() < PERSON_SHARE
            call = self._call(prompt, at, is_person=is_person)
            yield call
            at = start = _end(call)
            if number in spawns:
                for _ in range(self._sub_agents()):
                    children = list(self._sub_agent(start))
                    yield from children
                    at = max(at, _end(children[-1]))

    def _sub_agents(self) -> int:
        (count,) = self._random.choices(range(1, len(SUB_AGENT_WEIGHTS) + 1), SUB_AGENT_WEIGHTS)
        return count

    def _sub_agent(self, at: float) -> Iterator[TraceRequest]:
        random_ = self._random
        prompt = GrowingPrompt(self._fresh, self._prefix, random_.randint(*TASK_TOKENS))
        for _ in range(int(lognormal(random_, SUB_AGENT_CALLS, SUB_AGENT_SIGMA, maximum=60))):
            call = self._call(prompt, at, is_person=False)
            yield call
            at = _end(call)

    def _call(self, prompt: GrowingPrompt, at: float, *, is_person: bool) -> TraceRequest:
        """Returns the next call of a context, and grows its prompt by the answer and a result.

        The first call of a session has no pause before it.
        """
        random_ = self._random
        pause = 0.0
        if self._made and is_person:
            pause = lognormal(random_, PERSON_SECONDS, PERSON_SIGMA, maximum=MAX_PERSON_SECONDS)
        elif self._made:
            pause = lognormal(random_, TOOL_SECONDS, TOOL_SIGMA, minimum=0.001, maximum=MAX_TOOL_SECONDS)
        output = int(lognormal(random_, OUTPUT_TOKENS, OUTPUT_SIGMA, maximum=MAX_OUTPUT_TOKENS))
        name, self._made = f"{self._name}.{self._made}", self._made + 1
        request = TraceRequest(name, at + pause, prompt.tokens, output, prompt.blocks, session=self._name)
        prompt.grow(output + int(lognormal(random_, RESULT_TOKENS, RESULT_SIGMA, maximum=30_000)))
        if prompt.tokens > COMPACTION_SHARE * CONTEXT_TOKENS:
            prompt.replace(self._prefix, random_.randint(*SUMMARY_TOKENS))
        return request

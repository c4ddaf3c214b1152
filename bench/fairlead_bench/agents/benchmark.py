"""Coding agents through a real gateway: cached tokens, moves and counted streams by wire form.

    python -m fairlead_bench agents [--arms A,B] [--seeds 5] [--out out/bench/agents.json]

A gateway stands before eight simulated engines. 16 sessions of 6 turns run at once. Each waits for
its answer and then for a tool. All have the same system prompt of 1,500 words and 8 tools. A turn
adds 200 words. The engines are idle most of the time and hold all prompts, so that the gateway
alone decides what is computed twice. Each arm sends the same words in another form, or names the
session in another way. ``one pool`` is the bound: chat with one engine, with the memory of all.

- Cached share: of the prompt tokens of turns 2 to 6, as the engines report it to the client.
- Moves: turns 2 to 6 that another engine answers than the turn before, of 80.
- First tokens: at the client. Times are real, so a busy machine disturbs them.
- Counted streams: first tokens, times per token and usage in the gateway's metrics.
- Near predictions: turns 2 to 6 whose cached tokens the gateway predicted within 16.
- Token difference: between the sums of the gateway and of the engines, over prompt, cached and
  output tokens.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Final

import httpx

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.file import write_fleet_file
from fairlead_bench.agents.wire_forms import (
    BILLED_MESSAGES,
    CACHED_MESSAGES,
    CHAT,
    KEYED_RESPONSES,
    MESSAGES,
    RESPONSES,
    AgentSession,
    Usage,
    WireForm,
    draw_sessions,
    read_events,
)
from fairlead_bench.results import Goals, ResultRow, load_goals, parse_options, write_results
from fairlead_testing.engines.disaggregated import EngineProcess, engine_processes
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.gateway.running_gateway import fleet_of, with_profile
from fairlead_testing.http.raw_client import get_request, send
from fairlead_testing.waiting import wait_until

_NAME = "agents"
ENGINES: Final = 8
BLOCKS: Final = 2_048
BLOCK_TOKENS: Final = 16
PROFILE: Final = "h100-llama8b"
SESSIONS: Final = 16
TURNS: Final = 6
TOOL_SECONDS: Final = (0.1, 0.5)
"""A tool takes a time between these two, drawn evenly."""
NEAR_TOKENS: Final = 16
SECRET = "the secret of the gateway of this benchmark"

UNNAMED_ARMS: Final = ("messages", "responses with prompt_cache_key")
"""Arms that are compared with chat."""
NAMED_ARMS: Final = (
    "messages with x-claude-code-session-id",
    "responses with session_id",
    "chat with x-session-id",
)
"""Arms whose header names the session, which are compared with one pool."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A wire form, and the header that names the session; None: no header.

    engines: with the memory of eight together.
    """

    form: WireForm
    session_header: str | None = None
    engines: int = ENGINES


CHAT_ARM, POOL_ARM = "chat", "one pool"
ARMS: Final[Mapping[str, Arm]] = {
    CHAT_ARM: Arm(CHAT),
    "messages": Arm(MESSAGES),
    "responses with prompt_cache_key": Arm(KEYED_RESPONSES),
    "messages with x-claude-code-session-id": Arm(MESSAGES, "x-claude-code-session-id"),
    "responses with session_id": Arm(RESPONSES, "session_id"),
    "chat with x-session-id": Arm(CHAT, "x-session-id"),
    "messages with billing line": Arm(BILLED_MESSAGES),
    "messages with moving cache_control": Arm(CACHED_MESSAGES),
    POOL_ARM: Arm(CHAT, engines=1),
}


@dataclass(frozen=True, slots=True)
class SentTurn:
    """The answer to one turn, at the client. ``ttft_seconds``: None without a first token."""

    turn: int
    instance: str
    status: int
    ttft_seconds: float | None
    usage: Usage | None
    decision: str = ""


@dataclass(frozen=True, slots=True)
class AgentRun:
    """Figures of one run. Shares are 0 to 1.

    counted: streams by what the gateway counted of them.
    gateway_tokens, engine_tokens: sums of prompt, cached and output tokens.
    """

    cached_share: float
    moves: int
    ttft_p50_seconds: float
    ttft_p90_seconds: float
    streams: int
    failures: int
    counted: Mapping[str, int] = field(default_factory=dict)
    gateway_tokens: Sequence[int] = ()
    engine_tokens: Sequence[int] = ()
    prediction_errors: Sequence[int] = ()

    @property
    def counted_share(self) -> float:
        return min(self.counted.values()) / self.streams

    @property
    def near_share(self) -> float:
        """The share of the later turns whose cached tokens were predicted within `NEAR_TOKENS`."""
        errors = self.prediction_errors
        return sum([abs(error) <= NEAR_TOKENS for error in errors]) / max(1, len(errors))

    @property
    def token_difference(self) -> int:
        """The sum of the distances between the gateway's tokens and those of the engines."""
        pairs = zip(self.gateway_tokens, self.engine_tokens, strict=True)
        return sum(abs(gateway - engine) for gateway, engine in pairs)


def figures_of(
    sessions: Sequence[Sequence[SentTurn]],
    counted: Mapping[str, int],
    gateway_tokens: Sequence[int],
    engine_tokens: Sequence[int],
) -> AgentRun:
    """Returns the figures of the turns of all sessions."""
    turns = [turn for session in sessions for turn in session]
    later = [turn.usage for turn in turns if turn.turn and turn.usage is not None]
    waited = sorted([turn.ttft_seconds for turn in turns if turn.ttft_seconds is not None]) or [0.0]
    moves = [after.instance != before.instance for session in sessions for before, after in pairwise(session)]
    return AgentRun(
        cached_share=sum([usage.cached_tokens for usage in later])
        / max(1, sum([usage.prompt_tokens for usage in later])),
        moves=sum(moves),
        ttft_p50_seconds=waited[len(waited) // 2],
        ttft_p90_seconds=waited[int(0.9 * len(waited))],
        streams=len(turns),
        failures=sum([turn.status != 200 or turn.usage is None for turn in turns]),
        counted=counted,
        gateway_tokens=gateway_tokens,
        engine_tokens=engine_tokens,
    )


async def measure(arm: Arm, seed: int, folder: Path, sessions: Sequence[AgentSession]) -> AgentRun:
    """Returns the figures of one run with its own engines and gateway."""
    path, blocks = folder / "fleet.yaml", BLOCKS * ENGINES // arm.engines
    profile = builtin_profile(PROFILE)
    environ = {**os.environ, "FAIRLEAD_HASH_SECRET": f"{SECRET} {seed}"}
    # fmt: off
    options = [
        "--num-gpu-blocks-override", str(blocks), "--block-size", str(BLOCK_TOKENS), "--max-model-len", "16384",
        "--profile", PROFILE, "--enable-prompt-tokens-details", "--enable-auto-tool-choice",
    ]
    # fmt: on
    async with AsyncExitStack() as stack:
        engines = await stack.enter_async_context(engine_processes(arm.engines, *options))
        write_fleet_file(path, with_profile(fleet_of([engine.url for engine in engines]), profile))
        gateway = await stack.enter_async_context(gateway_process(path, environ=environ))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=gateway.url, timeout=60.0))
        sent = await asyncio.gather(
            *[_run_session(client, arm, session, Random(f"{seed} {session.name}")) for session in sessions]
        )
        streams = sum(map(len, sent))
        await wait_until(lambda: _has_counted(gateway, streams))
        counted = {
            name: int(await gateway.metric(f"fairlead_gateway_{metric}_count"))
            for name, metric in (("ttft", "ttft_seconds"), ("tpot", "tpot_seconds"), ("usage", "request_output_tokens"))
        }
        names = ("prompt_tokens_total", "cached_tokens_total", "output_tokens_total")
        gateway_tokens = [int(await gateway.metric(f"fairlead_gateway_{name}")) for name in names]
        run = figures_of(sent, counted, gateway_tokens, await _engine_tokens(engines))
        return replace(run, prediction_errors=await _prediction_errors(gateway, sent))


async def _prediction_errors(gateway: GatewayProcess, sessions: Sequence[Sequence[SentTurn]]) -> list[int]:
    """Returns predicted − reported cached tokens of all turns but the first ones."""
    answer = await gateway.get_json(f"/api/decisions?limit={sum(map(len, sessions))}")
    outcomes = {record["request_id"]: record["outcome"] for record in answer["decisions"]}
    later = [outcomes[turn.decision] for session in sessions for turn in session[1:]]
    return [outcome["predicted_cached_tokens"] - outcome["cached_tokens"] for outcome in later]


async def _has_counted(gateway: GatewayProcess, streams: int) -> bool:
    return await gateway.metric("fairlead_gateway_requests_total") >= streams


async def _engine_tokens(engines: Sequence[EngineProcess]) -> list[int]:
    """Returns the sums of prompt, cached and output tokens that the engines count."""
    names = ("vllm:prompt_tokens_total", "vllm:prompt_tokens_cached_total", "vllm:generation_tokens_total")
    sums = [0.0] * len(names)
    for engine in engines:
        text = (await send(engine.url, get_request("/metrics")))[0].body.decode()
        for line in text.splitlines():
            name, _, value = line.partition(" ")
            for position, wanted in enumerate(names):
                if name.partition("{")[0] == wanted:
                    sums[position] += float(value)
    return [int(total) for total in sums]


async def _run_session(client: httpx.AsyncClient, arm: Arm, session: AgentSession, draw: Random) -> list[SentTurn]:
    """Sends the turns of a session, each after the answer before and the time of a tool."""
    headers = {"content-type": "application/json"}
    if arm.session_header is not None:
        headers[arm.session_header] = session.name
    sent = []
    for turn in range(len(session.asked)):
        await asyncio.sleep(draw.uniform(*TOOL_SECONDS))
        sent.append(await _send_turn(client, arm.form, session, turn, headers))
    return sent


async def _send_turn(
    client: httpx.AsyncClient, form: WireForm, session: AgentSession, turn: int, headers: Mapping[str, str]
) -> SentTurn:
    begun, first, usage = time.perf_counter(), None, None
    async with client.stream("POST", form.path, json=form.body(session, turn), headers=headers) as answer:
        async for line in answer.aiter_lines():
            for event in read_events([line]):
                if first is None and form.is_token(event):
                    first = time.perf_counter() - begun
                usage = form.usage(event) or usage
        named = [answer.headers.get(f"x-fairlead-{name}", "") for name in ("instance", "decision")]
        return SentTurn(turn, named[0], answer.status_code, first, usage, named[1])


def rows(found: Mapping[str, Sequence[AgentRun]], goals: Goals) -> list[ResultRow]:
    """Returns the rows of these arms; runs are by seed. Arms that were not measured have none."""
    shares = {name: fmean([run.cached_share for run in runs]) for name, runs in found.items()}
    made: list[ResultRow] = []
    for name in UNNAMED_ARMS:
        if name in found and CHAT_ARM in found:
            lost = 100 * (shares[CHAT_ARM] - shares[name])
            made.append(goals.value(f"cached share: chat − {name}, points", "points", lost))
    for name in NAMED_ARMS:
        if name in found:
            moves = fmean([run.moves for run in found[name]])
            made.append(goals.value(f"moves of {(TURNS - 1) * SESSIONS} turns: {name}", "turns", moves))
        if name in found and POOL_ARM in found:
            metric = f"cached share: {name} ÷ one pool"
            made.append(goals.ratio(metric, "share", shares[name], POOL_ARM, shares[POOL_ARM]))
    for name, runs in found.items():
        counted = min([run.counted_share for run in runs])
        made.append(goals.value(f"streams that are counted, least: {name}", "share", counted))
        apart = sum([run.token_difference for run in runs])
        made.append(goals.value(f"tokens, gateway and engines apart: {name}", "tokens", apart))
    for name, runs in found.items():
        made.append(goals.value(f"cached share: {name}", "share", shares[name]))
        near = fmean([run.near_share for run in runs])
        made.append(goals.value(f"cached tokens predicted within {NEAR_TOKENS}: {name}", "share", near))
        made.append(goals.value(f"moves: {name}", "turns", fmean([run.moves for run in runs])))
        made.append(goals.value(f"p50 TTFT: {name}", "s", fmean([run.ttft_p50_seconds for run in runs])))
        made.append(goals.value(f"p90 TTFT: {name}", "s", fmean([run.ttft_p90_seconds for run in runs])))
    failures = sum([run.failures for runs in found.values() for run in runs])
    return [*made, goals.value("streams that failed", "streams", failures)]


async def _measure_all(arms: Sequence[str], seeds: int) -> dict[str, list[AgentRun]]:
    """Returns the runs of each arm by seed. The arms of one seed run one after the other."""
    found: dict[str, list[AgentRun]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            sessions = draw_sessions(SESSIONS, TURNS, seed)
            for name in arms:
                run = await measure(ARMS[name], seed, Path(folder), sessions)
                found[name].append(run)
                print(name, seed, asdict(run), flush=True)
    return found


def main(arguments: list[str]) -> int:
    """Measures, writes and prints. A goal that does not hold stays in the table."""
    given = parse_options(
        _NAME, "Coding agents through a real gateway.", arguments, arms=(list(ARMS), "only these"), seeds=5
    )
    found = asyncio.run(_measure_all(given.arms, given.seeds))
    table = [
        {"arm": name, "seed": seed, **asdict(run)} for name, runs in found.items() for seed, run in enumerate(runs)
    ]
    write_results(_NAME, rows(found, load_goals(_NAME)), seed=0, file=given.out, more={"runs": table})
    return 0

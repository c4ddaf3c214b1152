"""A scheduler of SGLang that is stopped (SIGSTOP) behind a front end that goes on to answer.

Two engines, one gateway, streams all the time. Streams of chats move to the other engine within
the time after which a silent engine counts as hung. New requests go there, too. The stopped engine
is used again once it runs.
"""

import asyncio
import itertools
import os
import signal
import statistics
import time
from contextlib import suppress
from pathlib import Path

from e2e.sglang.engine.sglang_stage import MODEL, SglangStage, fleet
from e2e.vllm.client import EngineAnswer, TextPrompt, openai_client, send_prompt
from e2e.vllm.engine.engine_processes import EngineProcess, GatewayProcess, fetch
from e2e.vllm.report import Numbers, VllmReport, require
from fairlead.limits import Limits
from fairlead_gateway.resilience.worker.engine_progress import hang_seconds
from fairlead_testing.processes import descendants
from fairlead_testing.waiting import wait_until

NAME = "hung"
CLIENTS = 3
TOKENS = 64
STOPPED_SECONDS = 60.0
_BACK_SECONDS = 180.0
_SCHEDULER = b"sglang::scheduler"


class Hung:
    """Two engines, clients, and one SIGSTOP."""

    def __init__(self, stage: SglangStage, report: VllmReport) -> None:
        self._stage = stage
        self._report = report
        self._answers: list[tuple[float, str, EngineAnswer]] = []
        self._is_over = False

    async def run(self) -> None:
        """Everything, in order; the engines are gone afterwards."""
        engines = [self._stage.engine(f"hung-{number}") for number in range(2)]
        try:
            for engine in engines:
                await asyncio.to_thread(engine.await_health)
            gateway = await asyncio.to_thread(self._stage.gateway, fleet(*engines))
            clients = [asyncio.create_task(self._send(gateway, number)) for number in range(CLIENTS)]
            try:
                name = "SIGSTOP of the scheduler of one engine"
                await self._report.check(name, lambda: self._stop(engines[0]))
                await self._report.check("SIGCONT", lambda: self._go_on(engines[0]))
            finally:
                self._is_over = True
                await asyncio.gather(*clients)
        finally:
            for engine in engines:
                engine.signal(signal.SIGCONT)
                engine.kill()

    async def _send(self, gateway: GatewayProcess, client_number: int) -> None:
        """Sends streams one after another, each with a prompt of its own."""
        async with openai_client(gateway.url) as client:
            for number in itertools.count(1_000 * client_number):
                if self._is_over:
                    return
                messages = [{"role": "user", "content": f"Why is {number} a number? " * 8}]
                body = {"model": MODEL, "messages": messages, "max_tokens": TOKENS, "temperature": 0}
                prompt = TextPrompt(0, "chat", "/v1/chat/completions", body | {"ignore_eos": True}).as_stream()
                answer = await send_prompt(client, prompt)
                instance = ""
                if answer.decision.startswith("req-"):
                    decision = await asyncio.to_thread(gateway.decision, answer.decision)
                    instance = decision["choices"][-1]["instance"]
                self._answers.append((time.monotonic(), instance, answer))

    def _of(self, engine: EngineProcess, since: float) -> int:
        return sum(at > since and instance == engine.name for at, instance, _ in self._answers)

    async def _stop(self, engine: EngineProcess) -> Numbers:
        await wait_until(lambda: self._of(engine, 0.0) >= CLIENTS, _BACK_SECONDS)
        (scheduler,) = [process for process in descendants(engine.process.pid) if _is_scheduler(process)]
        usual = statistics.median(pause for *_, answer in self._answers for pause in answer.pauses)
        before, began = len(self._answers), time.monotonic()
        os.kill(scheduler, signal.SIGSTOP)
        health = await asyncio.to_thread(_health, engine)
        await asyncio.sleep(STOPPED_SECONDS)
        answers = [answer for *_, answer in self._answers[before:]]
        failed = [f"{answer.status} {answer.error}" for answer in answers if not answer.ended]
        longest = max(pause for answer in answers for pause in answer.pauses)
        allowed = hang_seconds(usual, 0.0, Limits().stream_hang_seconds)
        numbers: Numbers = {
            "health": health,
            "requests": len(answers),
            "failures": len(failed),
            "first_failures": failed[:3],
            "usual_pause_seconds": round(usual, 3),
            "longest_pause_seconds": round(longest, 1),
            "allowed_pause_seconds": round(allowed, 1),
            "slowest_seconds": round(max(answer.seconds for answer in answers), 1),
            "answers_of_the_stopped_engine_later": self._of(engine, began + STOPPED_SECONDS / 2),
        }
        require(not failed, "requests failed", numbers)
        require(longest <= allowed, "a stream did not leave the stopped engine in time", numbers)
        require(numbers["slowest_seconds"] < 2 * Limits().first_token_min_seconds, "a request did not move on", numbers)
        require(not numbers["answers_of_the_stopped_engine_later"], "a stopped engine has answered", numbers)
        return numbers

    async def _go_on(self, engine: EngineProcess) -> Numbers:
        began = time.monotonic()
        engine.signal(signal.SIGCONT)
        await wait_until(lambda: self._of(engine, began + 1.0) > 0, _BACK_SECONDS, what="the engine is used again")
        return {"used_again_seconds": round(time.monotonic() - began, 1)}


def _is_scheduler(process: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().startswith(_SCHEDULER)
    return False


def _health(engine: EngineProcess) -> str:
    """Returns the answer of the front end about its health."""
    try:
        fetch(f"{engine.url}/health", seconds=30.0)
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return "200"

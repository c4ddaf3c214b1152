"""Prefill and decode on two engines: the answers of one, also when the prefill engine fails.

The right answer is that of the decode engine alone. Every prompt goes to it directly first, under a
salt of its own, so that no cache affects either side. Batches round differently: one engine with
several prompts at once differs from itself where two tokens are about as likely. A different answer
is wrong unless it differs there (``logprob_gap``).
"""

import asyncio
import itertools
import re
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from e2e.vllm.client import (
    MAX_TIE_NATS,
    EngineAnswer,
    TextPrompt,
    first_difference,
    logprob_gap,
    make_prompts,
    openai_client,
    send_prompts,
)
from e2e.vllm.engine.engine_processes import EngineProcess, EngineStage, KvConnector, fleet_of
from e2e.vllm.report import Numbers, VllmReport, require, spread
from fairlead.fleet.model import Fleet, Instance, InstanceState, Model, Role
from fairlead.limits import Limits
from fairlead_testing.gateway.running_gateway import running_gateway

MODEL = "tiny"
LONG_TOKENS = 1_300
UNDER_FAULT = 24
BEFORE_FAULT = 6
AT_ONCE = 4
DEADLINE_SECONDS = 90.0
SLOW_SECONDS = 10.0
_ROLE = {"prefill": "kv_producer", "decode": "kv_consumer"}


class HandoffScenario:
    """A prefill engine, a decode engine, and a gateway before them."""

    def __init__(self, stage: EngineStage, report: VllmReport, connector: KvConnector) -> None:
        self._stage = stage
        self._report = report
        self._connector = connector
        self._prefills = 0
        self._bootstrap: str | None = None
        self._rounds = itertools.count()

    async def run(self) -> None:
        """Everything, in order; the engines are gone afterwards."""
        self.decode = self._start("decode", 1)
        self.prefill = self._start("prefill", 0)
        try:
            self.gateway = self._stage.gateway({"models": [self._fleet()]})
            await self._report.check("first hand-off", self._first)
            await self._report.check("50 prompts, as shipped", self._as_shipped)
            await self._report.check("50 prompts, every length handed over", self._every_length)
            await self._report.check("SIGKILL of the prefill engine", lambda: self._fault(signal.SIGKILL, 3))
            await self._report.check("a new prefill engine is used", self._anew)
            await self._report.check("SIGSTOP of the prefill engine", lambda: self._fault(signal.SIGSTOP, 4))
            await self._report.check("SIGCONT, and hand-offs again", self._awake)
        finally:
            for engine in (self.prefill, self.decode):
                engine.signal(signal.SIGCONT)
                engine.kill()

    def _start(self, role: str, core: int) -> EngineProcess:
        """One engine, healthy; the two get each a core, and NIXL's spinning threads only what is
        left of it."""
        self._prefills += role == "prefill"
        environment, bootstrap = self._connector.environment()
        if role == "prefill":
            self._bootstrap = bootstrap
        told = ("--kv-transfer-config", self._connector.engine_arguments(_ROLE[role]))
        name = f"{self._connector.transfer}-{role}-{self._prefills}"
        engine = self._stage.engine(name, *told, core=core, environment=environment)
        engine.await_health()
        spinning = engine.lower_spinning_priority()
        numbers = {"start_seconds": engine.started_seconds, "spinning_threads": spinning, **self._connector.numbers}
        self._report.add(f"{role} engine {self._prefills} starts", {"holds": True, **numbers})
        return engine

    def _fleet(self) -> dict[str, Any]:
        fleet = fleet_of(MODEL, [(self.prefill, "Prefill"), (self.decode, "Decode")], self._connector.transfer)
        if self._bootstrap is not None:
            fleet["instances"][0]["bootstrap"] = self._bootstrap
        return fleet

    # Checks
    # ------------------------------------------------------------------------------------------------------------

    async def _first(self) -> Numbers:
        one = (await make_prompts(self.decode.url, MODEL, count=2, seed=9, least=LONG_TOKENS))[:1]
        return await self._compared(one, self.gateway.url, self._reason, at_once=1)

    async def _as_shipped(self) -> Numbers:
        """Through the gateway process, with the limits of the release: short prompts stay on one
        engine."""
        numbers = await self._compared(
            await make_prompts(self.decode.url, MODEL, seed=1), self.gateway.url, self._reason
        )
        require(numbers["handed_over"] >= 25, "too few were handed over", numbers)
        return numbers

    async def _every_length(self) -> Numbers:
        """Through a gateway that hands everything over, also right after a hand-off that failed.

        The only decode engine is sometimes stuck in a transfer for half a minute. What got a 504
        then is asked again, once.
        """
        limits = Limits(handoff_min_tokens=1, handoff_suspect_seconds=0.001)
        async with running_gateway(self._as_value(), limits) as running:

            def reason(request_id: str) -> str:
                found = running.gateway.decisions.find(request_id)
                return found[0].latest.decision.reason if found else "forgotten"

            numbers = await self._compared(
                await make_prompts(self.decode.url, MODEL, seed=2), running.url, reason, again=True
            )
        require(numbers["handed_over"] >= 45, "too few were handed over", numbers)
        return numbers

    async def _fault(self, number: int, seed: int) -> Numbers:
        """A signal to the prefill engine while requests are under way; then some more."""
        prompts = await make_prompts(self.decode.url, MODEL, count=UNDER_FAULT, seed=seed, least=LONG_TOKENS)
        prompts = [one.as_stream() if at % 2 else one for at, one in enumerate(prompts)]

        def fault(done: int) -> None:
            if done == BEFORE_FAULT:
                self.prefill.signal(number)

        numbers = await self._compared(
            prompts, self.gateway.url, self._reason, at_once=AT_ONCE, deadline=DEADLINE_SECONDS, each=fault
        )
        if number == signal.SIGKILL:
            self.prefill.kill()
        return numbers

    async def _anew(self) -> Numbers:
        self.prefill = self._start("prefill", 0)
        self.gateway.serve({"models": [self._fleet()]})
        return await self._again(5)

    async def _awake(self) -> Numbers:
        self.prefill.signal(signal.SIGCONT)
        return await self._again(6)

    async def _again(self, seed: int) -> Numbers:
        """Ask until a hand-off works again; pairs that failed are left alone for half a minute."""
        prompts = await make_prompts(self.decode.url, MODEL, count=60, seed=seed, least=LONG_TOKENS)
        numbers: Numbers = {}
        for at, one in enumerate(prompts):
            numbers = await self._compared([one], self.gateway.url, self._reason, at_once=1)
            if numbers["handed_over"]:
                return numbers | {"prompts": at + 1}
            await asyncio.sleep(2.0)
        require(False, "no hand-off any more", numbers)
        return numbers

    # Comparing
    # ---------------------------------------------------------------------------------------------------------

    async def _compared(
        self,
        prompts: Sequence[TextPrompt],
        url: str,
        reason: Callable[[str], str],
        *,
        at_once: int = 2,
        deadline: float = DEADLINE_SECONDS,
        each: Callable[[int], None] | None = None,
        again: bool = False,
    ) -> Numbers:
        """Ask the decode engine alone, then ``url``; every answer must be the same one, and in
        time."""
        async with openai_client(self.decode.url) as direct, openai_client(url) as through:
            alone = await send_prompts(direct, prompts, salt=f"alone-{next(self._rounds)}")
            before = self._decoded()
            said = await send_prompts(through, prompts, at_once=at_once, deadline=deadline, each=each)
            late = [at for at, one in enumerate(said) if again and one.status == 504]
            for at in late:
                said[at] = (await send_prompts(through, [prompts[at]], deadline=deadline))[0]
            after = self._decoded()
            pairs = zip(prompts, alone, said, strict=True)
            gaps = [await logprob_gap(direct, one, want.tokens, got.tokens) for one, want, got in pairs]
        reasons = [reason(one.decision) if one.decision else "not answered" for one in said]
        wrong = [
            _wrong(one, want, got, why, nats)
            for one, want, got, why, nats in zip(prompts, alone, said, reasons, gaps, strict=True)
            if not (got.ended and nats <= MAX_TIE_NATS and len(want.tokens) > 0)
        ]
        parted = [
            [one.tokens, first_difference(want.tokens, got.tokens), round(nats, 4)]
            for one, want, got, nats in zip(prompts, alone, said, gaps, strict=True)
            if got.tokens != want.tokens and nats <= MAX_TIE_NATS
        ]
        numbers = {
            "prompts": len(prompts),
            "shortest_tokens": min(prompt.tokens for prompt in prompts),
            "longest_tokens": max(prompt.tokens for prompt in prompts),
            "equal": len(prompts) - len(wrong) - len(parted),
            "parted_at_a_tie": parted,
            "handed_over": sum(one.startswith("prefill on ") for one in reasons),
            "asked_again": len(late),
            "tokens_transferred": round(after[0] - before[0]),
            "transfers_failed": round(after[1] - before[1]),
            "alone_seconds": spread([one.seconds for one in alone]),
            "gateway_seconds": spread([one.seconds for one in said]),
            "not_handed_over": dict(Counter(map(_kind, reasons)) - Counter({_kind("prefill on "): len(reasons)})),
            "slowest": [
                [one.tokens, round(got.seconds, 1), why[:300]]
                for one, got, why in zip(prompts, said, reasons, strict=True)
                if got.seconds > SLOW_SECONDS
            ],
            "wrong": wrong,
        }
        require(all(one.ended for one in alone), "the decode engine alone did not answer", numbers)
        require(not wrong, "not every answer is the one of one engine alone", numbers)
        require(len(parted) <= len(prompts) / 5, "more ties than one engine has", numbers)
        require(all(one.seconds <= deadline for one in said), "an answer came too late", numbers)
        return numbers

    def _decoded(self) -> tuple[float, float]:
        """Prompt tokens that came from another engine, and failed transfers, as the decode engine
        counts them."""
        source = self.decode.metric("vllm:prompt_tokens_by_source_total", source="external_kv_transfer")
        return source, self.decode.metric("vllm:nixl_num_failed_transfers_total")

    def _reason(self, request_id: str) -> str:
        return str(self.gateway.decision(request_id)["choices"][-1]["reason"])

    def _as_value(self) -> Fleet:
        """The same fleet for a gateway inside this process."""

        def instance(engine: EngineProcess, role: Role) -> Instance:
            return Instance(
                engine.name,
                "default",
                MODEL,
                role.value.lower(),
                engine.url,
                role=role,
                state=InstanceState.READY,
                transfer=self._connector.transfer,
                bootstrap=self._bootstrap if role is Role.PREFILL else None,
            )

        both = (instance(self.prefill, Role.PREFILL), instance(self.decode, Role.DECODE))
        return Fleet(1, 1, {f"default/{MODEL}": Model("default", MODEL)}, {f"default/{MODEL}": both})


def _wrong(one: TextPrompt, want: EngineAnswer, got: EngineAnswer, why: str, nats: float) -> Numbers:
    """All that may tell where an answer went wrong."""
    return {
        "tokens": one.tokens,
        "kind": one.kind,
        "stream": bool(one.body.get("stream")),
        "status": got.status,
        "ended": got.ended,
        "error": got.error,
        "seconds": round(got.seconds, 1),
        "wrong_from_token": first_difference(want.tokens, got.tokens),
        "less_likely_by_nats": str(nats),
        "said_tokens": len(got.tokens),
        "reason": why[:400],
    }


def _kind(reason: str) -> str:
    """A reason without its numbers, names and routing words."""
    if reason.startswith("prefill on "):
        return "prefill"
    return re.sub(r"[\d.]+", "N", re.sub(r"(prefill|decode)-\d+", r"\1", reason.split(";")[0]))

"""Prefill and decode by real engines in two pods, which hand over by Mooncake and TCP.

The right answer is that of the decode engine alone, asked under a salt of its own
(``prefill_handoff.py``). The decode engine counts the prompt tokens whose KV came from the other
pod. NIXL is left to the runs without a cluster: its progress thread takes a whole core of each
engine, and the node has two.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx

from e2e.kube.cluster_access.index_status import IndexStatus
from e2e.kube.cluster_access.kubectl import eventually
from e2e.vllm.client import (
    MAX_TIE_NATS,
    TIMEOUT_SECONDS,
    EngineAnswer,
    TextPrompt,
    logprob_gap,
    make_prompts,
    openai_client,
    send_prompts,
)
from e2e.vllm.pods import pod_environment
from e2e.vllm.pods.pod_stage import MODEL, START_SECONDS, PodStage, is_ready, metric, step
from e2e.vllm.report import Numbers, VllmReport, require, spread

_LONG_TOKENS = 1_300
_PROMPTS = 12
_UNDER_FAULT = 8
_AGAIN_SECONDS = 180.0


class PodsHandoff:
    """A prefill pod, a decode pod, and the gateway of the cluster before them."""

    def __init__(self, stage: PodStage, report: VllmReport) -> None:
        self._stage = stage
        self._report = report
        self._seed = 0

    async def run(self) -> None:
        """Runs everything, in order."""
        with self._stage.namespace("handoff") as self._here:
            await step(self._report, "a prefill pod and a decode pod serve", self._apply)
            await step(self._report, "first hand-off", self._first)
            await step(self._report, f"{_PROMPTS} prompts, each handed over", self._hand_over)
            await step(self._report, "the prefill pod is killed under requests", self._kill)
            await step(self._report, "the next prefill pod is used", self._again)

    def _apply(self) -> Numbers:
        here = self._here
        pools = [
            pod_environment.pool(name=role.lower(), role=role, minReplicas=1, maxReplicas=1)
            for role in ("Prefill", "Decode")
        ]
        engine = pod_environment.engine(self._stage.installed)
        here.here.apply(here.manifest(*pools, engine=engine, kvCache={"transfer": "Mooncake"}))
        here.client.first_token(here.name, seconds=START_SECONDS)
        here.wait_until_ready(pods=2, seconds=START_SECONDS)
        return {"pods": 2}

    def _first(self) -> Numbers:
        """The connection of a pair is made for the first prompt."""
        numbers = self._compare(1)
        require(numbers["handed_over"] == 1, "it was not handed over", numbers)
        return numbers

    def _hand_over(self) -> Numbers:
        numbers = self._compare(_PROMPTS)
        require(numbers["handed_over"] == _PROMPTS, "not every prompt was handed over", numbers)
        require(numbers["tokens_transferred"] > _PROMPTS * _LONG_TOKENS / 2, "too little KV was transferred", numbers)
        return numbers

    def _kill(self) -> Numbers:
        """Ends the prefill pod without a grace period; every answer must be right all the same."""
        here = self._here
        pod = here.pod_of("prefill")["metadata"]["name"]

        def kill(done: int) -> None:
            if done == 2:
                here.here.run("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")

        return self._compare(_UNDER_FAULT, each=kill)

    def _again(self) -> Numbers:
        """Asks until a prompt is handed over to the pod that took the place of the killed one."""
        here = self._here
        pods = lambda: [one for one in here.model.pods().values() if is_ready(one)]  # noqa: E731
        eventually("two pods are ready", lambda: len(pods()) == 2, seconds=START_SECONDS, every=1.0)
        end, asked = time.monotonic() + _AGAIN_SECONDS, 0
        while time.monotonic() < end:
            asked += 1
            numbers = self._compare(1)
            if numbers["handed_over"]:
                return {**numbers, "asked": asked}
        require(False, "no hand-off any more", {"asked": asked})
        return {}

    def _compare(self, count: int, each: Callable[[int], None] | None = None) -> Numbers:
        """Asks the decode engine alone, then the gateway; every answer must be the same one."""
        before = self._counts()
        with ThreadPoolExecutor(1) as beside:  # the loop of this thread is that of the report
            alone, said, gaps = beside.submit(asyncio.run, self._send(count, each)).result()
        after = self._counts()
        wrong = [
            [answer.status, answer.error[:300], round(nats, 3) if nats < 100 else "another answer"]
            for answer, nats in zip(said, gaps, strict=True)
            if not (answer.ended and nats <= MAX_TIE_NATS)
        ]
        numbers: Numbers = {
            "prompts": count,
            "equal": sum(want.tokens == got.tokens for want, got in zip(alone, said, strict=True)),
            **{name: round(after[name] - before[name]) for name in before},
            "gateway": spread([answer.seconds for answer in said]),
        }
        require(not wrong, "not every answer is that of the decode engine alone", {**numbers, "wrong": wrong})
        return numbers

    async def _send(
        self, count: int, each: Callable[[int], None] | None
    ) -> tuple[Sequence[EngineAnswer], Sequence[EngineAnswer], list[float]]:
        """Returns the answers of the decode engine, those of the gateway, and how far each pair is
        apart."""
        here, self._seed = self._here, self._seed + 1
        decode = here.address(here.pod_of("decode"))
        prompts = await make_prompts(decode, MODEL, count=count, seed=self._seed, least=_LONG_TOKENS)
        named = [TextPrompt(one.tokens, one.kind, one.path, {**one.body, "model": here.name}) for one in prompts]
        fields = {"authorization": f"Bearer {here.client.key}"}
        gateway = httpx.AsyncClient(base_url=here.gateway(), timeout=TIMEOUT_SECONDS, headers=fields)
        async with openai_client(decode) as direct, gateway as through:
            alone = await send_prompts(direct, prompts, salt=f"alone-{self._seed}")
            require(all(one.ended for one in alone), "the decode engine alone did not answer")
            said = await send_prompts(through, named, at_once=2, each=each)
            pairs = zip(prompts, alone, said, strict=True)
            gaps = [await logprob_gap(direct, one, want.tokens, got.tokens) for one, want, got in pairs]
        return alone, said, gaps

    def _counts(self) -> dict[str, float]:
        here = self._here
        decode = here.address(here.pod_of("decode"))
        status = IndexStatus(self._stage.release, here.name)
        done = status.reports("gateway", "fairlead_gateway_handoffs_total", outcome="done")
        return {
            "handed_over": sum(done),
            "tokens_transferred": metric(decode, "vllm:prompt_tokens_by_source_total", source="external_kv_transfer"),
        }

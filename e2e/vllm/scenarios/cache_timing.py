"""An attack on the KV cache of a real engine: which prompts did another tenant send?

Two pairs of tenants call one engine through one gateway. One pair is isolated, as is the default.
The other shares its cache (`cacheSharing: Cluster`) and shows that the attack works. In a round of
a pair, the victim sends half of 20 prompts. Then the attacker sends all of them in another order.
It ranks them by the time to the first token, as a multiple of the round's median, and by the cached
tokens that responses state.

AUC is the chance that one of the victim's prompts ranks before another. Pairs take turns by rounds,
so that other work on the machine disturbs both alike. The engine's own count of cached tokens says
what really happened.
"""

import json
import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

import httpx

from e2e.kube.workloads.manifests import resource
from e2e.vllm.client import openai_client
from e2e.vllm.engine.engine_processes import EngineProcess, EngineStage, fleet_of
from e2e.vllm.report import Numbers, VllmReport, require, spread
from fairlead.tenants.model import CacheSharing
from fairlead_bench.fairness.cache_timing import area_under_curve
from fairlead_bench.results import ResultRow, load_goals, write_results
from fairlead_gateway.tenants.worker.api_keys import key_digest

NAME: Final = "cache-timing"
PROBES: Final = 1_000
_MODEL: Final = "tiny"
_ROUND_PROMPTS: Final = 20
_PROMPT_TOKENS: Final = 2_000
_TOKEN_IDS: Final = range(300, 8_000)
"""Ordinary tokens of the model's vocabulary."""
_SEED: Final = 7
_PEPPER: Final = "a pepper of the test"
_ENGINE_OPTIONS: Final = ("--num-gpu-blocks-override", "8192")
"""A cache that has room for all prompts of three rounds."""


@dataclass(slots=True)
class TenantPair:
    """A victim and an attacker, and what the attacker has seen.

    keys: the API keys of both.
    sent: the probes that the victim had sent before.
    ttft_seconds, relative_times: by probe; the second divided by the median of the round.
    shown_tokens: cached tokens by probe, as responses state them; 0 where they state none.
    engine_tokens: prompt tokens of the attacker that the engine had cached.
    """

    name: str
    sharing: CacheSharing
    keys: tuple[str, str] = field(default_factory=lambda: (secrets.token_urlsafe(24), secrets.token_urlsafe(24)))
    sent: set[int] = field(default_factory=set)
    ttft_seconds: list[float] = field(default_factory=list)
    relative_times: list[float] = field(default_factory=list)
    shown_tokens: list[float] = field(default_factory=list)
    engine_tokens: float = 0.0

    def documents(self) -> list[dict[str, Any]]:
        """Returns the ModelTenants of both."""
        names = (f"{self.sharing.value.lower()}-{role}" for role in ("victim", "attacker"))
        return [
            resource(
                "ModelTenant",
                name,
                keys=[{"name": "k", "digest": key_digest(key.encode(), _PEPPER.encode()).hex()}],
                cacheSharing=self.sharing.value,
            )
            for name, key in zip(names, self.keys, strict=True)
        ]

    def curve_by_time(self) -> float:
        return area_under_curve([-relative for relative in self.relative_times], self.sent)

    def curve_by_tokens(self) -> float:
        """Returns the AUC of ranking by the cached tokens that responses state."""
        return area_under_curve(self.shown_tokens, self.sent)

    def numbers(self) -> Numbers:
        """Returns what the result file has of the pair, apart from its rows."""
        known = [seconds for probe, seconds in enumerate(self.ttft_seconds) if probe in self.sent]
        others = [seconds for probe, seconds in enumerate(self.ttft_seconds) if probe not in self.sent]
        return {
            "probes": len(self.ttft_seconds),
            "sent_by_the_victim": len(self.sent),
            "ttft_seconds_of_prompts_of_the_victim": spread(known),
            "ttft_seconds_of_other_prompts": spread(others),
            "cached_tokens_of_the_attacker_at_the_engine": self.engine_tokens,
        }


class CacheTiming:
    """The attack on one engine. Writes its own result file.

    seconds: the time after which no round begins, so that there may be fewer probes.
    """

    def __init__(self, stage: EngineStage, report: VllmReport, path: Path, seconds: float = math.inf) -> None:
        self._stage = stage
        self._report = report
        self._path = path
        self._seconds = seconds
        self._draw = Random(_SEED)
        self._isolated = TenantPair("isolated", CacheSharing.TENANT)
        self._shared = TenantPair("shared caches", CacheSharing.CLUSTER)

    async def run(self) -> None:
        """Makes all rounds, writes the results and checks them; the engine is gone afterwards."""
        engine = self._stage.engine("cache-timing", *_ENGINE_OPTIONS, nice=0)
        try:
            engine.await_health()
            await self._report.check("all rounds of both pairs", lambda: self._attack(engine))
        finally:
            engine.kill()
        rows = self._rows()
        self._write(rows)
        for row in rows:
            self._report.add(row.metric, {"holds": row.holds, "value": row.value})
        await self._report.check("the engine shared blocks of one pair only", self._check_engine)

    async def _attack(self, engine: EngineProcess) -> Numbers:
        pairs = (self._isolated, self._shared)
        tenants = self._stage.folder / "attack-tenants.yaml"
        tenants.write_text("---\n".join(json.dumps(document) + "\n" for pair in pairs for document in pair.documents()))
        gateway = self._stage.gateway(
            {"models": [fleet_of(_MODEL, [(engine, "Serve")])]},
            *("--tenants", str(tenants)),
            environment={"FAIRLEAD_KEY_PEPPER": _PEPPER},
        )
        async with openai_client(gateway.url) as client:
            for pair in pairs:  # the first requests of an engine are slow, and do not count
                await self._round(client, engine, TenantPair("warm-up", pair.sharing, pair.keys))
            began = time.monotonic()
            for _ in range(PROBES // _ROUND_PROMPTS):
                if time.monotonic() - began > self._seconds:
                    break
                for pair in pairs:
                    await self._round(client, engine, pair)
        return {pair.name: pair.numbers() for pair in pairs}

    async def _round(self, client: httpx.AsyncClient, engine: EngineProcess, pair: TenantPair) -> None:
        prompts = [self._draw.choices(_TOKEN_IDS, k=_PROMPT_TOKENS) for _ in range(_ROUND_PROMPTS)]
        sent = self._draw.sample(range(_ROUND_PROMPTS), _ROUND_PROMPTS // 2)
        victim, attacker = pair.keys
        for index in sent:
            await _send(client, victim, prompts[index])
        before = engine.metric("vllm:prefix_cache_hits_total")
        for index in self._draw.sample(range(_ROUND_PROMPTS), _ROUND_PROMPTS):
            seconds, tokens = await _send(client, attacker, prompts[index])
            if index in sent:
                pair.sent.add(len(pair.ttft_seconds))
            pair.ttft_seconds.append(seconds)
            pair.shown_tokens.append(tokens)
        middle = median(pair.ttft_seconds[-_ROUND_PROMPTS:])
        pair.relative_times += [seconds / middle for seconds in pair.ttft_seconds[-_ROUND_PROMPTS:]]
        pair.engine_tokens += engine.metric("vllm:prefix_cache_hits_total") - before

    async def _check_engine(self) -> Numbers:
        expected = len(self._shared.sent) * _PROMPT_TOKENS
        numbers = {"isolated": self._isolated.engine_tokens, "shared": self._shared.engine_tokens}
        require(self._isolated.engine_tokens == 0, "an isolated tenant got cached tokens of another", numbers)
        require(self._shared.engine_tokens >= 0.95 * expected, "tenants that share did not", numbers)
        return numbers

    def _rows(self) -> list[ResultRow]:
        goals, rows = load_goals(NAME), []
        for pair in (self._isolated, self._shared):
            for channel, value in (("time", pair.curve_by_time()), ("cached tokens", pair.curve_by_tokens())):
                rows.append(goals.value(f"timing attack on vLLM, AUC by {channel}: {pair.name}", "", round(value, 4)))
        return rows

    def _write(self, rows: list[ResultRow]) -> None:
        more: Mapping[str, Any] = {
            "engine": dict(self._report.versions),
            "prompt_tokens": _PROMPT_TOKENS,
            "pairs": {pair.name: pair.numbers() for pair in (self._isolated, self._shared)},
        }
        write_results(NAME, rows, seed=_SEED, file=self._path, more=more)


async def _send(client: httpx.AsyncClient, key: str, prompt: list[int]) -> tuple[float, float]:
    """Returns the seconds to the first token of a stream, and the cached tokens that it states."""
    body = {
        "model": _MODEL,
        "prompt": prompt,
        "max_tokens": 1,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began, first, tokens = time.perf_counter(), 0.0, 0.0
    fields = {"authorization": f"Bearer {key}"}
    async with client.stream("POST", "/v1/completions", json=body, headers=fields) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code}: {(await answer.aread()).decode()[:500]}")
        async for line in answer.aiter_lines():
            first = first or (time.perf_counter() - began if line.startswith("data: ") else 0.0)
            if line.startswith("data: {"):
                usage = json.loads(line[6:]).get("usage") or {}
                tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or tokens
    if not first:
        raise RuntimeError("a stream had no token")
    return first, float(tokens)

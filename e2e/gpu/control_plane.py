"""Fairlead's processes before a group of engines: Redis, indexer, gateways and autoscaler.

The index compared with the engines: what it says that they have cached, and what they say
themselves.
"""

import asyncio
import itertools
import json
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import httpx

from e2e.gpu.engines import BLOCK_TOKENS, MODEL, MODEL_KEY, EngineGroup
from e2e.vllm.engine.engine_processes import GatewayProcess, fetch, start_gateway, stop_process
from e2e.vllm.observation.observed_engine import blocks
from e2e.vllm.report import Numbers, require
from fairlead.engine_profile import EngineProfile
from fairlead.fleet.file import profile_fields
from fairlead.fleet.model import SloTargets
from fairlead.runtime.clock import SystemClock
from fairlead_autoscaler.core import PoolSpec, ReplicaState
from fairlead_autoscaler.local.state_files import STATE_FILE, LocalEngine, LocalModel, LocalPool, LocalState, write_file
from fairlead_cli.index.prefix_match import TokenPrompt
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.kvstore.index_reader import IndexReader
from fairlead_testing.processes import start_ready
from fairlead_testing.redis.valkey import Valkey
from fairlead_testing.waiting import wait_until

SECRET: Final = "a secret of the test"
SLO: Final = SloTargets(ttft_seconds=2.0, itl_seconds=0.1)

_SETTLE_SECONDS: Final = 0.1
"""An event reaches the index within some milliseconds of a step."""
_LISTED: Final = 20


class ControlPlane:
    """Redis and an indexer for all engines of a group; gateways and an autoscaler on request.

    All processes end with the block. profile: of every engine, as an operator would state it.
    """

    def __init__(self, group: EngineGroup, folder: Path) -> None:
        self.profile: EngineProfile | None = None
        self.adapters: list[dict[str, str]] = []
        self.transfer: str | None = None
        self._group = group
        self._folder = folder
        self._redis = Valkey(folder)
        self._stack = ExitStack()
        self._gateways = 0

    def __enter__(self) -> "ControlPlane":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._redis.start()
        self._stack.callback(self._redis.kill)
        fleet = self._write_fleet("index.yaml", "dual-hash")
        options = ("--fleet", str(fleet), "--redis", self._redis.url)
        self._start("indexer", "fairlead_kvstore", *options)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def redis_url(self) -> str:
        return self._redis.url

    def start_gateway(self, preset: str) -> GatewayProcess:
        """Starts a gateway that knows nothing yet; the caller stops it."""
        self._gateways += 1
        fleet = self._write_fleet(f"fleet-{self._gateways}.yaml", preset)
        log = self._folder / f"gateway-{self._gateways}.log"
        environment = {"FAIRLEAD_HASH_SECRET": SECRET}
        gateway = start_gateway(fleet, log, "--redis", self._redis.url, environment=environment)
        self._stack.callback(gateway.stop)
        return gateway

    def fleet(self, preset: str) -> dict[str, Any]:
        """Returns the fleet file of a gateway with this preset."""
        profile = {} if self.profile is None else {"profile": profile_fields(self.profile)}
        instances = [{**instance, **profile} for instance in self._group.instances()]
        slo = {"ttft": f"{SLO.ttft_seconds}s", "tpot": f"{SLO.itl_seconds}s"}
        model: dict[str, Any] = {"name": MODEL, "slo": slo, "routing": {"preset": preset}, "instances": instances}
        if self.adapters:
            model |= {"adapters": self.adapters, "adapterSlots": 2}
        if self.transfer is not None:
            model["kvTransfer"] = self.transfer
            for instance, role in zip(instances, ("Prefill", "Decode"), strict=True):
                instance["role"] = role
        return {"models": [model]}

    def start_autoscaler(self, gateway: GatewayProcess) -> "Autoscaler":
        """Starts an autoscaler that watches the engines through a gateway. Nothing acts on its
        numbers.
        """
        folder = self._folder / "autoscaler"
        folder.mkdir(exist_ok=True)
        now = time.monotonic()
        engines = tuple(
            LocalEngine(slot.name, ReplicaState.READY, now, now, (slot.name,)) for slot in self._group.slots
        )
        spec = PoolSpec("main", minimum=1, maximum=2 * len(engines), profile=self.profile)
        pool = LocalPool(spec, len(engines), engines)
        write_file(folder / STATE_FILE, LocalState({MODEL_KEY: LocalModel(SLO, {"mode": "Advise"}, (pool,))}))
        line = self._start("autoscaler", "fairlead_autoscaler", "--local", str(folder), "--gateway", gateway.manage)
        return Autoscaler(next(word for word in line.split() if word.startswith("http")))

    def _write_fleet(self, name: str, preset: str) -> Path:
        file = self._folder / name
        file.write_text(json.dumps(self.fleet(preset)))
        return file

    def _start(self, name: str, module: str, *options: str) -> str:
        """Starts a component, and returns the line with which it says that it is ready."""
        environ = {**os.environ, "FAIRLEAD_HASH_SECRET": SECRET}
        process, line = start_ready(module, *options, log=self._folder / f"{name}.log", environ=environ)
        self._stack.callback(stop_process, process)
        return line


class Autoscaler:
    """A running autoscaler, by its URL."""

    def __init__(self, url: str) -> None:
        self._url = url

    def last_record(self) -> dict[str, Any]:
        """Returns what it saw of the engines last, and what it decided and why."""
        record = json.loads(fetch(f"{self._url}/autoscaling/look?model={MODEL_KEY}"))
        replicas = record["observation"]["pools"]["main"]["replicas"] or []
        plan = record["plan"]["pools"]["main"]
        seen = ("running", "waiting", "kv_share", "prompt_tokens", "generated_tokens", "cached_tokens")
        inputs = ("speed_factor", "capacity_requests_per_second", "prompt_tokens", "output_tokens", "need_replicas")
        return {
            "engines": [{name: replica[name] for name in seen} for replica in replicas],
            **{name: plan[name] for name in ("replicas", "rule", "reason")},
            "inputs": {name: plan["inputs"][name]["value"] for name in inputs if name in plan["inputs"]},
        }


async def compare_index(
    group: EngineGroup, plane: ControlPlane, prompts: Sequence[Sequence[dict[str, str]]]
) -> Numbers:
    """Sends chats by their token ids, one at a time, to one engine after another.

    Each time, the index says first what the engine has cached of it; then the engine says it. The
    index is read as by `fairlead index`. Raises CheckFailed unless both agree about every prompt.
    """
    link = RedisLink(plane.redis_url, SystemClock())
    feed = IndexReader(link, SystemClock())
    feed.set_models([MODEL_KEY])
    link.start()
    feed.start()
    rows: list[dict[str, Any]] = []
    try:
        await wait_until(lambda: feed.index(MODEL_KEY) is not None)
        async with httpx.AsyncClient(timeout=60.0) as client:
            for engine, messages in zip(itertools.cycle(group.engines.values()), prompts, strict=False):
                tokens = await _tokenize(client, engine.url, messages)
                chain = TokenPrompt(tokens).hashes(MODEL_KEY, BLOCK_TOKENS, SECRET.encode())
                await asyncio.sleep(_SETTLE_SECONDS)
                known = blocks(feed.index(MODEL_KEY), engine.name, chain, StorageTier.GPU) * BLOCK_TOKENS
                # An engine computes at least the last token of a prompt.
                expected = min(known, (len(tokens) - 1) // BLOCK_TOKENS * BLOCK_TOKENS)
                reported = await cached_tokens(client, engine.url, tokens)
                rows.append({"engine": engine.name, "prompt": len(tokens), "index": expected, "engine_says": reported})
    finally:
        await feed.stop()
        await link.stop()
    wrong = [row for row in rows if row["index"] != row["engine_says"]]
    numbers: Numbers = {
        "probes": len(rows),
        "exact": len(rows) - len(wrong),
        "index_more": sum(row["index"] > row["engine_says"] for row in rows),
        "index_less": sum(row["index"] < row["engine_says"] for row in rows),
        "with_hits": sum(row["engine_says"] > 0 for row in rows),
        "cached_tokens": sum(row["engine_says"] for row in rows),
        "first_wrong": wrong[:_LISTED],
    }
    require(numbers["with_hits"], "no probe hit a cache, so nothing was shown", numbers)
    require(not wrong, "the index is not what the engines have", numbers)
    return numbers


async def cached_tokens(client: httpx.AsyncClient, url: str, tokens: Sequence[int]) -> int:
    """Sends a prompt to an engine; returns the cached tokens that it reports."""
    body = {"model": MODEL, "prompt": tokens, "max_tokens": 1, "temperature": 0}
    usage = (await client.post(f"{url}/v1/completions", json=body)).raise_for_status().json()["usage"]
    return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


async def _tokenize(client: httpx.AsyncClient, url: str, messages: Sequence[dict[str, str]]) -> list[int]:
    answer = await client.post(f"{url}/tokenize", json={"model": MODEL, "messages": messages})
    tokens: list[int] = answer.raise_for_status().json()["tokens"]
    return tokens

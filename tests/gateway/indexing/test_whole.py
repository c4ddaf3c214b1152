"""The index end to end: real engines' events over ZeroMQ, a real gateway with its helper and workers, real requests."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fairlead.fleetfile import write_atomic
from fairlead.testing.raw_http import post, send
from fairlead.testing.sim_engine import EngineProcess, engine_process
from fairlead.testing.waiting import until_async
from fairlead_gateway.testing import fleet_of, run
from fairlead_gateway.testing_process import GatewayProcess, gateway_process
from fairlead_sim.tokenizer import Tokenizer

MODEL = "default/tiny"
BLOCKS = 256
TOKENIZER = Tokenizer()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@dataclass(slots=True)
class Ports:
    """Where one engine listens, in every life of it."""

    http: int
    events: int
    replay: int

    @classmethod
    def free(cls) -> "Ports":
        return cls(free_port(), free_port(), free_port())

    def engine(self, *more: str) -> Any:
        return engine_process(
            *("--listen", f"127.0.0.1:{self.http}", "--kv-events", f"tcp://127.0.0.1:{self.events}"),
            *("--kv-replay", f"tcp://127.0.0.1:{self.replay}", "--num-gpu-blocks-override", str(BLOCKS)),
            *("--max-model-len", "2048", "--speed", "20"),
            *("--enable-prompt-tokens-details", *more),
        )


class Stage:
    """Engines behind a gateway."""

    def __init__(self, path: Path, ports: list[Ports]) -> None:
        self.path = path
        self.ports = ports
        self.gateway: GatewayProcess
        self.engines: list[EngineProcess] = []

    async def ask(self, text: str) -> dict[str, Any]:
        """One request; what became of it: where it went, cached tokens expected and reported."""
        body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 2}
        answer = (await send(self.gateway.url, post(body)))[0]
        assert answer.status == 200, answer.body
        name = answer.fields["x-fairlead-decision"]
        told: dict[str, Any] = await self.gateway.told(f"/api/decisions/{name}")
        return told

    async def cached(self, text: str) -> tuple[int, int, int]:
        """Of one request: prompt tokens, those expected to be cached, those that were."""
        outcome = (await self.ask(text))["outcome"]
        return outcome["prompt_tokens"], outcome["predicted_cached_tokens"], outcome["cached_tokens"]

    async def index(self, instance: str = "e-0/0/0") -> dict[str, Any]:
        """What is shown of one instance's index."""
        models = (await self.gateway.told("/api/fleet"))["models"]
        found: dict[str, Any] = next(one for one in models[0]["instances"] if one["id"] == instance)["index"]
        return found

    async def until_state(self, state: str, instance: str = "e-0/0/0") -> None:
        async def reached() -> bool:
            return bool((await self.index(instance))["state"] == state)

        await until_async(reached)

    async def until_linked(self, least: int) -> None:
        """So many blocks of prompts are linked."""

        async def reached() -> bool:
            return await self.gateway.metric("fairlead_gateway_index_links") >= least

        await until_async(reached)


@asynccontextmanager
async def stage(tmp_path: Path, count: int = 1, *options: str) -> AsyncIterator[Stage]:
    """``count`` engines with room for ``BLOCKS`` blocks of 16 tokens each."""
    ports = [Ports.free() for _ in range(count)]
    found = Stage(tmp_path / "fleet.yaml", ports)
    fleet = fleet_of([f"http://127.0.0.1:{one.http}" for one in ports])
    instances = tuple(
        replace(
            instance,
            kv_events=f"tcp://127.0.0.1:{one.events}",
            kv_replay=f"tcp://127.0.0.1:{one.replay}",
        )
        for instance, one in zip(fleet.instances[MODEL], ports, strict=True)
    )
    write_atomic(found.path, replace(fleet, instances={MODEL: instances}))
    async with AsyncExitStack() as stack:
        found.engines = list(await asyncio.gather(*[stack.enter_async_context(one.engine()) for one in ports]))
        found.gateway = await stack.enter_async_context(gateway_process(found.path, *options))
        yield found


def text_of(name: str, tokens: int = 1_000) -> str:
    return TOKENIZER.text_of(tokens, name)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_an_engine_evicted_is_not_expected_there(tmp_path: Path, workers: str) -> None:
    async def main() -> None:
        async with stage(tmp_path, 1, "--workers", workers) as place:
            await place.ask(text_of("first"))
            await place.until_state("index")
            await place.until_linked(10)
            size, expected, cached = await place.cached(text_of("first"))
            assert cached > 0.9 * size
            assert abs(expected - cached) < 0.1 * size

            async def gone() -> bool:
                for name in ("second", "third", "fourth", "fifth"):  # 4,000 tokens in a cache of 4,096
                    await place.ask(text_of(name))
                size, expected, cached = await place.cached(text_of("first"))
                assert cached < 0.3 * size
                return expected < 0.3 * size  # at the latest when its events were read, and workers told

            await until_async(gone)
            await place.ask(text_of("fifth"))
            size, expected, cached = await place.cached(text_of("fifth"))
            assert cached > 0.9 * size
            assert expected > 0.8 * size

    run(main())

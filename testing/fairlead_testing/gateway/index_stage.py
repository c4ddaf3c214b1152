"""Simulated engines with KV events behind a real gateway, for end-to-end tests of the index."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from fairlead.adapters.model import LoraAdapter
from fairlead.fleet.file import write_fleet_file
from fairlead.fleet.model import Fleet, Model
from fairlead_testing.engines.disaggregated import EngineProcess, engine_process
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.gateway.running_gateway import fleet_of
from fairlead_testing.http.raw_client import post_request, send
from fairlead_testing.processes import unused_ports
from fairlead_testing.waiting import wait_until

MODEL_KEY: Final = "default/tiny"
ENGINE_BLOCKS: Final = 256
"""Blocks of 16 tokens that one engine has room for."""


@dataclass(slots=True)
class EnginePorts:
    """The ports of one engine, the same after each restart."""

    http: int
    events: int
    replay: int

    @classmethod
    def free(cls) -> "EnginePorts":
        return cls(*unused_ports(3))

    def run_engine(self, *more: str) -> Any:
        """Runs an engine on these ports until the block ends."""
        return engine_process(
            *("--listen", f"127.0.0.1:{self.http}", "--kv-events", f"tcp://127.0.0.1:{self.events}"),
            *("--kv-replay", f"tcp://127.0.0.1:{self.replay}", "--num-gpu-blocks-override", str(ENGINE_BLOCKS)),
            *("--max-model-len", "2048", "--speed", "20"),
            *("--enable-prompt-tokens-details", *more),
        )


class IndexStage:
    """Engines behind a gateway."""

    def __init__(
        self,
        path: Path,
        ports: list[EnginePorts],
        adapters: tuple[str, ...] = (),
        loaded: tuple[LoraAdapter, ...] = (),
    ) -> None:
        self.path = path
        self.ports = ports
        self.adapters = adapters
        self.loaded = loaded
        self.gateway: GatewayProcess
        self.engines: list[EngineProcess] = []

    def fleet(self, **wrong: str) -> Fleet:
        """Returns a fleet with one instance per engine."""
        fleet = fleet_of([f"http://127.0.0.1:{port.http}" for port in self.ports], version=2 if wrong else 1)
        told = [
            {"kv_events": f"tcp://127.0.0.1:{port.events}", "kv_replay": f"tcp://127.0.0.1:{port.replay}"} | wrong
            for port in self.ports
        ]
        given = zip(fleet.instances[MODEL_KEY], told, strict=True)
        instances = tuple(replace(one, **more) for one, more in given)  # type: ignore[arg-type]
        models = {
            MODEL_KEY: replace(fleet.models[MODEL_KEY], adapters=self.loaded),
            **{f"default/{name}": Model("default", name) for name in self.adapters},
        }
        of_adapters = {
            f"default/{name}": tuple(
                replace(instance, id=f"{name}-{instance.id}", model=name) for instance in instances
            )
            for name in self.adapters
        }
        return replace(fleet, models=models, instances={MODEL_KEY: instances, **of_adapters})

    async def chat(self, text: str, **fields: Any) -> dict[str, Any]:
        """Sends a chat; returns its decision with the expected and the reported cached tokens."""
        body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 2} | fields
        return await self._request("/v1/chat/completions", body)

    async def complete(self, text: str) -> dict[str, Any]:
        return await self._request("/v1/completions", {"model": "tiny", "prompt": text, "max_tokens": 2})

    async def _request(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = (await send(self.gateway.url, post_request(body, path=path)))[0]
        assert answer.status == 200, answer.body
        name = answer.fields["x-fairlead-decision"]
        told: dict[str, Any] = await self.gateway.get_json(f"/api/decisions/{name}")
        return told

    async def cached(self, text: str, **fields: Any) -> tuple[int, int, int]:
        """Returns a request's prompt tokens, expected cached tokens and reported ones."""
        outcome = (await self.chat(text, **fields))["outcome"]
        return outcome["prompt_tokens"], outcome["predicted_cached_tokens"], outcome["cached_tokens"]

    async def index(self, instance: str = "e-0/0/0") -> dict[str, Any]:
        """Returns the shown state of an instance's index; its state is None where there is none."""
        models = (await self.gateway.get_json("/api/fleet"))["models"]
        instances = [instance for model in models for instance in model["instances"]]
        shown: dict[str, Any] | None = next(one for one in instances if one["id"] == instance)["index"]
        return {"state": None} if shown is None else shown

    async def wait_for_state(self, state: str, instance: str = "e-0/0/0") -> None:
        """Waits until the shown state of an instance's index is this one."""

        async def reached() -> bool:
            return bool((await self.index(instance))["state"] == state)

        await wait_until(reached)

    def has_unique(self, least: int, instance: str = "e-0/0/0") -> Callable[[], Awaitable[bool]]:
        """Returns whether the instance is shown with so many blocks that no other instance has,
        some of them recently used.
        """

        async def reached() -> bool:
            found = (await self.index(instance))["scale_down"]
            lost = 0 if found is None else found["unique_blocks"]
            return bool(lost >= least and 0 < found["unique_used_blocks"] <= lost)

        return reached

    async def wait_for_links(self, least: int) -> None:
        """Waits until so many blocks of prompts are mapped."""

        async def reached() -> bool:
            return await self.gateway.metric("fairlead_gateway_index_links") >= least

        await wait_until(reached)


def without_events(fleet: Fleet) -> Fleet:
    """Returns the fleet of which no instance says where its KV events are."""
    instances = {
        key: tuple(replace(instance, kv_events=None, kv_replay=None) for instance in group)
        for key, group in fleet.instances.items()
    }
    return replace(fleet, instances=instances)


@asynccontextmanager
async def index_stage(
    tmp_path: Path,
    count: int = 1,
    *options: str,
    engine: tuple[str, ...] = (),
    adapters: tuple[str, ...] = (),
    loaded: tuple[str, ...] = (),
    states_events: bool = True,
) -> AsyncIterator[IndexStage]:
    """Runs ``count`` engines with ``BLOCKS`` blocks of 16 tokens each, and a gateway.

    Each adapter is a model of its own, but for those that the gateway loads. The fleet file says
    where events are, if ``states_events``.
    """
    ports = [EnginePorts.free() for _ in range(count)]
    engine = (*engine, *(part for name in adapters for part in ("--lora", f"{name}=/adapters/{name}")))
    if loaded:
        engine = (*engine, "--runtime-lora")
    on_demand = tuple(LoraAdapter(name, f"/adapters/{name}") for name in loaded)
    found = IndexStage(tmp_path / "fleet.yaml", ports, adapters, on_demand)
    stated = found.fleet()
    write_fleet_file(found.path, stated if states_events else without_events(stated))
    async with AsyncExitStack() as stack:
        found.engines = list(
            await asyncio.gather(*[stack.enter_async_context(port.run_engine(*engine)) for port in ports])
        )
        found.gateway = await stack.enter_async_context(gateway_process(found.path, *options))
        yield found

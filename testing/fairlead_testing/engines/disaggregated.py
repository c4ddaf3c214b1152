"""Processes of the simulated engine, alone and as a model with disaggregated prefill and decode."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fairlead.fleet.model import Fleet, Instance, InstanceState, Model, Role
from fairlead_testing.processes import ready_process

MODEL_KEY = "default/tiny"

PREFILL = {"do_remote_decode": True, "do_remote_prefill": False}

_STARTS = 5


@dataclass(slots=True)
class EngineProcess:
    """A ready engine process, which tests can kill, stop and continue."""

    process: asyncio.subprocess.Process
    url: str

    @property
    def authority(self) -> str:
        return self.url.removeprefix("http://")

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    async def kill(self) -> None:
        self.send(signal.SIGKILL)
        await self.process.wait()


@dataclass(slots=True)
class DisaggregatedModel:
    """The engines by role."""

    prefill: Sequence[EngineProcess]
    decode: Sequence[EngineProcess]
    transfer: str = "nixl"
    serve: Sequence[EngineProcess] = field(default_factory=list)

    def fleet(self) -> Fleet:
        """Returns a fleet of one model; ids are `prefill-0`, `decode-0`, `serve-0` and so on."""
        groups = ((Role.PREFILL, self.prefill), (Role.DECODE, self.decode), (Role.SERVE, self.serve))
        found = tuple(
            Instance(
                f"{role.value.lower()}-{number}",
                "default",
                "tiny",
                role.value.lower(),
                one.url,
                role=role,
                state=InstanceState.READY,
                transfer=None if role is Role.SERVE else self.transfer,
                bootstrap=one.url if role is Role.PREFILL and self.transfer != "nixl" else None,
            )
            for role, group in groups
            for number, one in enumerate(group)
        )
        return Fleet(1, 1, {MODEL_KEY: Model("default", "tiny")}, {MODEL_KEY: found})


def make_prompt(tokens: int, first: str = "aaa") -> str:
    """Returns a prompt of this many simulated tokens. Another `first` word gives another prompt."""
    letters = "bcdfghjklm"
    words = [
        first,
        *(f"{letters[at % 10]}{letters[at // 10 % 10]}{letters[at // 100 % 10]}" for at in range(tokens - 1)),
    ]
    return "".join(f" {word}" for word in words)


def prefill_body(prompt: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": 1, "min_tokens": 1, "stream": False, "kv_transfer_params": PREFILL} | more


def decode_body(prompt: str, params: Any, tokens: int = 8, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": tokens, "kv_transfer_params": params} | more


@asynccontextmanager
async def engine_process(*arguments: str, model: str = "tiny") -> AsyncIterator[EngineProcess]:
    """Runs `python -m fairlead_sim engine` on a free port, and kills it at the end of the block.

    An engine that ends before it is ready is started again, up to four times; a timeout raises.
    Why: a port of `arguments` may be taken by a connection of another process for a while.
    """
    options = ("--listen", "127.0.0.1:0", "--model", model, "--served-model-name", model, *arguments)
    async with AsyncExitStack() as stack:
        for left in reversed(range(_STARTS)):
            try:
                started = ready_process("fairlead_sim", "engine", *options, ready=r"ready (http://\S+)")
                process, found = await stack.enter_async_context(started)
                break
            except AssertionError:
                if not left:
                    raise
        yield EngineProcess(process, found[1])


@asynccontextmanager
async def engine_processes(count: int, *arguments: str) -> AsyncIterator[list[EngineProcess]]:
    async with AsyncExitStack() as stack:
        yield await asyncio.gather(*[stack.enter_async_context(engine_process(*arguments)) for _ in range(count)])

"""The command line: as a program, and in this process without the time of its start.

An indexer with two engines and a real Redis, for tests of the index commands.
"""

import asyncio
import io
import os
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from typing import Any, Final
from unittest.mock import patch

import zmq

from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead_cli.__main__ import main
from fairlead_cli.index.connection import IndexSource
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.index.format import InstanceStatus, secret_fingerprint
from fairlead_kvstore.index.writer import IndexWriter
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.kvstore.index_harness import InMemoryIndexer
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine
from fairlead_testing.kvstore.zmq_engine import ZmqEngine

MODEL: Final = "default/tiny"
LIMITS: Final = replace(Limits(), index_lease_seconds=60.0)


def run_program(*words: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Returns the exit code and output of ``fairlead WORDS`` as a process.

    environment: variables in addition to those of this process.
    """
    command = [sys.executable, "-m", "fairlead_cli", *words]
    environ = os.environ | environment
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, env=environ)


def run_command_line(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Returns the exit code and output of ``fairlead WORDS``.

    It is for verbs that start neither a process nor an event loop. Each verb also needs a test that
    starts the program.
    """
    out, error, given = (io.TextIOWrapper(io.BytesIO(text), "utf-8") for text in (b"", b"", stdin.encode()))
    code = 0
    with (
        patch.object(sys, "argv", ["fairlead", *words]),
        patch.dict(os.environ, FAIRLEAD_COMPILED="0"),  # a verb would restart this process from a compiled copy
        patch.object(sys, "stdin", given),
        redirect_stdout(out),
        redirect_stderr(error),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Cyclopts application invoked without tokens")
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    texts = []
    for stream in (out, error):
        stream.seek(0)
        texts.append(stream.read())
    return subprocess.CompletedProcess(["fairlead", *words], code, *texts)


class IndexScene:
    """Two engines ``a`` and ``b``, and an indexer that writes their blocks."""

    def __init__(self, url: str) -> None:
        self.url = url
        clock = SystemClock()
        self.engines = {name: PrefixCacheEngine(capacity=400, seed=number) for number, name in enumerate(("a", "b"))}
        self.wires: dict[str, ZmqEngine] = {}
        self.indexer = InMemoryIndexer(MODEL, self.engines, clock, LIMITS)
        self.link = RedisLink(url, clock, limits=LIMITS)
        self.writer = IndexWriter(
            self.link,
            self.indexer,
            clock,
            holder="indexer-1",
            instance_statuses=self.statuses,
            fingerprint=secret_fingerprint(b""),
            limits=LIMITS,
        )
        self.writer.set_models([MODEL])
        self.indexer.sink = self.writer

    def statuses(self, model_key: str) -> dict[str, InstanceStatus]:
        return {name: self._status(name) for name in self.indexer.sequencers}

    def _status(self, name: str) -> InstanceStatus:
        blocks, wire = self.indexer.store.instance(name), self.wires.get(name)
        return InstanceStatus(
            url=f"http://10.0.0.1:8000/{name}",
            block_size=blocks.block_size,
            replay=wire.replay if wire is not None else None,
            connected=True,
            orphans=blocks.orphan_count,
            following=self.indexer.sequencers[name].next_number,
        )

    async def write(self) -> None:
        """Reads all engines and writes all changes."""
        self.indexer.read()
        await self._step()
        await self._step()

    async def prompt(self, name: str, *prompts: list[int], adapter: str | None = None, salt: str | None = None) -> None:
        """Serves prompts and writes the changes."""
        for prompt_tokens in prompts:
            self.engines[name].serve_prompt(prompt_tokens, adapter, salt)
        await self.write()

    async def write_changes(self, *changes: Change) -> None:
        self.writer.offer(MODEL, changes)
        await self._step()

    async def _step(self) -> None:
        self.writer._models[MODEL].statuses_at = 0.0  # they are due only once a second
        await self.writer.step()

    async def run_command(self, verb: Callable[..., int], **more: Any) -> int:
        return await asyncio.to_thread(verb, source=IndexSource(self.url), **more)


@asynccontextmanager
async def index_scene(url: str, *, wired: bool = False) -> AsyncIterator[IndexScene]:
    """Yields a scene; ``wired``: its engines answer replays on sockets."""
    scene = IndexScene(url)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    scene.link.start()
    try:
        await scene.link.wait_connected()
        for name, engine in scene.engines.items() if wired else ():
            scene.wires[name] = ZmqEngine(engine, context)
        await scene.write()
        yield scene
    finally:
        for wire in scene.wires.values():
            wire.close()
        await scene.link.stop()
        await asyncio.to_thread(context.destroy, 0)

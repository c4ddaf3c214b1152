"""An indexer before engines on real sockets, for tests: what it believes can be held against what the engines hold."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import zmq

from fairlead.clock import ManualClock
from fairlead.errors import Unavailable
from fairlead.fleet import Fleet, Instance, Model
from fairlead.limits import Limits
from fairlead.testing.waiting import until
from fairlead_kvstore.events.outcomes import Frame
from fairlead_kvstore.index.sink import LocalSink
from fairlead_kvstore.indexer import Indexer
from fairlead_kvstore.member import Seen
from fairlead_kvstore.testing import Engine
from fairlead_kvstore.testing_wire import ManualLoop, WireEngine
from fairlead_kvstore.truth.identity import own_hashes, root
from fairlead_kvstore.truth.tiers import Tier
from fairlead_kvstore.truth.truth import Truth

MODEL = "default/tiny"


class Stage:
    """``engines`` by instance; ``answers`` to HTTP by (instance, path), each is asked for in ``asked``."""

    def __init__(self, limits: Limits, listen: Sequence[str]) -> None:
        self.clock = ManualClock()
        self.loop = ManualLoop(self.clock)
        self.engines: dict[str, WireEngine] = {}
        self.answers: dict[tuple[str, str], bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.instances: dict[str, Instance] = {}
        self.sink = LocalSink()
        self.truth = Truth()
        self.indexer = Indexer(
            self.truth,
            self.sink,
            self.clock,
            ask=self._ask,
            loop=self.loop,
            chance=lambda: 1.0,
            listen=listen,
            limits=limits,
        )
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def engine(
        self,
        name: str,
        engine: Engine | None = None,
        *,
        replays: bool = True,
        dial: str | None = None,
        topic: str = "kv",
    ) -> WireEngine:
        """Start an engine; one that has this name already is over, and the new one takes its ports."""
        before = self.engines.pop(name, None)
        ports = before.ports if before is not None else (0, 0)
        if before is not None:
            before.close()
        made = WireEngine(
            engine or Engine(capacity=400), self.context, ports=ports, replays=replays, dial=dial, topic=topic.encode()
        )
        self.engines[name] = made
        return made

    def reads(self, name: str, **more: object) -> None:
        """The fleet has this instance, at its engine's endpoints."""
        there = self.engines.get(name)
        one = Instance(id=name, namespace="default", model="tiny", pool="main", url=f"http://127.0.0.1:1/{name}")
        if there is not None and there.events:
            one = replace(one, kv_events=there.events, kv_replay=there.replay)
        self.instances[name] = replace(one, **more)  # type: ignore[arg-type]  # fields of an instance
        self.fleet()

    def fleet(self) -> None:
        """Hand the indexer the fleet as it is."""
        instances = tuple(self.instances[name] for name in sorted(self.instances))
        self.indexer.fleet(Fleet(1, 1, {MODEL: Model("default", "tiny")}, {MODEL: instances}))

    def seen(self, name: str) -> Seen:
        """What the indexer says of an instance."""
        return next(one for one in self.indexer.seen() if one.instance == name)

    def believed(self, name: str, tokens: Sequence[int]) -> int:
        """Blocks of a prompt that the index credits the instance with; truth and mirror agree."""
        size = self.engines[name].engine.block_size if name in self.engines else 4
        chain = own_hashes(root(MODEL), list(tokens), size)
        held = self.truth.held(name, chain)[Tier.GPU]
        mirrored = {one.instance: one.blocks[0] for one in self.sink.mirror(MODEL).match(chain)}
        assert mirrored.get(name, 0) == held
        return held

    def right(self, name: str) -> bool:
        """Whether the index holds just as many blocks as the engine, and all of them."""
        engine = self.engines[name].engine
        return self.seen(name).state.complete and self.seen(name).state.blocks == engine.held

    async def complete(self, *names: str) -> None:
        """Wait until these are connected, and nothing of them is missing."""
        await until(lambda: all(self.seen(name).connected and self.right(name) for name in names))

    async def connected(self, *names: str) -> None:
        """Wait until the engines know of us, too."""
        await until(lambda: all(self.seen(name).connected for name in names))
        await until(lambda: all(self.engines[name].listeners > 0 for name in names if self.engines[name].events))

    async def _ask(self, instance: Instance, path: str) -> bytes:
        self.asked.append((instance.id, path))
        try:
            return self.answers[instance.id, path]
        except KeyError:
            raise Unavailable(f"{path} answers 404") from None


@asynccontextmanager
async def staged(limits: Limits | None = None, listen: Sequence[str] = ()) -> AsyncIterator[Stage]:
    """A stage, taken down at the end."""
    stage = Stage(limits or Limits(), listen)
    try:
        yield stage
    finally:
        await stage.indexer.close()
        for engine in stage.engines.values():
            engine.close()
        await asyncio.to_thread(stage.context.destroy, 0)


def frames(engine: Engine, *prompts: Sequence[int]) -> list[Frame]:
    """What these prompts make the engine publish."""
    found = []
    for prompt in prompts:
        engine.prompt(prompt)
        frame = engine.publish()
        assert frame is not None
        found.append(frame)
    return found

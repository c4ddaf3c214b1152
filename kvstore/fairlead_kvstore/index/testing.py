"""An indexer without sockets, for tests and measurements: engines hand it their frames directly."""

from collections.abc import Iterable, Sequence

from fairlead.clock import Clock
from fairlead.limits import Limits
from fairlead_kvstore.errors import KeptError
from fairlead_kvstore.events.sequence import Outcome, Stream
from fairlead_kvstore.follow import follow
from fairlead_kvstore.index.left import KeptInstance, Left
from fairlead_kvstore.index.sink import Sink
from fairlead_kvstore.testing import Engine
from fairlead_kvstore.truth.changes import Change
from fairlead_kvstore.truth.truth import Truth


class TinyIndexer:
    """One model's engines, by instance. While it leads it reads them, and its changes go to ``sink``, which is set afterwards."""

    def __init__(self, model_key: str, engines: dict[str, Engine], clock: Clock, limits: Limits) -> None:
        self.model_key = model_key
        self.engines = engines
        self.truth = Truth(limits=limits)
        self.streams: dict[str, Stream] = {}
        self.left: Left | None = None
        self.sink: Sink | None = None
        self.begun = 0
        self.ended = 0
        self._clock = clock
        self._limits = limits
        self._read: dict[str, int] = {}

    # --- what the writer asks -------------------------------------------------------------------------------------------

    def begin(self, model_key: str, found: Left) -> None:
        """Attach all engines, go on from what was left, and read."""
        self.begun += 1
        self.left = found
        for instance in self.engines:
            self.attach(instance, found.instances.get(instance))
        if self.engines:
            self.truth.hinted(model_key, found.hints)

    def end(self, model_key: str) -> None:
        """Forget everything."""
        self.ended += 1
        self.truth, self.streams = Truth(limits=self._limits), {}

    def instances(self, model_key: str) -> Sequence[str]:
        """All that are attached."""
        return list(self.streams)

    def keep(self, instance: str) -> KeptInstance:
        """As of now."""
        kept, rows = self.truth.keep(instance, self._ahead())
        return KeptInstance(kept, rows, self.streams[instance].position)

    def hints(self, model_key: str) -> Iterable[tuple[int, float]]:
        """As of now."""
        return self.truth.hints(model_key)

    # --- what tests do --------------------------------------------------------------------------------------------------

    def attach(self, instance: str, kept: KeptInstance | None = None) -> None:
        """Read this engine from now on."""
        now = self._clock.now()
        self.tell(self.truth.attach(instance, self.model_key, now))
        position = None
        if kept is not None and kept.position is not None:
            try:
                self.tell(self.truth.restore(instance, kept.slice, kept.rows, self._ahead(), now))
                position = kept.position
            except KeptError:
                position = None
        stream = self.streams[instance] = Stream(replayable=True, limits=self._limits, position=position)
        self._read[instance] = self.engines[instance].number
        self.handle(instance, stream.connected())

    def detach(self, instance: str) -> None:
        """It is gone."""
        del self.streams[instance]
        self.tell(self.truth.detach(instance, "gone"))

    def reconnect(self, instance: str) -> None:
        """The connection broke and stands again; what was published and not read is lost with it."""
        if instance in self.streams:
            self._read[instance] = self.engines[instance].number
            self.handle(instance, self.streams[instance].disconnected())
            self.handle(instance, self.streams[instance].connected())

    def read(self) -> None:
        """Everything that the engines have published and that was not read yet."""
        for instance, stream in list(self.streams.items()):
            engine = self.engines[instance]
            engine.publish()
            for frame in engine.replay(self._read[instance]):
                self.handle(instance, stream.live(frame))
            self._read[instance] = engine.number

    def handle(self, instance: str, outcomes: Iterable[Outcome]) -> None:
        """Follow, and answer what is asked."""
        found = follow(self.truth, instance, outcomes, self._clock.now(), self._limits)
        self.tell(found.changes)
        if found.ask is not None:
            for frame in [*self.engines[instance].replay(found.ask), None]:
                self.handle(instance, self.streams[instance].replayed(frame))

    def tell(self, changes: list[Change]) -> None:
        """Offer changes."""
        if self.sink is not None:
            self.sink.offer(self.model_key, changes)

    def _ahead(self) -> float:
        return self._clock.wall() - self._clock.now()

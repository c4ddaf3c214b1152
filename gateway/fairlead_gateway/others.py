"""The other gateways, as the helper knows them: what our workers do is told to them, what they do is told to our workers.

Three things go both ways (``fairlead_kvstore.exchange``): what was just sent where, which the workers' mirrors take as they take
that of their siblings; what is in flight, which lies in a row of the memory that workers read for a decision; and the table of hot
prefixes. Nothing of a request waits for any of it: workers read memory and messages, and only the helper talks to Redis.
"""

import secrets
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from fairlead.clock import Clock
from fairlead.fleet import Fleet, Instance, InstanceState
from fairlead.limits import Limits
from fairlead_gateway import channel_messages as say
from fairlead_gateway.hinting import Hinting
from fairlead_gateway.hot_counts import HotCounts, HotShare
from fairlead_gateway.routing.prefix import PrefixChain, block_ends
from fairlead_gateway.telemetry import Load
from fairlead_kvstore.exchange.exchange import Exchange, Hooks
from fairlead_kvstore.exchange.hot import HotTables
from fairlead_kvstore.exchange.peers import Groups
from fairlead_kvstore.exchange.records import HotTable, Sent, secret_print
from fairlead_kvstore.exchange.records import Load as Shared
from fairlead_kvstore.index.hints import Hint
from fairlead_kvstore.redis import RedisLink

_sent = msgspec.msgpack.Decoder(list[say.Sent])
_encode = msgspec.msgpack.Encoder().encode


class Workers(Protocol):
    """Who is told what others do; the crew."""

    def hear(self, sent: bytes) -> None:
        """A list of ``channel_messages.Sent``, encoded; what does not fit is dropped."""
        ...

    def show(self, loads: Mapping[str, Shared]) -> None:
        """All that other gateways have in flight, by instance."""
        ...

    def hot(self, table: say.Hot) -> None:
        """A table of hot prefixes that takes the place of the model's last."""
        ...


class Others:
    """``loads`` says what this gateway has in flight by instance; ``link`` is somebody else's to start and to stop."""

    def __init__(
        self,
        link: RedisLink,
        workers: Workers,
        *,
        fleet: Callable[[], Fleet],
        loads: Callable[[], Mapping[str, Load]],
        gateway_id: str,
        secret: bytes,
        clock: Clock,
        limits: Limits,
    ) -> None:
        self._workers = workers
        self._fleet = fleet
        self._loads = loads
        self._clock = clock
        self.elsewhere: Callable[[str, str, int, Sequence[int]], None] | None = None
        """Hears of each prompt that another gateway sent: model, instance, the hashes of its end and of its blocks."""
        self.hints: Callable[[str], Sequence[Hint]] = lambda _: ()
        """Which of a model's hot prefixes want another home."""
        self._applied: Fleet | None = None
        self._model_of: dict[str, str] = {}
        self._ready: dict[str, Groups] = {}
        self._counts = HotCounts(limits)
        name = f"{gateway_id}/{secrets.token_hex(4)}"  # another run of the same gateway is another one
        hooks = Hooks(self._models, self._own_loads, self._heard, workers.show)
        self.exchange = Exchange(link, name, clock, hooks, secret=secret_print(secret), limits=limits)
        self.tables = HotTables(
            link,
            name,
            clock,
            active=self._active,
            mine=self._table,
            adopt=self._counts.adopt,
            told=self._hot,
            limits=limits,
        )

        self._hinting = Hinting(
            link,
            clock,
            models=lambda: [key for key in self._active() if (term := self.tables.term(key)) is not None and term.ours],
            hints=lambda key: self.hints(key),
            limits=limits,
        )

    def start(self) -> None:
        """Begin on the running loop."""
        self.exchange.start()
        self.tables.start()
        self._hinting.start()

    async def stop(self) -> None:
        """Take leave of the others."""
        await self._hinting.stop()
        await self.tables.stop()
        await self.exchange.stop()

    # What our workers do -------------------------------------------------------------------------------------------------

    def told(self, message: say.Told) -> None:
        """One worker has told what it did."""
        if message.sent is not None:
            now = self._clock.now()
            self._apply()
            for item in _sent.decode(message.sent):
                hashes = array("Q", item.hashes)
                chain = PrefixChain(tuple(hashes), block_ends(len(hashes)), item.tail)
                self._counts.sent(item.model, item.instance, chain, now)
                self.exchange.sent(item.model, item.instance, item.hashes, item.tail, item.pin)
        if message.loads is not None:
            self.exchange.loads_changed()

    def _models(self) -> Mapping[str, Groups]:
        self._apply()
        return self._ready

    def _own_loads(self) -> dict[str, dict[str, Shared]]:
        self._apply()
        found: dict[str, dict[str, Shared]] = {}
        for instance, load in self._loads().items():
            model = self._model_of.get(instance)
            if model is not None and load.inflight > 0:
                seconds, tokens = max(0.0, load.backlog_seconds), max(0.0, load.inflight_tokens)
                found.setdefault(model, {})[instance] = (load.inflight, max(0, load.waiting), seconds, tokens)
        return found

    def _apply(self) -> None:
        fleet = self._fleet()
        if fleet is self._applied:
            return
        self._applied = fleet
        self._model_of = {one.id: key for key, instances in fleet.instances.items() for one in instances}
        self._ready = {key: _by_role(fleet.instances.get(key, ())) for key in fleet.models}
        self._counts.apply(fleet)
        self.tables.keep_only(fleet.models)

    # What the others do --------------------------------------------------------------------------------------------------

    def _heard(self, model: str, items: Sequence[Sent]) -> None:
        now = self._clock.now()
        self._apply()
        for instance, packed, tail, _ in items:
            hashes = array("Q", packed)
            self._counts.sent(model, instance, PrefixChain(tuple(hashes), block_ends(len(hashes)), tail), now)
            if self.elsewhere is not None:
                self.elsewhere(model, instance, tail, hashes)
        self._workers.hear(_encode([say.Sent(model, *item) for item in items]))

    # Hot prefixes --------------------------------------------------------------------------------------------------------

    def _active(self) -> list[str]:
        return self._counts.active(self._clock.now())

    def _table(self, model: str) -> HotTable | None:
        """None while the past is still being read back: then another's count is better."""
        return self._counts.table(model) if self.exchange.live(model) else None

    def _hot(self, model: str, epoch: int, table: HotTable | None) -> None:
        found = table or HotTable()
        self._workers.hot(say.Hot(model, epoch, found.serving, found.prefilling))

    def shared(self, model: str) -> list[HotShare]:
        """The model's hot prefixes, and how much they are used."""
        return self._counts.shared(model, self._clock.now())

    # For people ----------------------------------------------------------------------------------------------------------

    def notes(self) -> list[str]:
        """What is missing or late, in words."""
        return [*self.exchange.notes(), *self.tables.notes()]

    def heard(self) -> list[tuple[str, float]]:
        """The gateways that are heard, and the seconds since."""
        return [(one.name.rpartition("/")[0], one.age_seconds) for one in self.exchange.present()]

    def own(self) -> dict[str, float]:
        """Counters and gauges for the metrics page."""
        exchange = self.exchange
        heard = exchange.present()
        found: dict[str, float] = {
            "peers": len(heard),
            "peer_in_flight": sum(load[0] for load in exchange.peers.loads().values()),
            "peer_sent_total": exchange.counts.told,
            "peer_heard_total": exchange.counts.heard,
            "peer_dropped_total": exchange.out.dropped,
            "peer_missed_total": exchange.peers.missed,
            "peer_poisoned_total": exchange.counts.poisoned + self.tables.poisoned,
            "hot_tables_kept": self.tables.kept,
        }
        if heard:
            found["peer_age_seconds"] = round(max(one.age_seconds for one in heard), 3)
        age = self.tables.stale_seconds()
        if age is not None:
            found["hot_table_stale_seconds"] = round(age, 3)
        return found


def _by_role(instances: Sequence[Instance]) -> Groups:
    """Those that are ready; of one role, since no other takes their place."""
    groups: dict[str, list[str]] = {}
    for one in instances:
        if one.state is InstanceState.READY:
            groups.setdefault(one.role, []).append(one.id)
    return list(groups.values())

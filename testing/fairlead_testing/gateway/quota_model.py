"""A simulated fleet of gateways that share limits, with every fault of a real one.

Time is simulated. Requests take from slices as in a worker. So the truth is known: it is the sum of
what all slices ever spent, also those of gateways that have died.
"""

import copy
import random
from dataclasses import dataclass, field

from fairlead.tenants.model import Limit
from fairlead_gateway.limits.exchange import CLOSED, EXHAUSTED, Exchange, ExchangeReply, GrantUpdate, Row
from fairlead_gateway.limits.exchange import Need as HolderNeed
from fairlead_gateway.limits.ledger import LeaseTimes, TenantLedger
from fairlead_gateway.limits.store import QuotaStore
from fairlead_gateway.limits.worker.limit_plan import LeasedLimit, Slice

TENANT = "acme"
TIMES = LeaseTimes(lease_ms=5_000, fold_ms=30_000)


class ModelServer:
    """The store's server: it can lose its state, restart, and go back to an old copy."""

    def __init__(self, start_ms: int) -> None:
        self.offset_ms = 0
        self.runs = 0
        self.start_ms = start_ms
        self.store = QuotaStore("run0")
        self.snapshots: list[QuotaStore] = []

    def now(self, time: float) -> int:
        """Returns the server's clock at a simulated time in seconds."""
        return self.start_ms + self.offset_ms + int(time * 1000)

    def snapshot(self) -> None:
        self.snapshots = [*self.snapshots[-3:], copy.deepcopy(self.store)]

    def restart(self, draw: random.Random, *, from_snapshot: bool) -> None:
        """Starts again under another run id, without state or with an old one."""
        self.runs += 1
        store = copy.deepcopy(draw.choice(self.snapshots)) if from_snapshot and self.snapshots else QuotaStore("")
        store.run = f"run{self.runs}"
        self.store = store
        self.offset_ms += draw.choice([0, 0, -1_500, 2_500])

    def flush(self) -> None:
        self.store.tenants.clear()


@dataclass
class ModelRequest:
    """A request in flight."""

    slice: Slice
    taken: int
    actual: int
    ends_at: float


@dataclass
class ModelWorker:
    """A worker with one leased limit."""

    name: str
    limit: LeasedLimit
    inflight: list[ModelRequest] = field(default_factory=list)
    is_alive: bool = True
    slices: list[Slice] = field(default_factory=list)
    refused: int = 0
    waiting: int = 0

    def admit(self, taken: int, actual: int, now: float, seconds: float) -> bool:
        """Starts a request if the slice has room."""
        if not self.limit.has(taken, now):
            return False
        slice_ = self.limit.take(taken, now)
        if all(slice_ is not known for known in self.slices):
            self.slices.append(slice_)
        self.inflight.append(ModelRequest(slice_, taken, actual, now + seconds))
        return True

    def advance(self, now: float) -> None:
        """Ends the requests whose time has come."""
        for request in [request for request in self.inflight if request.ends_at <= now]:
            self.inflight.remove(request)
            self.limit.settle(request.slice, request.taken, request.actual)
        current = self.limit.current
        if current.spent and all(current is not known for known in self.slices):
            self.slices.append(current)


class ModelGateway:
    """A gateway with workers, a ledger and a checkpoint."""

    def __init__(self, name: str, terms: Limit, *, is_strict: bool, is_durable: bool, workers: int) -> None:
        self.name = name
        self.terms = terms
        self.is_durable = is_durable
        self.ledger = TenantLedger(TIMES, is_strict=is_strict, is_durable=is_durable)
        self.ledger.set_limits([terms], is_strict=is_strict)
        self.restarts = 0
        self.is_strict = is_strict
        self.workers = [self._worker(f"{name}/{number}") for number in range(workers)]
        self.is_alive = True
        self.last_periodic = -1.0
        self.cut_off_until = 0.0
        self.witness_until = 0.0

    def _worker(self, name: str) -> ModelWorker:
        return ModelWorker(name, LeasedLimit(self.terms))

    def replace_worker(self, number: int) -> ModelWorker:
        """Kills a worker, of which the supervisor knows what it has reported; returns it."""
        dead = self.workers[number]
        dead.is_alive = False
        self.ledger.end_holder(dead.name)
        self.restarts += 1
        self.workers[number] = self._worker(f"{self.name}/{number}-{self.restarts}")
        return dead

    def collect(self, now: float, *, is_due: bool) -> None:
        """Passes the workers' reports and needs to the ledger."""
        for worker in self.workers:
            worker.limit.give_back(now, waiting=worker.waiting)
            for slice_ in worker.limit.take_report(is_due=is_due):
                row = Row(
                    worker.name, slice_.start, slice_.granted, slice_.returned, slice_.spent, max(0, slice_.busy), 0
                )
                self.ledger.report(self.terms.id, row)
            if worker.waiting:
                least, wish = worker.limit.least_and_wish(worker.waiting, now)
                if least > 0:
                    self.ledger.need(self.terms.id, HolderNeed(worker.name, least, wish))

    def deliver(self, updates: list[tuple[str, GrantUpdate]], now: float) -> None:
        """Passes grants to the workers."""
        workers = {worker.name: worker for worker in self.workers}
        for holder, update in updates:
            worker = workers.get(holder)
            if worker is None:
                continue
            if update.is_folded:
                self.ledger.end_holder(worker.name)
                self.restarts += 1
                worker.name = f"{worker.name}+{self.restarts}"
                worker.limit.restart()
                continue
            worker.limit.on_grant(update.start, update.granted or 0, update.valid_until)
            worker.limit.on_status(update.status, update.available, update.used, update.ends_at, now)
            worker.limit.is_contended = update.is_contended
            if worker.waiting and update.status in (EXHAUSTED, CLOSED):
                worker.waiting = 0
                worker.refused += 1


@dataclass
class Message:
    """An exchange on its way."""

    gateway: ModelGateway
    sent: Exchange
    sent_at: float
    arrives_at: float


class ModelFleet:
    """Gateways, a server and checkpoints, driven by random events."""

    def __init__(self, seed: int, terms: Limit, *, is_strict: bool, is_durable: bool, offset_ms: int) -> None:
        self.draw = random.Random(seed)
        self.terms = terms
        self.is_strict = is_strict
        self.is_durable = is_durable
        self.time = 0.0
        self.server = ModelServer(1_800_000_000_000 + offset_ms)
        self.checkpoints: dict[str, list[tuple[str, Row]]] = {}
        self.holders: list[ModelWorker] = []
        self.gateways: list[ModelGateway] = []
        self.messages: list[Message] = []
        self.created = 0
        self.deaths = 0
        self.losses = 0
        self.ended_leases = 0
        self.largest_slice = 1
        self.unlimited_grants = 0
        self.forgotten = 0
        self.estimate_excess = 0
        for _ in range(self.draw.randrange(1, 4)):
            self.add_gateway()

    def add_gateway(self) -> None:
        """Starts a gateway, which first merges the checkpoints that it finds."""
        self.created += 1
        gateway = ModelGateway(
            f"gw{self.created}",
            self.terms,
            is_strict=self.is_strict,
            is_durable=self.is_durable,
            workers=self.draw.randrange(1, 3),
        )
        if self.is_durable:
            gateway.ledger.restore([row for rows in self.checkpoints.values() for row in rows])
        self.gateways.append(gateway)
        self.holders += gateway.workers

    def kill_gateway(self) -> None:
        """Kills a gateway with all its workers."""
        gateway = self.draw.choice(self.gateways)
        if gateway.witness_until > self.time:
            return
        self.gateways.remove(gateway)
        gateway.is_alive = False
        for worker in gateway.workers:
            worker.is_alive = False
            self.deaths += 1

    def kill_worker(self) -> None:
        """Kills a worker, which its gateway replaces."""
        gateway = self.draw.choice(self.gateways)
        number = self.draw.randrange(len(gateway.workers))
        gateway.replace_worker(number)
        self.holders.append(gateway.workers[number])
        self.deaths += 1

    def cut_off(self) -> None:
        """Cuts a gateway off from the server for some seconds."""
        gateway = self.draw.choice(self.gateways)
        if gateway.witness_until > self.time:
            return
        gateway.cut_off_until = self.time + self.draw.choice([2.0, 8.0, 20.0])
        self.ended_leases += len(gateway.workers)

    def pause(self) -> None:
        """Lets time pass without a request or an exchange, so that leases end."""
        if all(gateway.witness_until <= self.time for gateway in self.gateways):
            self.time += self.draw.choice([0.5, 6.0])
            self.ended_leases += sum(len(gateway.workers) for gateway in self.gateways)

    def play(self, steps: int, faults: list[str]) -> None:
        """Makes steps, of which one in seven is a fault or a pause in which leases end."""
        for _ in range(steps):
            event = "step" if self.draw.random() < 0.85 else self.draw.choice(["pause", *faults])
            if event == "step":
                self.step(loses_messages=True)
            elif event == "pause":
                self.pause()
            elif event == "kill worker":
                self.kill_worker()
            elif event == "kill gateway":
                if len(self.gateways) > 1:
                    self.kill_gateway()
            elif event == "add gateway":
                if len(self.gateways) < 4:
                    self.add_gateway()
            elif event == "cut off":
                self.cut_off()
            elif event == "snapshot":
                self.server.snapshot()
            else:
                self.lose(kind=event)

    def lose(self, *, kind: str) -> None:
        """Loses state of the server.

        Without checkpoints, a gateway that knows of the state stays for two leases. If all are gone
        or cut off, a new gateway cannot know that there was any.
        """
        if not self.is_durable:
            witnesses = [
                gateway for gateway in self.gateways if gateway.ledger.epoch and gateway.cut_off_until <= self.time
            ]
            if not witnesses:
                return
            witnesses[0].witness_until = self.time + 10.0
        self.losses += 1
        self.forgotten += self._unremembered()
        if kind == "flush":
            self.server.flush()
        else:
            self.server.restart(self.draw, from_snapshot=kind == "failover")

    def _unremembered(self) -> int:
        """Returns what no living gateway knows to be spent."""
        known: dict[tuple[str, int], int] = {}
        for gateway in self.gateways:
            for _, row in gateway.ledger.rows():
                key = (row.holder, row.start)
                known[key] = max(known.get(key, 0), row.spent)
        total = sum(slice_.spent + slice_.busy for worker in self.holders for slice_ in worker.slices)
        return max(0, total - sum(known.values()))

    def request(self, worker: ModelWorker) -> None:
        """Sends a request to a worker; it waits, starts, or is refused."""
        taken = self.draw.choice([1, 1, 2, 5])
        actual = self.draw.randrange(taken + 1) if self.is_strict else self.draw.choice([taken, taken, 1, taken + 2])
        if worker.limit.has(taken, self.time):
            worker.admit(taken, actual, self.time, self.draw.choice([0.05, 1.0, 8.0]))
            self.estimate_excess += max(0, actual - taken)
        else:
            worker.waiting = max(worker.waiting, taken)

    def step(self, *, loses_messages: bool) -> None:
        """Moves time on a little, with requests and exchanges."""
        self.time += self.draw.choice([0.002, 0.05, 0.3])
        for gateway in self.gateways:
            for worker in gateway.workers:
                worker.advance(self.time)
                for _ in range(self.draw.randrange(4)):
                    self.request(worker)
        for message in [message for message in self.messages if message.arrives_at <= self.time]:
            self.messages.remove(message)
            self._apply(message, has_reply=self.draw.random() < 0.9 and not loses_messages)
            if self.draw.random() < 0.1:  # arrives a second time, later
                self.messages.append(Message(message.gateway, message.sent, message.sent_at, self.time + 2.0))
                self.messages[-1].sent_at = float("-inf")
        for gateway in self.gateways:
            self._exchange(gateway, loses_messages=loses_messages)

    def _exchange(self, gateway: ModelGateway, *, loses_messages: bool) -> None:
        is_due = self.time - gateway.last_periodic >= 1.0
        gateway.collect(self.time, is_due=is_due)
        if not gateway.ledger.has_needs and not is_due:
            return
        if is_due:
            gateway.last_periodic = self.time
        sent = gateway.ledger.exchange(wants_rows=is_due)
        fate = self.draw.random() if loses_messages else 1.0
        if fate < 0.15 or self.time < gateway.cut_off_until:
            gateway.ledger.on_failed()
        elif fate < 0.35:
            late = self.draw.choice([0.01, 0.5, 3.0])
            self.messages.append(Message(gateway, sent, self.time, self.time + late))
        else:
            self._apply(Message(gateway, sent, self.time, self.time), has_reply=fate >= 0.45)

    def _apply(self, message: Message, *, has_reply: bool) -> None:
        now_ms = self.server.now(self.time)
        before = self._granted()
        reply = self.server.store.apply(TENANT, message.sent, now_ms)
        granted = self._granted() - before
        self.largest_slice = max(self.largest_slice, self._largest_slice())
        if reply.is_lost and now_ms < reply.since + TIMES.lease_ms:
            self.unlimited_grants += max(0, granted)
        gateway = message.gateway
        if has_reply and gateway.is_alive and message.sent_at >= 0:
            self._on_reply(gateway, message.sent, reply, message.sent_at)
        elif gateway.is_alive:
            gateway.ledger.on_failed()

    def _granted(self) -> int:
        state = self.server.store.tenants.get(TENANT)
        if state is None:
            return 0
        return sum(row.granted for account in state.accounts.values() for row in account.rows.values())

    def _largest_slice(self) -> int:
        accounts = self.server.store.tenants[TENANT].accounts.values()
        rows = [row for account in accounts for row in account.rows.values()]
        return max((row.granted - row.returned - row.spent for row in rows), default=0)

    def _on_reply(self, gateway: ModelGateway, sent: Exchange, reply: ExchangeReply, sent_at: float) -> None:
        updates = gateway.ledger.apply(sent, reply, sent_at)
        if self.is_durable:
            self.checkpoints[gateway.name] = gateway.ledger.rows()
            if gateway.ledger.needs_checkpoints:
                rows = [row for rows in self.checkpoints.values() for row in rows]
                gateway.ledger.restore(rows, is_complete=True)
        if self.draw.random() < 0.01 and len(self.gateways) > 1:
            return  # the gateway dies between the checkpoint and the grant, or its channel is full
        gateway.deliver(updates, self.time)

    def spent(self) -> dict[int, int]:
        """Returns what was truly spent and reserved, by the start of the window."""
        totals: dict[int, int] = {}
        for worker in self.holders:
            for slice_ in worker.slices:
                totals[slice_.start] = totals.get(slice_.start, 0) + slice_.spent + slice_.busy
        return totals

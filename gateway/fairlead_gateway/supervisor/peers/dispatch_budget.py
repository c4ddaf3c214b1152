"""The rates at which a gateway applies the dispatches of other gateways. Pure: time is an argument.

Each worker applies every dispatch of another gateway. A process that has the password of Redis can
write any number of them, under any names. So each sender has a rate, and all together have one that
they share equally. What comes faster is dropped: it is a hint, and loads are sent apart from it.

What a gateway reads back at its start comes at once. It has budgets of its own, which are larger.

Reports of loads have budgets in instances. A report beyond them is passed over. The next one
counts: a gateway with requests in flight reports all of its loads at least twice a second.

Reports of the service of tenants have budgets in tenants. What is beyond them counts in its own
gateway only.
"""

from collections.abc import Sequence

from fairlead.limits import Limits
from fairlead_gateway.supervisor.peers.peer_messages import ENTRY_OVERHEAD_BYTES, PEER_LOADS, PEER_TENANTS, SentPrompt

_OTHER_SENDERS = b""
"""The sender that stands for all beyond ``peers``; no gateway has an empty name."""
_PRUNE_SECONDS = 1.0


class DispatchBudget:
    """The budgets of all senders.

    dropped: number of prompts that were over a budget.
    dropped_loads, dropped_service: number of reports of loads and of service that were.
    """

    def __init__(self, limits: Limits) -> None:
        rates, senders = (limits.dispatch_peer_bytes, limits.dispatch_peers_bytes), limits.peers
        most = 2 * limits.dispatch_entry_bytes
        self._live = _SenderBudgets(*rates, most, senders, limits.dispatch_burst_seconds)
        self._history = _SenderBudgets(*rates, most, senders, limits.dispatch_history_seconds)
        rows = (limits.peer_load_rows, limits.peers_load_rows)
        self._loads = _SenderBudgets(*rows, PEER_LOADS, senders, limits.dispatch_burst_seconds)
        self._service = _SenderBudgets(*rows, PEER_TENANTS, senders, limits.dispatch_burst_seconds)
        self.dropped = 0
        self.dropped_loads = self.dropped_service = 0

    def admits(self, sender: bytes, prompts: Sequence[SentPrompt], now: float, *, is_live: bool) -> bool:
        """Returns whether a batch of prompts is to be applied, and counts it if not.

        is_live: False for what was written before this gateway had read up to the end.
        """
        cost = sum([len(hashes) for _, hashes, _, _ in prompts]) + ENTRY_OVERHEAD_BYTES * len(prompts)
        budgets = self._live if is_live else self._history
        if not cost or budgets.take(sender, cost, now):
            return True
        self.dropped += len(prompts)
        return False

    def admits_loads(self, sender: bytes, instances: int, now: float) -> bool:
        """Returns whether a report of the loads of so many instances is to be applied, and counts
        it if not.
        """
        if self._loads.take(sender, instances, now):
            return True
        self.dropped_loads += 1
        return False

    def admits_service(self, sender: bytes, tenants: int, now: float) -> bool:
        """Returns whether a report of the service of so many tenants is to be applied, and counts
        it if not.
        """
        if self._service.take(sender, tenants, now):
            return True
        self.dropped_service += 1
        return False


class _SenderBudgets:
    """Token buckets by sender, in bytes or another unit.

    own_rate, total_rate: units a second of one sender, and of all together.
    max_batch: a larger batch is never admitted.
    burst_seconds: how many seconds of its rate a bucket holds.
    """

    def __init__(
        self, own_rate: float, total_rate: float, max_batch: int, max_senders: int, burst_seconds: float
    ) -> None:
        self._own_rate = own_rate
        self._total_rate = total_rate
        self._max_batch = max_batch
        self._max_senders = max_senders
        self._burst_seconds = burst_seconds
        self._buckets: dict[bytes, tuple[float, float]] = {}  # level, and when it was current
        self._pruned_at = float("-inf")

    def take(self, sender: bytes, cost: int, now: float) -> bool:
        """Takes a batch from the budget of its sender; returns False if that is used up."""
        if cost > self._max_batch:
            return False  # a gateway splits such a batch
        if now - self._pruned_at >= _PRUNE_SECONDS:
            self._prune(now)
        if sender not in self._buckets and len(self._buckets) >= self._max_senders:
            sender = _OTHER_SENDERS
        if sender not in self._buckets:
            self._buckets[sender] = (self._capacity(len(self._buckets) + 1), now)
        level = self._level(sender, now)
        is_admitted = level >= min(cost, self._capacity(len(self._buckets)))
        self._buckets[sender] = (level - cost if is_admitted else level, now)
        return is_admitted

    def _rate(self, senders: int) -> float:
        return min(self._own_rate, self._total_rate / max(1, senders))

    def _capacity(self, senders: int) -> float:
        return self._rate(senders) * self._burst_seconds

    def _level(self, sender: bytes, now: float) -> float:
        level, at = self._buckets[sender]
        senders = len(self._buckets)
        return min(self._capacity(senders), level + max(0.0, now - at) * self._rate(senders))

    def _prune(self, now: float) -> None:
        """Forgets senders whose budget is full again, which a new sender has too."""
        self._pruned_at = now
        full = self._capacity(len(self._buckets))
        for sender in [one for one in self._buckets if self._level(one, now) >= full]:
            del self._buckets[sender]

"""Engine time served per tenant and weight: the tenant that was served least goes first.

A tenant that begins to wait starts `SAVED_SECONDS` below the least of the waiting tenants. If its
own count is higher, it starts there. So no tenant saves more than that while it is away, and none
pays for having been served while no other waited.

Why it saves some: a tenant that sends less than its share joins with each request. Without savings,
a flood would be as near to its turn as the tenant, each time.

Recent service has counts of its own, which decay. They say which tenant had a small share, also
where no other one waits.

All queues of a model in one process share one count. Requests that never wait count as well, and so
does the service that other processes report. What is served here is collected for their reports.

Source: the counter lift of VTC (arXiv 2401.00588).

The engine time of an answer, which is charged to its caller like that of the prompt.

A step decodes one token of every running sequence. So a token costs a sequence its share of a full
batch, and the time to read its own KV cache. A batch is full at the engine's number of sequences,
or if no more sequences of this length fit its memory.
"""

from collections.abc import Collection, Hashable, Mapping
from typing import Final

from fairlead.engine_profile import EngineProfile

SAVED_SECONDS: Final = 1.0
"""Engine time that a tenant may save: twice the quantum by which others may be ahead."""
RECENT_SECONDS: Final = 20.0
"""Engine time of all tenants after which what was served before counts half."""
SMALL_SHARE: Final = 0.5
"""A tenant that got less than this part of what another got has a small share."""
LAG_SECONDS: Final = 2.0
"""A tenant that got so much less than another one that waits has a small share, too."""
MAX_COMPARED: Final = 32
"""Tenants that wait, above which none is compared with the others: it would take too long."""
_MIN_COMPACTED: Final = 64
_MAX_REPORTED: Final = 16_384
"""With so many tenants, only those that this process knows are counted for other processes."""
_MIN_RECENT_SECONDS: Final = 0.001


class _Service:
    """Weighted engine seconds of one tenant.

    Why: a field is changed in a few instructions, a number in a dictionary in 400.
    """

    __slots__ = ("seconds",)

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds


class FairShare:
    """Seconds of engine time by tenant, divided by the tenant's weight.

    reports: callers are distinguished, and service is collected for `take_unreported`.
    """

    def __init__(self, *, reports: bool = False) -> None:
        self._served: dict[Hashable, _Service] = {}
        self._present: dict[Hashable, int] = {}
        self._compact_above = _MIN_COMPACTED
        self.distinguishes_callers = reports
        self._recent: dict[Hashable, _Service] = {}
        self._recent_total = self._recent_most = 0.0
        self._unreported: dict[str, _Service] = {}

    def served_seconds(self, tenant: Hashable) -> float:
        """Returns the weighted engine seconds served to a tenant; 0 for an unknown one."""
        served = self._served.get(tenant)
        return 0.0 if served is None else served.seconds

    def seconds_at_join(self, tenant: Hashable, weight: float) -> float:
        """Returns the service that counts for a tenant if it begins to wait now."""
        present = self._present
        if tenant in present or not present:
            return self.served_seconds(tenant)
        min_seconds = min([self.served_seconds(other) for other in present])
        return max(self.served_seconds(tenant), min_seconds - SAVED_SECONDS / weight)

    def present(self) -> Collection[Hashable]:
        return self._present.keys()

    def on_join(self, tenant: Hashable, weight: float = 1.0) -> None:
        """Called when a tenant begins to wait in a queue.

        If it waits in no other one, its count rises to nearly the least of the tenants that wait.
        If there are none, all other counts are dropped.
        """
        present = self._present
        if tenant in present:
            present[tenant] += 1
            return
        if not present:
            if len(self._served) != 1 or tenant not in self._served:
                self._served = {tenant: _Service(self.served_seconds(tenant))}
            present[tenant] = 1
            return
        self._served[tenant] = _Service(self.seconds_at_join(tenant, weight))
        present[tenant] = 1
        self._compact()

    def on_leave(self, tenant: Hashable) -> None:
        """Called when none of a tenant's requests waits in a queue any more."""
        count = self._present.get(tenant, 0)
        if count > 1:
            self._present[tenant] = count - 1
        elif count:
            del self._present[tenant]

    def _compact(self) -> None:
        """Drops absent tenants that would start at the least count anyway, if there are many."""
        if len(self._served) <= self._compact_above:
            return
        present = self._present
        least = min([self.served_seconds(tenant) for tenant in present], default=float("inf"))
        self._served = {
            tenant: served
            for tenant, served in self._served.items()
            if served.seconds > least - SAVED_SECONDS or tenant in present
        }
        self._compact_above = max(_MIN_COMPACTED, 2 * len(self._served))

    def charge(self, tenant: Hashable, seconds: float, weight: float) -> None:
        """Charges a tenant for a request of `seconds` engine time.

        weight: share of the tenant against others, above 0.
        """
        served = self._served.get(tenant)
        if served is not None:
            served.seconds = served.seconds + seconds / weight  # not `+=`, which mypyc adds as objects
        else:
            self._served[tenant] = _Service(seconds / weight)
            self._compact()
        self._add_recent(tenant, seconds / weight)
        self._collect(tenant, seconds / weight)

    def settle(self, tenant: Hashable, seconds: float, weight: float) -> None:
        """Corrects the charge for a request that has ended, by `seconds` more or less.

        A tenant whose count was dropped meanwhile stays without one.
        """
        served = self._served.get(tenant)
        if served is not None:
            served.seconds = max(0.0, served.seconds + seconds / weight)
        self._collect(tenant, seconds / weight)

    def _collect(self, tenant: Hashable, seconds: float) -> None:
        if not self.distinguishes_callers or not isinstance(tenant, str):
            return
        unreported = self._unreported.get(tenant)
        if unreported is not None:
            unreported.seconds = unreported.seconds + seconds
        else:
            self._unreported[tenant] = _Service(seconds)

    def has_small_share(self, tenant: Hashable) -> bool:
        """Whether the tenant was served much less than another one lately, for its weight.

        What other processes served counts. With very many tenants that wait, none lags behind them.
        """
        recent = self._recent.get(tenant)
        if (0.0 if recent is None else recent.seconds) < SMALL_SHARE * self._recent_most:
            return True
        waiting = self._present
        if len(waiting) < 2 or len(waiting) > MAX_COMPARED:
            return False
        max_seconds = max([self.served_seconds(other) for other in waiting])
        return max_seconds - self.served_seconds(tenant) > LAG_SECONDS

    def _add_recent(self, tenant: Hashable, seconds: float) -> None:
        """Adds recent service. Each `RECENT_SECONDS` of it, all counts are halved."""
        self._count_recent(tenant, seconds)
        if self._recent_total >= RECENT_SECONDS:
            self._halve_recent()

    def _count_recent(self, tenant: Hashable, seconds: float) -> None:
        recent = self._recent.get(tenant)
        if recent is None:
            recent = self._recent[tenant] = _Service()
        total = recent.seconds = recent.seconds + seconds
        if total > self._recent_most:
            self._recent_most = total
        self._recent_total = self._recent_total + seconds

    def _halve_recent(self) -> None:
        self._recent_total = self._recent_most = 0.0
        kept: dict[Hashable, _Service] = {}
        for name, service in self._recent.items():
            half = service.seconds / 2
            if half > _MIN_RECENT_SECONDS:
                kept[name] = _Service(half)
                self._recent_most = max(self._recent_most, half)
        self._recent = kept

    def add_reported(self, served: Mapping[str, float]) -> None:
        """Adds what other processes served, in seconds divided by weights, by tenant.

        Why the counts are halved once for all: each halving takes time for each tenant.
        """
        for tenant, seconds in served.items():
            if len(self._served) >= _MAX_REPORTED and tenant not in self._served:
                continue
            if seconds > 0.0:
                self._count_recent(tenant, seconds)
            self._served[tenant] = _Service(max(0.0, self.served_seconds(tenant) + seconds))
        if self._recent_total >= RECENT_SECONDS:
            self._halve_recent()
        self._compact()

    def take_unreported(self) -> dict[str, float]:
        """Returns what was served here since the last call, in seconds divided by weights."""
        unreported = {tenant: served.seconds for tenant, served in self._unreported.items()}
        if unreported:
            self._unreported = {}
        return unreported


def decode_seconds(profile: EngineProfile, prompt_tokens: float, output_tokens: float, sequences: int) -> float:
    """Returns the engine seconds to decode an answer.

    output_tokens: of each of the sequences.
    """
    fitting = int(profile.kv_tokens / max(1.0, prompt_tokens + output_tokens))
    batch = max(1, min(profile.max_sequences, fitting))
    token_seconds = profile.step_time(computed=batch, sequences=batch, resident=0) / batch
    context_seconds = profile.resident_token_seconds * (prompt_tokens + output_tokens / 2)
    return sequences * output_tokens * (token_seconds + context_seconds)

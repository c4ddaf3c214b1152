"""The limits of one tenant in one gateway, between its workers and the store.

It collects the workers' reports and needs, makes one exchange of them, and turns the reply into
grants. It remembers the rows of all gateways that it has seen. If the store has lost its state, the
next exchange restores it from there. While the store does not answer, slices stay valid until their
lease ends.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fairlead.tenants.model import Limit
from fairlead_gateway.limits.exchange import (
    NO_WINDOW,
    Base,
    Exchange,
    ExchangeReply,
    GrantUpdate,
    LimitReply,
    LimitReport,
    Need,
    Row,
    previous_start,
    report_step,
    window_span,
)

_MAX_SEEN: Final = 4_096
_MAX_MESSAGE_NUMBER: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """The times of leases, in milliseconds: how long they last, and when a row may be folded."""

    lease_ms: int
    fold_ms: int


class TenantLedger:
    """The limits of one tenant in one gateway.

    is_durable: grants are written to a checkpoint before they are used.
    """

    def __init__(self, times: LeaseTimes, *, is_strict: bool, is_durable: bool) -> None:
        self._times = times
        self.is_strict = is_strict
        self._is_durable = is_durable
        self._limits: dict[str, Limit] = {}
        self._own: dict[tuple[str, str, int], Row] = {}
        self._ended: set[str] = set()
        self._needs: dict[tuple[str, str], Need] = {}
        self._unsent: dict[str, int] = {}
        self._has_news = is_strict  # the store begins its epoch before the first request
        self._seen: dict[tuple[str, str, int], Row] = {}
        self._bases: dict[tuple[str, int], Base] = {}
        self.epoch = ""
        self._must_merge = False
        self._merged_epoch = ""
        self.needs_checkpoints = False
        """The store waits for all checkpoints, which are to be read now."""
        self.is_open = True
        """False while the store refuses grants, since it has lost what was used before."""
        self.last_reply: dict[str, LimitReply] = {}

    def set_limits(self, limits: Sequence[Limit], *, is_strict: bool) -> None:
        """Replaces the limits; counters of limits that stay are kept."""
        self._limits = {limit.id: limit for limit in limits}
        self.is_strict = is_strict
        self._own = {key: row for key, row in self._own.items() if key[0] in self._limits}
        self._needs = {key: need for key, need in self._needs.items() if key[0] in self._limits}
        self._unsent = {limit: unsent for limit, unsent in self._unsent.items() if limit in self._limits}
        self.last_reply = {name: reply for name, reply in self.last_reply.items() if name in self._limits}

    # Workers.

    def report(self, limit: str, row: Row) -> None:
        """Merges a worker's counters."""
        if limit not in self._limits or row.holder in self._ended:
            return
        key = (limit, row.holder, row.start)
        known = self._own.get(key)
        spent = row.spent - (0 if known is None else known.spent)
        self._unsent[limit] = self._unsent.get(limit, 0) + max(0, spent)
        self._own[key] = row if known is None else _merge(known, row, busy=row.busy)
        self._has_news = True

    def need(self, limit: str, need: Need) -> None:
        if limit in self._limits and need.holder not in self._ended:
            self._needs[limit, need.holder] = need

    def forget_need(self, limit: str, holder: str) -> None:
        self._needs.pop((limit, holder), None)

    def end_holder(self, holder: str) -> None:
        """Settles the rows of a worker that has ended.

        In strict mode it may have spent all that it was granted. Else what it has not reported is
        free again.
        """
        self._needs = {key: need for key, need in self._needs.items() if key[1] != holder}
        self._ended.add(holder)
        self._has_news = True
        for key, row in list(self._own.items()):
            if key[1] != holder:
                continue
            if self._limits[key[0]].window is None:
                self._own[key] = Row(holder, row.start, row.granted, row.granted, 0, 0, row.expires)
            elif self.is_strict:
                spent = max(row.spent, row.granted - row.returned)
                self._own[key] = Row(holder, row.start, row.granted, row.returned, spent, 0, row.expires)
            else:
                returned = max(row.returned, row.granted - row.spent)
                self._own[key] = Row(holder, row.start, row.granted, returned, row.spent, 0, row.expires)

    @property
    def has_needs(self) -> bool:
        return bool(self._needs)

    @property
    def is_behind(self) -> bool:
        return any(unsent >= report_step(self._limits[limit].amount) for limit, unsent in self._unsent.items())

    @property
    def has_news(self) -> bool:
        return self._has_news or self._must_merge or any(row.outstanding > 0 for row in self._own.values())

    # The store.

    def exchange(self, *, wants_rows: bool) -> Exchange:
        """Returns the next message to the store."""
        self._has_news = False
        self._unsent = {}
        own: dict[str, list[Row]] = {}
        for (limit, _, _), row in self._own.items():
            own.setdefault(limit, []).append(row)
        needs: dict[str, list[Need]] = {}
        for (limit, _), need in self._needs.items():
            needs.setdefault(limit, []).append(need)
        seen: dict[str, list[Row]] = {}
        bases: dict[str, list[tuple[int, Base]]] = {}
        if self._must_merge:
            for (limit, _, _), row in self._seen.items():
                seen.setdefault(limit, []).append(row)
            for (limit, start), base in self._bases.items():
                bases.setdefault(limit, []).append((start, base))
        reports = [
            LimitReport(
                id_,
                limit.window or NO_WINDOW,
                limit.amount,
                own.get(id_, []),
                needs.get(id_, []),
                seen.get(id_, []),
                bases.get(id_, []),
            )
            for id_, limit in self._limits.items()
        ]
        is_merged = self._must_merge and self.epoch != "" and self._merged_epoch == self.epoch
        lease, fold = self._times.lease_ms, self._times.fold_ms
        return Exchange(self.is_strict, lease, fold, self.epoch, is_merged, wants_rows, reports)

    def apply(self, sent: Exchange, reply: ExchangeReply, sent_at: float) -> list[tuple[str, GrantUpdate]]:
        """Applies a reply, and returns what changes for the workers.

        sent_at: monotonic seconds, read before the exchange was sent.
        """
        if reply.epoch != self.epoch:
            if self.epoch:
                self._must_merge = True
            self.epoch = reply.epoch
        elif sent.epoch == reply.epoch:
            self._must_merge = False
        self.is_open = reply.is_open or not self.is_strict
        self.needs_checkpoints = (
            self._is_durable
            and self.is_strict
            and not reply.is_open
            and self._merged_epoch != reply.epoch
            and reply.now >= reply.since + self._times.lease_ms
        )
        if sent.epoch in ("", reply.epoch):
            self._forget_ended(sent)
        updates: list[tuple[str, GrantUpdate]] = []
        needs = {(report.limit, need.holder): need for report in sent.limits for need in report.needs}
        for limit in reply.limits:
            if limit.limit not in self._limits:
                continue
            self.last_reply[limit.limit] = limit
            self._remember(limit, reply.now)
            updates += self._updates(limit, reply.now, sent_at, needs)
        return updates

    def on_failed(self) -> None:
        self._has_news = True

    def _forget_ended(self, sent: Exchange) -> None:
        """Leaves the rows of ended workers to the store, which has them now."""
        for report in sent.limits:
            for row in report.own:
                key = (report.limit, row.holder, row.start)
                if row.holder in self._ended and self._own.get(key) == row:
                    self._see(report.limit, row)
                    del self._own[key]
        self._ended &= {holder for _, holder, _ in self._own}

    def _updates(
        self, limit: LimitReply, now_ms: int, sent_at: float, needs: dict[tuple[str, str], Need]
    ) -> list[tuple[str, GrantUpdate]]:
        updates = []
        ends_at = sent_at + (limit.end - now_ms) / 1000 if limit.end else float("inf")
        for grant in limit.grants:
            key = (limit.limit, grant.holder)
            need = needs.get(key)
            if self._needs.get(key) is need:
                self._needs.pop(key, None)
            own_key = (limit.limit, grant.holder, limit.start)
            is_folded = grant.expires < 0
            if is_folded:
                self._own.pop(own_key, None)
            elif grant.holder not in self._ended:
                known = self._own.get(own_key) or Row(grant.holder, limit.start, 0, 0, 0)
                granted = Row(grant.holder, limit.start, grant.granted, 0, 0, 0, grant.expires)
                self._own[own_key] = _merge(known, granted, busy=known.busy)
            lease_ends = sent_at + max(0, grant.expires - now_ms) / 1000
            updates.append(
                (
                    grant.holder,
                    GrantUpdate(
                        limit.limit,
                        grant.status,
                        limit.start,
                        grant.granted,
                        min(lease_ends, ends_at, sent_at + self._times.lease_ms / 1000),
                        max(-_MAX_MESSAGE_NUMBER, min(_MAX_MESSAGE_NUMBER, limit.available)),
                        min(_MAX_MESSAGE_NUMBER, limit.used),
                        ends_at,
                        limit.is_contended,
                        is_folded,
                    ),
                )
            )
        return updates

    # Memory.

    def restore(self, rows: Iterable[tuple[str, Row]], *, is_complete: bool = False) -> None:
        """Merges rows of checkpoints, and has the next exchange merge them into the store.

        is_complete: they are all checkpoints, read when `needs_checkpoints` was true.
        """
        for limit, row in rows:
            self._see(limit, row)
        self._must_merge = True
        if is_complete:
            self._merged_epoch = self.epoch
            self.needs_checkpoints = False

    def rows(self) -> list[tuple[str, Row]]:
        """Returns the limit and counters of every holder that this gateway knows."""
        found = dict(self._seen)
        for key, row in self._own.items():
            known = found.get(key)
            found[key] = row if known is None else _merge(known, row, busy=row.busy)
        return [(key[0], row) for key, row in found.items()]

    def _remember(self, reply: LimitReply, now_ms: int) -> None:
        """Remembers the rows of a reply; forgets windows before the last one."""
        limit, window = reply.limit, self._limits[reply.limit].window or NO_WINDOW
        start, end = window_span(window, now_ms)
        oldest = previous_start(window, start) if end else 0
        for row in reply.rows:
            self._see(limit, row)
        for first, base in reply.bases:
            known = self._bases.get((limit, first))
            if known is None or base.until >= known.until:
                self._bases[limit, first] = base  # includes the rows dropped below, or they count twice
                self._seen = {
                    key: row
                    for key, row in self._seen.items()
                    if key[0] != limit or key[2] != first or row.expires > base.until
                }
        self._seen = {key: row for key, row in self._seen.items() if key[0] != limit or row.start >= oldest}
        self._bases = {key: base for key, base in self._bases.items() if key[0] != limit or key[1] >= oldest}
        self._own = {key: row for key, row in self._own.items() if key[0] != limit or row.start >= oldest}

    def _see(self, limit: str, row: Row) -> None:
        key = (limit, row.holder, row.start)
        known = self._seen.get(key)
        if known is None and len(self._seen) >= _MAX_SEEN:
            return
        self._seen[key] = row if known is None else _merge(known, row, busy=row.busy)


def _merge(known: Row, row: Row, *, busy: int) -> Row:
    return Row(
        row.holder,
        row.start,
        max(known.granted, row.granted),
        max(known.returned, row.returned),
        max(known.spent, row.spent),
        busy,
        max(known.expires, row.expires),
    )

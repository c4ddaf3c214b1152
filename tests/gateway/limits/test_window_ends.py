"""The end of a window: until its last millisecond nothing is left, and then all of it is."""

from datetime import UTC, datetime

import pytest

from fairlead_gateway.limits.exchange import EXHAUSTED, GRANTED, Exchange, LimitReply, LimitReport, Need, Row
from fairlead_gateway.limits.store import QuotaStore

_AMOUNT = 1_000
_LEASE_MS = 5_000
_DAY_MS = 86_400_000


class Gateway:
    """A gateway with one worker, whose requests use all that they get, or more."""

    def __init__(self, store: QuotaStore, name: str, window: str) -> None:
        self._store = store
        self._name = name
        self._window = window
        self._rows: dict[int, Row] = {}

    def request(self, amount: int, now_ms: int, *, used: int = 0) -> LimitReply:
        """Gets an amount for a request, which has ended at once; returns the reply.

        used: 0 for the amount.
        """
        reply = self._exchange(now_ms, [Need(self._name, amount, amount)])
        (grant,) = reply.grants
        if grant.status == GRANTED:
            before = self._rows.get(reply.start)
            spent = (0 if before is None else before.spent) + (used or amount)
            self._rows[reply.start] = Row(self._name, reply.start, grant.granted, 0, spent)
            self._exchange(now_ms, [])
        return reply

    def _exchange(self, now_ms: int, needs: list[Need]) -> LimitReply:
        report = LimitReport("cost", self._window, _AMOUNT, list(self._rows.values()), needs)
        sent = Exchange(False, _LEASE_MS, 60_000, "", False, False, [report])
        (reply,) = self._store.apply("acme", sent, now_ms).limits
        return reply


def _ms(year: int, month: int, day: int, hour: int = 0, minute: int = 0) -> int:
    return round(datetime(year, month, day, hour, minute, tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("window", "end"),
    [
        ("Minute", _ms(2028, 2, 29, 12, 1)),
        ("Day", _ms(2028, 3, 1)),
        ("Month", _ms(2028, 3, 1)),
        ("Month", _ms(2029, 1, 1)),
    ],
)
def test_two_gateways_get_all_of_a_window_when_it_begins_and_not_before(window: str, end: int) -> None:
    store = QuotaStore("run")
    gateways = [Gateway(store, name, window) for name in ("gw-0", "gw-1")]
    for step, now in enumerate(range(end - 1_000, end, 100)):
        assert gateways[step % 2].request(100, now).grants[0].status == GRANTED
    for gateway in gateways:
        reply = gateway.request(1, end - 1)
        assert (reply.grants[0].status, reply.end) == (EXHAUSTED, end)
    assert [gateway.request(500, end).grants[0].status for gateway in gateways] == [GRANTED, GRANTED]
    assert gateways[0].request(1, end).grants[0].status == EXHAUSTED


def test_what_a_window_used_too_much_is_missing_in_the_next_one_alone() -> None:
    store = QuotaStore("run")
    gateways = [Gateway(store, name, "Day") for name in ("gw-0", "gw-1")]
    first = _ms(2028, 2, 28, 23, 59)
    gateways[0].request(900, first)
    assert gateways[1].request(100, first, used=350).grants[0].status == GRANTED
    second = _ms(2028, 2, 29)
    assert gateways[0].request(751, second).grants[0].status == EXHAUSTED
    assert gateways[0].request(750, second).grants[0].status == GRANTED
    assert gateways[1].request(1, second + _DAY_MS - 1).grants[0].status == EXHAUSTED
    assert gateways[1].request(_AMOUNT, second + _DAY_MS).grants[0].status == GRANTED

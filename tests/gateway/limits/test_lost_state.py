"""A store that has lost its state says so of strict limits, to holders that wait or renew."""

import pytest

from fairlead_gateway.limits.exchange import CLOSED, NOT_YET, Exchange, LimitReport, Need, Row, window_span
from fairlead_gateway.limits.store import QuotaStore

NOW = 1_800_000_000_000
LEASE = 2_000


@pytest.mark.parametrize("needs", [[], [Need("w", 1, 5)]], ids=["renewal", "need"])
def test_a_limit_closed_by_a_loss_says_so_to_renewals_as_to_needs(needs: list[Need]) -> None:
    start, _ = window_span("Day", NOW)
    own = [Row("w", start, 10, 0, 10, 0, NOW)]
    store = QuotaStore("new")

    def reply(epoch: str, now: int) -> tuple[str, int]:
        report = LimitReport("requests", "Day", 10, own, needs)
        answer = store.apply("acme", Exchange(True, LEASE, 10 * LEASE, epoch, False, False, [report]), now)
        return answer.epoch, answer.limits[0].grants[0].status

    epoch, status = reply("before the loss", NOW)
    assert status == NOT_YET
    assert reply(epoch, NOW + 10 * LEASE) == (epoch, CLOSED)

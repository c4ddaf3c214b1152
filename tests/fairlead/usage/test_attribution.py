"""Cost of replicas, divided among their users so that the parts add up to the bill."""

import random
from collections.abc import Iterator, Mapping
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.usage.replica_log import ReplicaLine, ReplicaLog, ReplicaSpan, ReplicaSpans, ReplicaView, replica_seconds
from fairlead.usage.report import IDLE, apportion, attribute_cost

DAY = 86_400
HEARTBEAT = 1_200
PRICES = (None, 1, 700_000_000, 2_500_000_001, 98_320_000_000)
DAYS = 10_000 if settings().max_examples > 1_000 else 250
USERS = (("acme", "prod", ""), ("acme", "ci", ""), ("zeta", "k", "lora"), ("", "", ""))


@given(st.integers(0, 10**18), st.lists(st.integers(0, 10**15), min_size=1, max_size=8))
def test_parts_are_within_one_of_their_share_and_add_up(total: int, weights: list[int]) -> None:
    parts = apportion(total, weights)
    assert sum(parts) == total
    whole = sum(weights)
    if whole:
        assert all(abs(part * whole - total * weight) < whole for part, weight in zip(parts, weights, strict=True))


def test_users_pay_for_their_engine_time_and_the_rest_is_idle() -> None:
    # 1,000 s of a replica at 3.60 USD an hour: 0.001 USD a second.
    capacity = {
        ("2026-11-24", "x/tiny", "main", "Ready", 3_600_000_000): 900,
        ("2026-11-24", "x/tiny", "main", "Draining", 3_600_000_000): 100,
        ("2026-11-24", "x/tiny", "main", "Starting", 3_600_000_000): 60,
        ("2026-11-24", "x/tiny", "main", "Sleeping", 3_600_000_000): 7,
        ("2026-11-24", "x/tiny", "main", "Ready", None): 5,
    }
    use = {("2026-11-24", "x/tiny", "main"): {"acme": 250_000_000, "zeta": 50_000_000}}
    costs = attribute_cost(capacity, use)
    parts = {share.user or share.state: share.nano_usd for share in costs.shares}
    assert parts == {
        "acme": 250_000_000,
        "zeta": 50_000_000,
        IDLE: 700_000_000,
        "Starting": 60_000_000,
        "Sleeping": 7_000_000,
    }
    assert (costs.bill_nano_usd, costs.unpriced_seconds) == (1_067_000_000, 5)


def test_users_of_a_full_pool_share_its_cost_and_nothing_is_idle() -> None:
    capacity = {("d", "m", "p", "Ready", 3_600_000_000): 10}
    costs = attribute_cost(capacity, {("d", "m", "p"): {"a": 30_000_000, "b": 10_000_000}})
    assert {share.user: share.nano_usd for share in costs.shares} == {"a": 7_500_000, "b": 2_500_000}


def test_engine_time_without_a_priced_replica_has_no_cost_and_is_reported() -> None:
    costs = attribute_cost({("d", "m", "p", "Ready", None): 10}, {("d", "m", "p"): {"a": 5}, ("d", "m", "q"): {"a": 2}})
    assert (list(costs.shares), costs.bill_nano_usd, costs.unattributed_microseconds) == ([], 0, 7)


class SimulatedDay:
    """A day of replicas that start, serve, sleep, drain and crash."""

    def __init__(self, chance: random.Random, start: int) -> None:
        self.start, self.end = start, start + DAY
        self.views: dict[int, dict[str, ReplicaView]] = {}
        self.seconds: dict[tuple[str, int | None], int] = {}
        lives: list[tuple[int, int, str, ReplicaView]] = []
        for number in range(chance.randint(1, 4)):
            model, price = f"x/m{number % 2}", chance.choice(PRICES)
            moments = sorted(chance.randrange(start, self.end) for _ in range(chance.randint(1, 4)))
            moments.append(self.end if chance.random() < 0.5 else chance.randrange(moments[-1], self.end))
            states = chance.choices(("Starting", "Ready", "Draining", "Sleeping"), k=len(moments))
            for (begin, until), state in zip(pairwise(moments), states, strict=False):
                if until > begin:
                    lives.append((begin, until, f"pod-{number}/8000/0", ReplicaView(model, "main", state, price)))
                    self.seconds[model, price] = self.seconds.get((model, price), 0) + until - begin
        for moment in {start, *(time for begin, until, *_ in lives for time in (begin, until) if time < self.end)}:
            self.views[moment] = {name: view for begin, until, name, view in lives if begin <= moment < until}
        self.changes = sorted(self.views)

    def bill(self) -> int:
        cost = sum(seconds * price for (_, price), seconds in self.seconds.items() if price is not None)
        return (2 * cost + 3_600) // 7_200

    def at(self, moment: int) -> Mapping[str, ReplicaView]:
        return self.views[max(change for change in self.changes if change <= moment)]

    def observe(self, begin: int, until: int) -> Iterator[ReplicaLine]:
        """Yields what a gateway writes that lives from `begin` until `until`."""
        log = ReplicaLog(max_gap_seconds=2 * HEARTBEAT)
        moments = {
            begin,
            until,
            *range(begin, until, HEARTBEAT),
            *(change for change in self.changes if begin <= change < until),
        }
        for moment in sorted(moments):
            yield from log.observe(moment, self.at(min(moment, self.end - 1)))


def simulate_gateways(day: SimulatedDay, chance: random.Random) -> list[ReplicaSpan]:
    """Returns the spans of gateways that come and go, of which one is always there.

    A gateway that crashes loses its last lines; another has seen the same replicas.
    """
    spans: list[ReplicaSpan] = []
    handovers = sorted({day.start, *(chance.randrange(day.start, day.end) for _ in range(2)), day.end})
    lives = [(begin, min(day.end, until + HEARTBEAT), 0) for begin, until in pairwise(handovers)]
    lives += [(begin, day.end, chance.randint(0, 3)) for begin in (chance.randrange(day.start, day.end),)]
    for begin, until, lost_lines in lives:
        lines = list(day.observe(begin, until))
        reader = ReplicaSpans()
        for line in lines[: max(1, len(lines) - lost_lines)]:
            if line.day == day_text(day.start):
                reader.add(line)
        reader.close()
        spans += reader.spans
    return spans


def day_text(start: int) -> str:
    return ReplicaLine(start, True).day


@pytest.mark.property
@pytest.mark.timeout(300)
@pytest.mark.property
def test_parts_of_many_days_add_up_to_the_bill_exactly() -> None:
    """`make test` draws 250 days, `make nightly` ten thousand."""
    chance = random.Random(23)
    bills = 0
    for number in range(DAYS):
        day = SimulatedDay(chance, (20_000 + number) * DAY)
        capacity = replica_seconds(simulate_gateways(day, chance))
        text = day_text(day.start)
        use = {
            (text, f"x/m{at}", "main"): {user: chance.randrange(10 ** chance.randint(1, 11)) for user in USERS}
            for at in range(2)
        }
        costs = attribute_cost(capacity, use)
        assert costs.bill_nano_usd == day.bill()
        assert sum(share.nano_usd for share in costs.shares) == day.bill()
        assert all(share.nano_usd > 0 for share in costs.shares)
        bills += day.bill()
    assert bills > 0

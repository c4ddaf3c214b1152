"""Adapters with metrics of their own: those with most requests, and no more than the bound."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.telemetry.adapter_series import EVICTIONS, OTHER, POSITIONS, REQUESTS, AdapterSeries


def tables(requests: dict[str, int]) -> list[dict[str, int]]:
    return [dict(requests), *({} for _ in range(POSITIONS - 1))]


def shown(series: AdapterSeries, position: int = REQUESTS) -> dict[str, int]:
    return {adapter: counts[position] for (_, adapter), counts in series.rows()}


def test_adapters_beyond_the_bound_are_counted_together() -> None:
    series = AdapterSeries(2)
    series.update({"m": tables({"a": 5, "b": 3, "c": 1, "d": 1})}, 0.0)
    assert shown(series) == {"a": 5, "b": 3, OTHER: 2}


def test_adapter_with_twice_the_requests_of_the_smallest_takes_its_place() -> None:
    series = AdapterSeries(1)
    series.update({"m": tables({"a": 2})}, 0.0)
    series.update({"m": tables({"a": 2, "b": 4})}, 0.0)
    assert shown(series) == {"a": 2, OTHER: 4}
    series.update({"m": tables({"a": 2, "b": 5})}, 0.0)
    assert shown(series) == {"b": 1, OTHER: 4}


def test_what_was_in_demand_long_ago_gives_way() -> None:
    series = AdapterSeries(1)
    series.update({"m": tables({"a": 100})}, 0.0)
    for hour in range(1, 8):
        series.update({"m": tables({"a": 100, "b": 4 * hour})}, 3_600.0 * hour)
    assert "b" in shown(series)


def test_adapter_that_has_left_has_no_series() -> None:
    series = AdapterSeries(2)
    series.update({"m": tables({"a": 2, "b": 1}), "n": tables({"a": 1, "c": 1})}, 0.0)
    assert ("n", OTHER) in dict(series.rows())
    series.update({"m": tables({"b": 1})}, 0.0)
    assert shown(series) == {"b": 1}


def test_an_adapter_called_other_is_counted_with_the_others() -> None:
    series = AdapterSeries(2)
    series.update({"m": tables({OTHER: 3})}, 0.0)
    assert shown(series) == {OTHER: 3}


def test_all_kinds_of_events_are_kept_apart() -> None:
    series = AdapterSeries(2)
    series.update({"m": [{"a": 7}, {"a": 2}, {"a": 900}, {}, {"b": 1}]}, 0.0)
    assert dict(series.rows()) == {("m", "a"): [7, 2, 900, 0, 0], ("m", "b"): [0, 0, 0, 0, 1]}
    assert shown(series, EVICTIONS) == {"a": 0, "b": 1}


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=30), max_size=8))
def test_every_request_is_counted_once_and_no_shown_counter_falls(rounds: list[list[str]]) -> None:
    series, total, before = AdapterSeries(3), Counter[str](), Counter[str]()
    added = Counter[str]()
    for names in rounds:
        total.update(names)
        series.update({"m": tables(dict(total))}, 0.0)
        now = Counter(shown(series))
        for name, count in now.items():
            if name in before:
                assert count >= before[name]
            added[name] += count - before.get(name, 0)
        assert len(now.keys() - {OTHER}) <= 3
        before = now
    assert sum(added.values()) == sum(total.values())

"""The decay of peers' loads: they count by the probability that they still exist."""

import math

import pytest

from fairlead_gateway.peers.peer_messages import PeerBatch, PeerLoad, SentPrompt
from fairlead_gateway.peers.peer_state import PeerState, ResidenceTimes, SteadyLoad

KEY = "ns/a"
GROUP = ("e-0", "e-1", "e-2", "e-3")
AGE = 0.1


def sent(*instances: str) -> list[SentPrompt]:
    return [(name, b"", 1, 0) for name in instances]


def load(flying: int, waiting: int = 0) -> PeerLoad:
    return flying, waiting, 0.5 * waiting, 100.0 * flying, 0


def test_without_ended_requests_loads_do_not_decay() -> None:
    pace = ResidenceTimes()
    pace.observe(0.0, {}, sent("e-0", "e-0"), {"e-0": load(2, 2)})
    pace.observe(5.0, {"e-0": load(2, 2)}, sent("e-1"), {"e-0": load(2, 2), "e-1": load(1, 1)})
    loads = {"e-0": load(2, 2), "e-1": load(1, 1)}
    assert pace.expected_loads(loads, [GROUP], AGE) == loads


def test_requests_shorter_than_a_report_count_everywhere_alike() -> None:
    pace = ResidenceTimes()
    for _ in range(10):
        pace.observe(0.05, {}, sent("e-0", "e-1"), {})
    assert pace.expected_loads({"e-0": load(4, 4)}, [GROUP], AGE) == dict.fromkeys(GROUP, (1, 1, 0.5, 100.0, 0))


@pytest.mark.parametrize("stay", [0.02, 0.1, 1.0, 30.0])
def test_the_mean_stay_decides_how_much_is_left_and_the_sum_stays(stay: float) -> None:
    pace = ResidenceTimes()
    for _ in range(40):  # each batch: one request ends after its stay, another begins
        pace.observe(stay, {"e-0": load(1, 1)}, sent("e-0"), {"e-0": load(1, 1)})
    loads = pace.expected_loads({"e-0": load(8, 8)}, [GROUP], AGE)
    left = math.exp(-AGE / stay)
    assert loads["e-0"][3] == pytest.approx(800.0 * (left + (1 - left) / 4))
    assert sum(counts[3] for counts in loads.values()) == pytest.approx(800.0)
    assert sum(counts[2] for counts in loads.values()) == pytest.approx(4.0)


def test_the_wait_for_a_first_token_and_the_stay_fade_apart() -> None:
    pace = ResidenceTimes()
    for _ in range(40):  # answered within the batch, in flight for a hundred seconds
        pace.observe(2.5, {"e-0": load(40)}, sent("e-0"), {"e-0": load(40)})
    (counts,) = pace.expected_loads({"e-0": load(40, 2)}, [["e-0"]], AGE).values()
    assert counts == (40, 2, 1.0, pytest.approx(4_000.0), 0)
    loads = pace.expected_loads({"e-0": load(40, 2)}, [GROUP], AGE)
    assert (loads["e-0"][2], loads["e-1"][2]) == (0.25, 0.25)
    assert loads["e-0"][3] > 3_900.0


def test_instances_of_another_kind_do_not_take_the_place() -> None:
    pace = ResidenceTimes()
    for _ in range(10):
        pace.observe(0.05, {}, sent("e-0"), {})
    loads = pace.expected_loads({"e-0": load(4), "p-0": load(2)}, [("e-0", "e-1"), ("p-0", "p-1")], AGE)
    assert loads == {"e-0": (2, 0, 0.0, 200.0, 0), "e-1": (2, 0, 0.0, 200.0, 0), "p-0": load(2)}


def test_what_requests_are_like_now_is_learned_within_some_hundred() -> None:
    pace = ResidenceTimes()
    for _ in range(200):
        pace.observe(0.05, {}, sent("e-0"), {})
    for _ in range(200):
        pace.observe(10.0, {"e-0": load(1)}, sent("e-0"), {"e-0": load(1)})
    assert pace.expected_loads({"e-0": load(10)}, [GROUP], AGE)["e-0"][3] > 900.0


def test_instances_that_nothing_is_sent_to_are_left_out_and_forgotten() -> None:
    pace = ResidenceTimes()
    pace.observe(0.05, {}, sent("gone"), {"gone": load(1)})
    assert pace.expected_loads({"gone": load(1)}, [GROUP], AGE) == {}
    assert pace.expected_loads({"gone": load(1)}, [("gone",)], AGE) == {"gone": load(1)}


def test_batches_of_other_gateways_teach_the_pace() -> None:
    peers = PeerState(b"s")
    for number in range(1, 20):
        batch = PeerBatch(number, 0.5, b"s", (("e-0", b"", 1, 0),), {"e-0": load(1, 1)[:4]} if number == 19 else {})
        peers.apply_batch(KEY, "b", batch, 0.05 * number, is_live=True)
    assert peers.reported_loads() == {"e-0": load(1, 1)}
    assert peers.expected_loads({KEY: [GROUP]}) == dict.fromkeys(GROUP, (1, 0, 0.125, 25.0, 0))
    assert peers.expected_loads({}) == {}


def test_a_constant_load_does_not_decay() -> None:
    peers = PeerState(b"s")
    for number in range(1, 41):
        brief = tuple(sent("e-0", "e-1"))
        peers.apply_batch(
            KEY,
            "b",
            PeerBatch(number, 0.5, b"s", brief, {"e-0": load(3 + number % 2)[:4]}),
            0.05 * number,
            is_live=True,
        )
        if number == 15:
            assert peers.expected_loads({KEY: [GROUP]})["e-0"][3] < 250.0, (
                "who is heard for less than a second may have come just now"
            )
    loads = peers.expected_loads({KEY: [GROUP]})
    assert loads["e-0"] == (3, 0, 0.0, 300.0, 0)
    assert loads.keys() == {"e-0"}
    peers.apply_batch(KEY, "b", PeerBatch(41, 0.5, b"s", (), {}), 2.05, is_live=True)
    assert peers.expected_loads({KEY: [GROUP]}) == {}


def test_steady_load_of_very_many_reports_is_kept_as_a_few() -> None:
    steady = SteadyLoad()
    for number in range(10_000):
        steady.add_report(number * 1e-4, {"e-0": load(3 + number % 2, 1), "e-1": load(number % 2)})
    assert steady.loads(0.9) == {}, "there are no reports for so long yet"
    steady.add_report(1.0, {"e-0": load(8, 2), "e-1": load(4)})
    assert steady.loads(1.0) == {"e-0": (3, 1, 0.5, 300.0, 0)}
    assert len(steady._parts) < 7, "however many reports a second has"
    steady.add_report(1.4, {"e-0": load(8)})
    assert steady.loads(1.4) == {"e-0": (3, 0, 0.0, 300.0, 0)}

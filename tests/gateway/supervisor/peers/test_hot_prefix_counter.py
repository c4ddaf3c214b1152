"""The supervisor's count of hot prefixes, for replication hints."""

from fairlead.fleet.model import InstanceState
from fairlead_gateway.routing.prefix.prefix_hash import PrefixChain, block_ends
from fairlead_gateway.supervisor.peers.hot_prefix_lease import HotPrefixCounter
from fairlead_testing.gateway.running_gateway import fleet_of

KEY = "default/tiny"
BLOCKS = 8


def chain(family: int, number: int) -> PrefixChain:
    """Returns a chain of 4 KiB that a family shares, and more blocks of its own."""
    ends = block_ends(BLOCKS)
    shared = [family * 1_000 + index for index, end in enumerate(ends) if end <= 4_096]
    own = [10**6 + number * 100 + index for index in range(BLOCKS - len(shared))]
    hashes = (*shared, *own)
    return PrefixChain(hashes, ends, hashes[-1])


def test_shares_and_rates_are_those_of_the_last_prompts() -> None:
    counts = HotPrefixCounter()
    fleet = fleet_of([f"http://127.0.0.1:{port}" for port in range(9_001, 9_009)])
    assert all(one.state is InstanceState.READY for one in fleet.instances[KEY])
    counts.update_fleet(fleet)
    names = [one.id for one in fleet.instances[KEY]]
    for number in range(1_000):
        family = 1 if number % 2 else 2 + number  # half of the prompts share a prefix
        counts.on_dispatch(KEY, names[number % 8], chain(family, number), number * 0.1)
    found = counts.hot_prefixes(KEY, 100.0)
    assert found, "a prefix of half of the prompts is hot among eight"
    assert {one.digest // 1_000 for one in found} == {1}
    assert all(abs(one.share - 0.5) < 0.01 for one in found)
    assert all(abs(one.per_second - 5.0) < 0.3 for one in found)
    later = counts.hot_prefixes(KEY, 1_000.0)
    assert all(one.per_second < 0.2 for one in later), "nobody has asked since"


def test_a_model_without_prompts_has_no_table() -> None:
    counts = HotPrefixCounter()
    counts.update_fleet(fleet_of(["http://127.0.0.1:9001"]))
    assert counts.hot_prefixes(KEY, 0.0) == []
    assert counts.hot_prefixes("default/other", 0.0) == []

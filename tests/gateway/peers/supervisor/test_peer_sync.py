"""Peers' data that the supervisor passes to its workers: loads, dispatches, hot prefixes."""

from array import array

from fairlead.fleet.model import Fleet, Instance, InstanceState, Model, Role, SloTargets
from fairlead_gateway.peers.peer_messages import HotPrefixTable, PeerLoadRow
from fairlead_gateway.peers.supervisor.hot_prefix_lease import ACTIVE_SECONDS, HotPrefixCounter
from fairlead_gateway.routing import PrefixChain, prefix_chain
from fairlead_gateway.routing.load import shared_memory
from fairlead_gateway.routing.load.shared_memory import SharedLoadTable
from fairlead_gateway.routing.prefix.prefix_hash import unpack_hashes

KEY = "ns/a"
SLOTS = 4


def fleet(*roles: Role) -> Fleet:
    instances = tuple(
        Instance(f"e-{number}", "ns", "a", "main", f"http://{number}", role=role, state=InstanceState.READY)
        for number, role in enumerate(roles)
    )
    return Fleet(1, 1, {KEY: Model("ns", "a", SloTargets(), "dual-hash")}, {KEY: instances})


def chain(text: str) -> PrefixChain:
    return prefix_chain(text.encode() * 2_000, secret=b"s", seed=b"m")


def test_other_gateways_are_one_more_row_that_is_written_and_emptied() -> None:
    cells = memoryview(bytearray(shared_memory.table_bytes(3, SLOTS))).cast("q")
    row = PeerLoadRow(cells, SLOTS, 2)
    worker = SharedLoadTable(cells, SLOTS, 0)
    worker.set_active_rows([1, row.row])
    for each in (row, worker):
        each.set_slots({"e-0": 0, "e-1": 3})
    row.set_loads({"e-0": (2, 1, 0.5, 100.0, 0), "unknown": (1, 1, 1.0, 1.0, 0)})
    assert worker.sum_other_rows("e-0") == (2, 1, 0.5, 100.0, 0)
    assert worker.sum_other_rows("e-1") is None
    row.set_loads({"e-1": (1, 0, 0.0, 10.0, 0)})
    assert worker.sum_other_rows("e-0") is None
    assert worker.sum_other_rows("e-1") == (1, 0, 0.0, 10.0, 0)
    row.set_loads({})
    assert not any(cells)


def test_an_instance_that_comes_later_finds_its_load_in_its_slot() -> None:
    cells = memoryview(bytearray(shared_memory.table_bytes(1, SLOTS))).cast("q")
    row = PeerLoadRow(cells, SLOTS, 0)
    row.set_loads({"e-9": (3, 3, 0.25, 5.0, 2)})
    assert not any(cells)
    row.set_slots({"e-9": 1})
    assert list(cells[5:10]) == [3, 3, 250_000, 5, 2]
    row.set_loads({})
    assert shared_memory.is_slot_idle(cells, SLOTS, 1, 1)


def test_prompts_for_prefill_engines_are_counted_apart() -> None:
    counts = HotPrefixCounter()
    counts.update_fleet(fleet(Role.SERVE, Role.SERVE, Role.SERVE, Role.PREFILL, Role.PREFILL, Role.PREFILL))
    for number in range(30):
        counts.on_dispatch(KEY, f"e-{number % 3}", chain("serve"), 0.0)
        counts.on_dispatch(KEY, f"e-{3 + number % 3}", chain("prefill"), 0.0)
        counts.on_dispatch(KEY, "nobody", chain("lost"), 0.0)
        counts.on_dispatch("ns/other", "e-0", chain("lost"), 0.0)
    table = counts.table(KEY)
    assert unpack_hashes(table.serving) <= set(chain("serve").hashes)
    assert unpack_hashes(table.prefilling) <= set(chain("prefill").hashes)
    assert table.serving
    assert table.prefilling
    assert list(array("Q", table.serving)) == sorted(array("Q", table.serving))


def test_model_is_active_for_a_minute_and_a_departed_one_has_no_table() -> None:
    counts = HotPrefixCounter()
    assert counts.table(KEY) is None
    counts.update_fleet(fleet(Role.SERVE))
    assert counts.active_models(0.0) == []
    counts.on_dispatch(KEY, "e-0", chain("x"), 5.0)
    assert counts.active_models(5.0 + ACTIVE_SECONDS) == [KEY]
    assert counts.active_models(6.0 + ACTIVE_SECONDS) == []
    counts.update_fleet(Fleet())
    assert counts.table(KEY) is None


def test_the_count_goes_on_from_a_table_that_is_adopted() -> None:
    counts = HotPrefixCounter()
    counts.update_fleet(fleet(Role.SERVE, Role.SERVE, Role.SERVE))
    for _ in range(30):
        counts.on_dispatch(KEY, "e-0", chain("x"), 0.0)
    counts.start_from_table(KEY, HotPrefixTable())
    assert counts.table(KEY) == HotPrefixTable()

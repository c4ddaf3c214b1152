"""The rotation of streams that are read in a round."""

from fairlead_gateway.peers.supervisor.peer_exchange import BUSY_SECONDS, StreamRotation


def test_a_few_models_are_read_every_round() -> None:
    rotation = StreamRotation(10)
    rotation.set_models([f"m{number}" for number in range(10)])
    assert all(len(rotation.next_round(float(turn))) == 10 for turn in range(5))
    assert rotation.rounds_per_cycle() == 1


def test_of_many_the_busy_ones_are_read_every_round_and_the_others_take_turns() -> None:
    rotation = StreamRotation(20)
    models = [f"m{number}" for number in range(1_000)]
    rotation.set_models(models)
    for busy in models[500:510]:
        rotation.on_activity(busy, 0.0)
    seen: set[str] = set()
    for turn in range(rotation.rounds_per_cycle()):
        read = rotation.next_round(0.01 * turn)
        assert len(read) == len(set(read)) <= 20
        assert set(models[500:510]) <= set(read)
        seen.update(read)
    assert seen == set(models)
    later = rotation.next_round(BUSY_SECONDS + 1.0)
    assert not set(models[500:510]) <= set(later)


def test_more_busy_ones_than_places_all_get_their_turn_and_leave_some_to_the_others() -> None:
    rotation = StreamRotation(8)
    models = [f"m{number}" for number in range(40)]
    rotation.set_models(models)
    for busy in models[:30]:
        rotation.on_activity(busy, 0.0)
    rounds = [rotation.next_round(0.1) for _ in range(rotation.rounds_per_cycle())]
    assert set().union(*rounds) == set(models)
    assert all(set(read) - set(models[:30]) for read in rounds)


def test_models_come_and_go() -> None:
    rotation = StreamRotation(2)
    rotation.set_models(["a", "b", "c"])
    rotation.on_activity("c", 0.0)
    rotation.set_models(["b", "d"])
    assert sorted(rotation.next_round(0.0)) == ["b", "d"]

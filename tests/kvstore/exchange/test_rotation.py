"""Which streams are read in a round."""

from fairlead_kvstore.exchange.rotation import BUSY_SECONDS, Rotation


def test_a_few_models_are_read_every_round() -> None:
    rotation = Rotation(10)
    rotation.follow([f"m{number}" for number in range(10)])
    assert all(len(rotation.round(float(turn))) == 10 for turn in range(5))
    assert rotation.rounds() == 1


def test_of_many_the_busy_ones_are_read_every_round_and_the_others_take_turns() -> None:
    rotation = Rotation(20)
    models = [f"m{number}" for number in range(1_000)]
    rotation.follow(models)
    for busy in models[500:510]:
        rotation.woke(busy, 0.0)
    seen: set[str] = set()
    for turn in range(rotation.rounds()):
        read = rotation.round(0.01 * turn)
        assert len(read) == len(set(read)) <= 20
        assert set(models[500:510]) <= set(read)
        seen.update(read)
    assert seen == set(models)
    later = rotation.round(BUSY_SECONDS + 1.0)
    assert not set(models[500:510]) <= set(later)


def test_more_busy_ones_than_places_all_get_their_turn_and_leave_some_to_the_others() -> None:
    rotation = Rotation(8)
    models = [f"m{number}" for number in range(40)]
    rotation.follow(models)
    for busy in models[:30]:
        rotation.woke(busy, 0.0)
    rounds = [rotation.round(0.1) for _ in range(rotation.rounds())]
    assert set().union(*rounds) == set(models)
    assert all(set(read) - set(models[:30]) for read in rounds)


def test_models_come_and_go() -> None:
    rotation = Rotation(2)
    rotation.follow(["a", "b", "c"])
    rotation.woke("c", 0.0)
    rotation.follow(["b", "d"])
    assert sorted(rotation.round(0.0)) == ["b", "d"]

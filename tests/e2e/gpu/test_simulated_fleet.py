"""The comparison of a measured fleet with the simulator."""

from e2e.gpu.simulated_fleet import count_disorder


def test_only_pairs_that_the_simulator_tells_apart_have_an_order() -> None:
    assert count_disorder([(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]) == 0
    assert count_disorder([(1.0, 2.0), (2.0, 1.0), (3.0, 3.0)]) == 1
    assert count_disorder([(1.0, 1.01), (2.0, 1.0)]) == 0

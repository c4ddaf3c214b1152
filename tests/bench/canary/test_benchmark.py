"""The benchmark of canaries carries the goals that are checked in, and its results hold them."""

from fairlead_bench.canary import HEALTHY, REGRESSIONS, rollback_minutes


def test_a_regression_is_found_between_the_first_minute_and_its_time() -> None:
    case = REGRESSIONS["TPOT 30 % higher"]
    minutes = rollback_minutes(case, 1)
    assert minutes is not None
    assert 1.0 < minutes <= case.minutes
    assert rollback_minutes(HEALTHY["the same revision"], 1) is None

"""The bound on instances with long prompts."""

import pytest

from fairlead_gateway.admission.admission_policy import LengthClasses

ENGINES = 8
SHORT, LONG = (0.4, 0.02), (4.0, 0.7)
"""Objective and prefill of one, in seconds."""


def after(short_engines: float, long_engines: float, seconds: int = 120) -> LengthClasses:
    """Counts the engines that each class keeps busy, for so long."""
    pools = LengthClasses()
    for tick in range(100 * seconds):
        now = 0.01 * tick
        for (objective, own), engines in ((SHORT, short_engines), (LONG, long_engines)):
            for _ in range(int((now + 0.01) * engines / own) - int(now * engines / own)):
                pools.classify(objective, own, now)
    return pools


@pytest.mark.parametrize(
    ("short_engines", "long_engines", "bound", "late"),
    [
        (1.0, 7.0, 8, 7),  # all are needed: by the share of the work
        (3.0, 5.0, 6, 5),
        (1.6, 4.0, 5, 5),  # five are nine tenths busy with long ones, which leaves three; by the share it would be six
        (1.2, 2.0, 5, 5),  # three would be enough for the long ones, but short ones do not want more than three
        (0.1, 2.0, 8, 8),  # the rest is unused
        (1.0, 0.1, 2, 1),
    ],
)
def test_long_prompts_may_have_their_share_and_one_more_until_a_short_one_is_late(
    short_engines: float, long_engines: float, bound: int, late: int
) -> None:
    pools = after(short_engines, long_engines)
    assert pools.max_long_engines(ENGINES, 120.0) == bound
    assert pools.max_long_engines(ENGINES, 120.0, short_late=True) == late


def test_a_burst_of_long_prompts_may_use_idle_engines() -> None:
    pools = after(0.05, 0.0)
    for number in range(8):
        pools.classify(*LONG, 120.0 + 0.001 * number)
    assert pools.max_long_engines(ENGINES, 120.1) >= 6


def test_before_the_first_request_all_engines_are_available() -> None:
    assert LengthClasses().max_long_engines(ENGINES, 0.0) == ENGINES

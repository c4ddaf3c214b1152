"""Property tests with many examples: what is counted."""

from fairlead_bench.autoscaler.property_tests import PropertyRun, parse_examples, property_rows

STATISTICS = """
  - during generate phase (0.50 seconds):
    - Typical runtimes: ~ 0-1 ms, of which < 1ms in data generation
    - {passing} passing, 0 failing, and 3 invalid test cases
  - Stopped because {reason}
"""


def test_examples_are_those_that_hypothesis_counts() -> None:
    assert parse_examples(STATISTICS.format(passing=200, reason="settings.max_examples=200")) == (200, False)
    assert parse_examples(STATISTICS.format(passing=12, reason="nothing left to do")) == (12, True)


def test_tests_pass_with_all_examples_or_all_cases() -> None:
    runs = [PropertyRun(True, 50), PropertyRun(True, 3, True), PropertyRun(False, 50), PropertyRun(True, 49)]
    assert [row.value for row in property_rows(runs, 50)] == [2.0, 1.0, 1.0]

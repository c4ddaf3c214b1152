"""1,000 bodies under policies, 250 for the checking process; ``make nightly`` tries a million."""

from fuzzing.ci import holds


def test_policy_on_body_fields() -> None:
    holds("policy", 1_000)


def test_bodies_that_a_process_checks() -> None:
    holds("body_check", 250)

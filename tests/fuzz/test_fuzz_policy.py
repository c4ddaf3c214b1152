"""6,000 bodies under policies and 4,000 for the checking process; ``make nightly`` tries more."""

from fuzzing.ci import holds


def test_policy_on_body_fields() -> None:
    holds("policy", 6_000)


def test_bodies_that_a_process_checks() -> None:
    holds("body_check", 4_000)

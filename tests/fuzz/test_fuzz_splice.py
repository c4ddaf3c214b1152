"""1,000 request bodies; ``make nightly`` tries 2.7 million with another seed."""

from fuzzing.ci import holds


def test_request_bodies() -> None:
    holds("splice", 1_000)

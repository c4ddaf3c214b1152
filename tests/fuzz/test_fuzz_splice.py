"""35,000 request bodies; ``make nightly`` tries millions more with another seed."""

from fuzzing.ci import holds


def test_request_bodies() -> None:
    holds("splice", 35_000)

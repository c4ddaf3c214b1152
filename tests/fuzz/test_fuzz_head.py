"""1,000 client connections; ``make nightly`` tries 2.2 million with another seed."""

from fuzzing.ci import holds


def test_client_connections() -> None:
    holds("head", 1_000)

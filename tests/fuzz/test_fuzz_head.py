"""30,000 client connections; ``make nightly`` tries millions more with another seed."""

from fuzzing.ci import holds


def test_client_connections() -> None:
    holds("head", 30_000)

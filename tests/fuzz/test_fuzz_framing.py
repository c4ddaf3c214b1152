"""8,000 chunked bodies and 12,000 headers and addresses; ``make nightly`` tries more."""

from fuzzing.ci import holds


def test_chunk_extensions_and_trailers() -> None:
    holds("chunked", 8_000)


def test_headers_of_passed_gateways() -> None:
    holds("hops", 4_000)


def test_addresses_of_endpoints() -> None:
    holds("address", 4_000)


def test_addresses_of_engines_kv_events() -> None:
    holds("publisher", 4_000)

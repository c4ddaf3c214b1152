"""250 chunked bodies and 2,000 headers and addresses; ``make nightly`` tries a million."""

from fuzzing.ci import holds


def test_chunk_extensions_and_trailers() -> None:
    holds("chunked", 250)


def test_headers_of_passed_gateways() -> None:
    holds("hops", 250)


def test_addresses_of_endpoints() -> None:
    holds("address", 1_500)


def test_addresses_of_engines_kv_events() -> None:
    holds("publisher", 250)

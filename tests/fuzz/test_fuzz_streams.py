"""20,000 event streams and 15,000 other inputs of engines; ``make nightly`` tries millions more."""

from fuzzing.ci import holds


def test_event_streams() -> None:
    holds("sse", 20_000)


def test_what_engines_tell_of_themselves() -> None:
    holds("engine", 5_000)


def test_engine_connections() -> None:
    holds("upstream", 5_000)


def test_kv_events() -> None:
    holds("kv_events", 5_000)

"""500 event streams and 750 other inputs of engines; ``make nightly`` tries 3.1 million."""

from fuzzing.ci import holds


def test_event_streams() -> None:
    holds("sse", 500)


def test_what_engines_tell_of_themselves() -> None:
    holds("engine", 250)


def test_engine_connections() -> None:
    holds("upstream", 250)


def test_kv_events() -> None:
    holds("kv_events", 250)

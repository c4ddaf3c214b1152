"""The committed record of real engines in pods is whole, and of the code that engines meet now."""

import json

from e2e.vllm.pods import engine_code


def test_record_holds_and_is_of_the_present_code() -> None:
    record = json.loads(engine_code.RECORD.read_text())
    parts = record["parts"]
    assert set(engine_code.PARTS) <= parts.keys(), f"parts are missing; renew it: {engine_code.RENEWAL}"
    for name in engine_code.PARTS:
        assert parts[name]["held"], (name, parts[name]["checks"])
        assert parts[name]["revision"]
        assert all(step["seconds"] > 0 for step in parts[name]["checks"].values())
    changed = (
        "code that real engines meet changed since the record of their runs in pods: one of\n  "
        + "\n  ".join(engine_code.PATHS)
        + f"\nRenew the record and commit it: {engine_code.RENEWAL}"
    )
    assert record["versions"]["engine_code"] == engine_code.digest(), changed


def test_digest_reads_code_alone() -> None:
    source = 'def add(a: int) -> int:\n    """Adds."""\n    return a + 1  # more\n'
    assert engine_code.code_of(source) == engine_code.code_of("def add(a: int)->int: return (a + 1)")
    assert engine_code.code_of(source) != engine_code.code_of(source.replace("+ 1", "+ 2"))

"""The last use of API keys, to the minute."""

import pytest

from fairlead_gateway.tenants.supervisor import access_service
from fairlead_gateway.tenants.supervisor.access_service import KeyUseLog


def test_the_last_use_is_a_minute_and_unknown_before_the_first() -> None:
    now = 1_795_000_039.5
    log = KeyUseLog(lambda: now)
    assert log.started_at == now
    assert log.used_at(b"a") is None
    log.add([b"a", b"b"])
    assert log.used_at(b"a") == 1_795_000_020.0 - 1_795_000_020.0 % 60.0
    now += 120.0
    log.add([b"b"])
    assert log.used_at(b"b") == (log.used_at(b"a") or 0.0) + 120.0


def test_the_number_of_keys_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_service, "_MAX_KEYS", 2)
    log = KeyUseLog(lambda: 1_000.0)
    log.add([b"a", b"b"])
    log.add([b"a"])
    log.add([b"c"])
    assert [log.used_at(key) for key in (b"a", b"b", b"c")] == [960.0, None, 960.0]

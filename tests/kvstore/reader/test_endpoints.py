"""The address of an engine's KV events, from its own answer."""

import json

import pytest

from fairlead.errors import BadInput
from fairlead.fleet.model import Instance
from fairlead_kvstore.reader.endpoints import endpoints_from_answer

INSTANCE = Instance("a/8000/0", "default", "tiny", "main", "http://10.0.0.7:8000")


def events_of(endpoint: str) -> str:
    answer = {"0": {"enable_kv_cache_events": True, "endpoint": endpoint}}
    return endpoints_from_answer(json.dumps(answer).encode(), INSTANCE).events


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("tcp://*:5557", "tcp://10.0.0.7:5557"),
        ("tcp://localhost:65535", "tcp://10.0.0.7:65535"),
        ("tcp://*:05557", "tcp://10.0.0.7:5557"),
    ],
)
def test_address_has_the_engines_own_host_and_the_port_as_a_number(endpoint: str, address: str) -> None:
    assert events_of(endpoint) == address


@pytest.mark.parametrize("port", ["0", "65536", "000655360", "00000000000005557", "1" * 5_000, "٣", "+1", ""])
def test_port_that_no_socket_can_have_is_refused(port: str) -> None:
    with pytest.raises(BadInput, match="is not a TCP address"):
        events_of(f"tcp://*:{port}")


def test_engine_cannot_name_a_unix_socket() -> None:
    with pytest.raises(BadInput, match="is not a TCP address"):
        events_of("ipc:///run/events")

"""A fuzz target: where engines say that they publish KV events.

Whatever an engine answers, it is refused, or the address has the engine's own host and a valid
port. The second reader is the standard library's JSON parser.
"""

import json
import re
from collections.abc import Hashable
from typing import Any

from fuzzing.target import Target

from fairlead.errors import BadInput
from fairlead.fleet.model import Instance
from fairlead_kvstore.reader.endpoints import endpoints_from_answer
from fairlead_kvstore.reader.zmtp_connection import socket_address

_INSTANCES = [
    Instance("a/8000/0", "default", "tiny", "main", url, dp_rank=rank)
    for url in ("http://10.0.0.7:8000", "http://[fd00::7]:8000", "https://Engine.example:443")
    for rank in (None, 1)
]
_HOSTS = ("10.0.0.7", "[fd00::7]", "engine.example")
_ADDRESS = re.compile(r"tcp://(.+):([1-9][0-9]{0,4})")


def check(data: bytes) -> Hashable:
    """Checks an answer to `/kv_event_sources`."""
    kinds = []
    for number, instance in enumerate(_INSTANCES):
        rank = str(instance.dp_rank or 0)
        try:
            endpoints = endpoints_from_answer(data, instance)
        except BadInput as error:
            kinds.append(refusal(error.message, data, rank, _HOSTS[number // 2]))
            continue
        source = json.loads(data.decode(errors="replace"))[rank]
        assert source["enable_kv_cache_events"] is True
        assert source.get("publisher") in (None, "zmq")
        assert 0 < endpoints.buffer <= 1_000_000
        assert (endpoints.replay is None) or source.get("replay_endpoint") is not None
        for address, named in (
            (endpoints.events, source["endpoint"]),
            (endpoints.replay, source.get("replay_endpoint")),
        ):
            kinds.append(own_address(address, named, _HOSTS[number // 2]))
    return tuple(kinds)


def own_address(address: str | None, named: Any, host: str) -> str:
    """Checks that an address has the engine's host, and the port that it named."""
    if address is None:
        return "none"
    match = _ADDRESS.fullmatch(address)
    assert match is not None, address
    assert match[1] == host, "the engine redirects the indexer"
    assert 0 < int(match[2]) < 65_536, address
    assert socket_address(address) == (host.strip("[]"), int(match[2]))
    assert int(named.rpartition(":")[2]) == int(match[2]), "another port"
    return "own"


def refusal(message: str, data: bytes, rank: str, host: str) -> str:
    """Checks that no endpoint of the engine's own machine is taken for one that it connects to."""
    if "connects to" in message:
        named = json.loads(data.decode(errors="replace"))[rank]["endpoint"]
        assert named.rpartition(":")[0] not in ("tcp://*", f"tcp://{host}", "tcp://0.0.0.0"), named
    return message[:22]


_RANK = b'{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:5557","replay_endpoint":"tcp://*:5558","buffer_steps":100}'
WORDS = [
    b'"0":', b'"1":', b'"enable_kv_cache_events":true', b'"publisher":"zmq"', b'"publisher":null', b'"publisher":"kafka"',
    b'"endpoint":', b'"tcp://*:5557"', b'"tcp://10.0.0.7:5557"', b'"tcp://[fd00::7]:5557"', b'"tcp://engine.example:1"',
    b'"tcp://127.0.0.1:70000"', b'"tcp://localhost:00005557"', b'"tcp://0.0.0.0:0"', b'"tcp://evil:1"', b'"ipc:///tmp/x"',
    b'"inproc://x"', b'"tcp://*:5557;tcp://evil:1"', b'"tcp://*:000655360"', b'"tcp://*:\xd9\xa1"', b'"tcp://[::]:65535"',
    b'"replay_endpoint":', b'"buffer_steps":', b"99999999999", b"-1", b"null", b"true", b"{", b"}", b",", b":",
    b"tiny", b"\xff", b"\\u0000", b"x" * 300,
]  # fmt: skip
PIECES = re.compile(rb'"(?:[^"\\]|\\.)*"?|[{}\[\],@]|[^"{}\[\],@]+', re.DOTALL)
SEEDS = [
    b'{"0":' + _RANK + b"}",
    b'{"0":' + _RANK + b',"1":' + _RANK.replace(b"555", b"655") + b"}",
    b'{"0":' + _RANK.replace(b"*", b"10.0.0.7") + b"}",
    b'{"0":' + _RANK.replace(b"*", b"indexer") + b"}",
    b'{"1":{"enable_kv_cache_events":true,"endpoint":"tcp://[::1]:1"}}',
]
PUBLISHER = Target("publisher", "addresses of engines' KV events", check, SEEDS, WORDS, PIECES, 0.02)

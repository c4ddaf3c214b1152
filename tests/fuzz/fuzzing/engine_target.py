"""A fuzz target: metrics pages, and the transfer objects from prefill to decode engines.

Engines do not check transfer objects: an incomplete one blocks a decode forever.
"""

import json
import math
import re
from collections.abc import Hashable
from typing import Any

from fuzzing.target import Target

from fairlead.engines.vllm import Vllm
from fairlead_gateway.disaggregation.worker.kv_connectors import nixl_decode_fields, parse_mooncake_engine_id
from fairlead_gateway.upstream.usage import parse_in_band_error

_VLLM = Vllm()
_SAMPLE = re.compile(rb"(vllm:[a-z_]+)(\{.*| .*)? ([^ ]+)")


def check(data: bytes) -> Hashable:
    """Checks the sums of a metrics page, and that only complete transfer objects pass."""
    if data[:1] == b"{":
        return handed(data)
    signals = _VLLM.parse_signals(data)
    for name, series in (("running", b"vllm:num_requests_running"), ("waiting", b"vllm:num_requests_waiting")):
        value = getattr(signals, name)
        assert value is None or math.isfinite(value), name
        assert value == total(data, series), name
    rank = _VLLM.parse_signals(data, 1)
    assert rank.running is None or signals.running is not None
    return tuple(
        signal is None
        for signal in (signals.running, signals.waiting, signals.kv_usage, signals.sleeping, rank.running)
    )


def total(page: bytes, series: bytes) -> float | None:
    """Returns the sum of a series' samples, line by line."""
    values = []
    for line in page.split(b"\n")[:-1]:
        sample = _SAMPLE.fullmatch(line.rstrip())
        if sample is None or sample[1] != series:
            continue
        try:
            value = float(sample[3])
        except ValueError:
            continue
        if math.isfinite(value):
            values.append(value)
    return sum(values) if values and math.isfinite(sum(values)) else None


def handed(data: bytes) -> Hashable:
    """Checks responses of prefill engines and bootstrap servers."""
    fields = nixl_decode_fields(data)
    name = parse_mooncake_engine_id(data, 0)
    assert name is None or name
    fault = parse_in_band_error(data, 500)
    assert 400 <= fault.status <= 599
    if fields is None:
        return "no hand-off", name is None, fault.status
    params: Any = json.loads(data.decode(errors="replace"))["kv_transfer_params"]
    assert json.loads(fields["kv_transfer_params"]) == params, "another object"
    assert params["do_remote_prefill"] is True
    blocks = params["remote_block_ids"]
    assert blocks
    assert all(group and all(type(block) is int for block in group) for group in blocks)
    assert all(
        isinstance(params[key], str) and params[key] for key in ("remote_engine_id", "remote_request_id", "remote_host")
    )
    assert 0 < params["remote_port"] < 65_536
    assert params["tp_size"] > 0
    return "hand-off", tuple(sorted(params))


_WHOLE = (
    b'{"id":"a","kv_transfer_params":{"do_remote_prefill":true,"do_remote_decode":false,"remote_block_ids":[[1,2]],'
    b'"remote_engine_id":"e","remote_request_id":"r","remote_host":"h","remote_port":5600,"tp_size":1}}'
)
_PAGE = b"""# HELP vllm:num_requests_running Number of requests
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a {b} engine=\\"1\\" \\\\ 7"} 3.0
vllm:num_requests_running{engine="1",model_name="a"} 1.0
vllm:num_requests_waiting{engine="0"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 100.0
vllm:gpu_cache_usage_perc{engine="0"} 0.5
vllm:engine_sleep_state{engine="0",sleep_state="awake"} 0.0
"""
WORDS = [
    b"vllm:num_requests_running", b"vllm:num_requests_waiting", b'{engine="1"}', b" 3.0\n", b" NaN\n", b" +Inf\n",
    b" -Inf\n", b" 1e999\n", b" -1\n",
    b" \n", b"\n", b"\r\n", b" ", b"{", b"}", b"#", b'"', b"\\", b"\xff", b"\0", b"1_0", b"0x1", b"vllm:", b",",
    b":", b"[", b"]", b"null", b"true",
    b'"kv_transfer_params":', b'"remote_block_ids":[]', b'"remote_block_ids":[[]]', b'"remote_port":0',
    b'"tp_size":0', b'"remote_host":""', b'"code":"503"',
    b'"code":"\xd9\xa3\xd9\xa3\xd9\xa3"', b'"code":"\xc2\xb2"', b'"0":{"engine_id":"x"}', b'"message":"m"',
    b'"code":1e3', b'"503"', b'"\xc2\xb2"', b'"\xd9\xa3\xd9\xa3\xd9\xa3"', b'"' + b"9" * 5_000 + b'"',
    b'"remote_block_ids":[[1.5]]',
]  # fmt: skip
SEEDS = [_PAGE, _PAGE.replace(b"\n", b"\r\n"), _WHOLE, b'{"0":{"engine_id":"x"}}', b'{"message":"full","type":"x","code":503}',
         b'{"message":"full","code":"503"}', b'{"remote_port":1,"kv_transfer_params":{}}']  # fmt: skip
PIECES = re.compile(rb'"(?:[^"\\]|\\.)*"?|[{}\[\],:\n ]|[^"{}\[\],:\n ]+', re.DOTALL)
ENGINE = Target("engine", "metrics pages and hand-off objects of engines", check, SEEDS, WORDS, PIECES, 0.05)

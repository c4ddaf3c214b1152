"""Values that leave a process keep their encoding, whatever their classes and fields are called.

``recorded_encodings.json`` is of an earlier release. It holds a sample of each struct in
MessagePack, an answer of the autoscaler, and answers of the management API with their fields.
Messages between a supervisor and its own workers are not recorded: both ends always come from one
release.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fairlead import management_api
from fairlead_autoscaler.core.settings import DEFAULT_VALUES
from fairlead_autoscaler.history.recorder import TickRecord
from fairlead_gateway.supervisor.management.schemas import schema_of
from fairlead_testing.struct_samples import encoded, struct_classes

RECORDED = json.loads((Path(__file__).parent / "recorded_encodings.json").read_text())
PACKAGES = (
    "fairlead",
    "fairlead_gateway",
    "fairlead_kvstore",
    "fairlead_autoscaler",
    "fairlead_operator",
    "fairlead_cli",
    "fairlead_downloader",
    "fairlead_sim",
)


@pytest.fixture(scope="module")
def encodings() -> frozenset[str]:
    return frozenset(encoded(cls) for cls in struct_classes(PACKAGES))


@pytest.mark.parametrize("recorded", RECORDED["structs"], ids=range(len(RECORDED["structs"])))
def test_each_recorded_struct_is_still_encoded_the_same(recorded: str, encodings: frozenset[str]) -> None:
    assert recorded in encodings, f"no struct encodes to {msgspec.msgpack.decode(bytes.fromhex(recorded))}"


@pytest.mark.parametrize("name", RECORDED["answers"])
def test_an_answer_of_an_earlier_gateway_is_read(name: str) -> None:
    recorded = msgspec.msgpack.decode(bytes.fromhex(RECORDED["answers"][name]))
    assert _contains(msgspec.to_builtins(msgspec.convert(recorded, getattr(management_api, name))), recorded)


def _contains(read: Any, recorded: Any) -> bool:
    if isinstance(recorded, dict):
        return all(_contains(read[name], value) for name, value in recorded.items())
    if isinstance(recorded, list):
        return all(_contains(*pair) for pair in zip(read, recorded, strict=True))
    return bool(read == recorded)


def test_tick_records_keep_their_fields_and_flat_settings() -> None:
    recorded = msgspec.msgpack.decode(bytes.fromhex(RECORDED["tick_records"]))["models"]
    records = msgspec.convert(recorded, dict[str, TickRecord])
    assert _contains(msgspec.json.decode(msgspec.json.encode(records)), recorded)
    renamed = {"min_goal", "max_goal", "min_window_seconds"}
    assert [set(DEFAULT_VALUES) - set(record["settings"]) for record in recorded.values()] == [renamed]
    for record in records.values():
        read = record.scaling_settings.flat()
        assert {name: read[name] for name in DEFAULT_VALUES.keys() - renamed} == {
            name: record.settings[name] for name in DEFAULT_VALUES.keys() - renamed
        }


def test_models_of_the_management_api_keep_their_fields() -> None:
    types = [
        value for value in vars(management_api).values() if isinstance(value, type) and value is not msgspec.Struct
    ]
    fields = [sorted(schema_of(answer).model_fields) for answer in types]
    assert [names for names in RECORDED["models"] if names not in fields] == []

"""Values that leave a process keep their encoding, whatever their classes and fields are called.

``recorded_encodings.json`` is of an earlier release. It holds a sample of each struct in
MessagePack, an answer of the autoscaler, and the fields of each model of the management API.
Messages between a supervisor and its own workers are not recorded: both ends always come from one
release.
"""

import json
from pathlib import Path

import msgspec
import pytest
from pydantic import BaseModel

from fairlead_autoscaler.core.settings import DEFAULT_VALUES
from fairlead_autoscaler.history.recorder import TickRecord
from fairlead_gateway.supervisor.management import schemas
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


def test_tick_records_keep_their_fields_and_flat_settings() -> None:
    recorded = msgspec.msgpack.decode(bytes.fromhex(RECORDED["tick_records"]))["models"]
    records = msgspec.convert(recorded, dict[str, TickRecord])
    assert msgspec.json.decode(msgspec.json.encode(records)) == recorded
    renamed = {"min_goal", "max_goal", "min_window_seconds"}
    assert [set(DEFAULT_VALUES) - set(record["settings"]) for record in recorded.values()] == [renamed]
    for record in records.values():
        read = record.scaling_settings.flat()
        assert {name: read[name] for name in DEFAULT_VALUES.keys() - renamed} == {
            name: record.settings[name] for name in DEFAULT_VALUES.keys() - renamed
        }


def test_models_of_the_management_api_keep_their_fields() -> None:
    models = [value for value in vars(schemas).values() if isinstance(value, type) and issubclass(value, BaseModel)]
    fields = [sorted(item.alias or name for name, item in model.model_fields.items()) for model in models]
    assert [names for names in RECORDED["models"] if names not in fields] == []

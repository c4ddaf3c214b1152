"""Adapters of a fleet file: read, written again, and refused with line and fix."""

import pytest

from fairlead.adapters.model import LoraAdapter
from fairlead.errors import ManifestError
from fairlead.fleet.file.format import format_fleet_file, parse_fleet_file
from fairlead.limits import Limits

FLEET = """
models:
  - name: tiny
    servedNames: [small]
    adapterSlots: 4
    adapters:
      - {name: sql, source: /adapters/sql}
      - {name: acme/legal, source: acme/legal-lora}
    instances: [{url: "http://127.0.0.1:9001"}]
"""


def test_adapters_come_back_as_they_were_written() -> None:
    fleet = parse_fleet_file(FLEET, file="fleet.yaml")
    model = fleet.models["default/tiny"]
    assert model.adapters == (LoraAdapter("sql", "/adapters/sql"), LoraAdapter("acme/legal", "acme/legal-lora"))
    assert model.adapter_slots == 4
    assert parse_fleet_file(format_fleet_file(fleet), file="again.yaml").models == fleet.models


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ("[{name: tiny, source: /a}]", "the model default/tiny has the name"),
        ("[{name: small, source: /a}]", "the model default/tiny has the name"),
        ("[{name: alias, source: /a}]", "the route default/alias has the name"),
        ("[{name: a, source: /a}, {name: a, source: /b}]", "an adapter of the model default/tiny has the name"),
        ("[{name: default/a, source: /a}]", "it begins with a namespace that holds models"),
        ('[{name: a, source: ""}]', "adapters[0].source"),
        ("[{name: a}]", "adapters[0].source"),
        ("[{name: a, source: /a}, {name: b, source: /b}, {name: c, source: /c}]", "3 adapters; at most 2"),
    ],
)
def test_wrong_adapters_are_refused_with_their_place(adapters: str, message: str) -> None:
    text = f"""
models:
  - name: tiny
    servedNames: [small]
    adapters: {adapters}
    instances: [{{url: "http://127.0.0.1:9001"}}]
routes:
  - {{name: alias, targets: [{{model: tiny}}]}}
"""
    with pytest.raises(ManifestError) as refused:
        parse_fleet_file(text, file="fleet.yaml", limits=Limits(adapters=2))
    assert message in str(refused.value)
    assert "fix:" in str(refused.value)


def test_engines_without_the_api_serve_no_adapters() -> None:
    text = FLEET.replace(':9001"}', ':9001", engine: llamacpp}')
    with pytest.raises(ManifestError, match="llamacpp load no adapters at run time"):
        parse_fleet_file(text, file="fleet.yaml")


def test_engines_that_hand_kv_over_serve_no_adapters() -> None:
    text = """
models:
  - name: tiny
    kvTransfer: nixl
    adapters: [{name: sql, source: /a}]
    instances:
      - {url: "http://127.0.0.1:9001", role: Prefill}
      - {url: "http://127.0.0.1:9002", role: Decode}
"""
    with pytest.raises(ManifestError, match="serves no adapters"):
        parse_fleet_file(text, file="fleet.yaml")

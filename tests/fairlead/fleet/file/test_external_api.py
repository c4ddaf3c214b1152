"""APIs that others run in a fleet file."""

import pytest

from fairlead.errors import ManifestError
from fairlead.fleet.file import format_fleet_file, parse_fleet_file

FILE = """\
models:
  - name: own
    instances: [{url: "http://127.0.0.1:9001"}]
  - name: small
    auth: {tokenEnv: PROVIDER_KEY}
    instances: [{url: "https://api.example.com/openai/v1", engine: OpenAI, servedModelName: gpt-4o-mini}]
  - name: large
    auth: {tokenEnv: OTHER_KEY}
    instances: [{url: "https://api.example.com/openai/v1", engine: openai, servedModelName: gpt-4o}]
routes:
  - name: assistant
    targets: [{model: own}]
    onFailure: [{when: [Unavailable], to: small}]
"""


def test_models_at_one_address_are_kept_apart() -> None:
    fleet = parse_fleet_file(FILE, file="fleet.yaml")
    (small,), (large,) = fleet.instances["default/small"], fleet.instances["default/large"]
    assert (small.id, small.url) == ("api.example.com/443/openai/default/small/0", "https://api.example.com:443/openai")
    assert small.address != large.address
    assert [model.leaves_cluster for model in fleet.models.values()] == [True, False, True]
    again = parse_fleet_file(format_fleet_file(fleet), file="fleet.yaml")
    assert again == fleet


def test_model_has_one_kind_of_instances() -> None:
    mixed = FILE.replace(
        '[{url: "http://127.0.0.1:9001"}]', '[{url: "http://a:1"}, {url: "http://b:1", engine: OpenAI}]'
    )
    with pytest.raises(ManifestError) as raised:
        parse_fleet_file(mixed, file="fleet.yaml")
    (problem,) = raised.value.problems
    assert problem.field == "models[0].instances[1].engine"
    assert "engines of its own, or an API that others run" in problem.message

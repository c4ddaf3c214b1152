"""The gateway and the requests of a replay."""

from pathlib import Path

import pytest

from fairlead.errors import BadInput
from fairlead_cli.replay.command import find_gateway
from fairlead_cli.replay.traffic import load_traffic
from fairlead_testing.cli.command_line import run_program

FLEET = """\
models:
  - name: one
    routing: {preset: round-robin}
    instances: [{url: "http://127.0.0.1:9001", profile: 910b4}, {url: "http://127.0.0.1:9002", state: Draining}]
"""
URL = "http://127.0.0.1:1"


def fleet_file(tmp_path: Path, text: str = FLEET) -> Path:
    file = tmp_path / "fleet.yaml"
    file.write_text(text)
    return file


def test_only_model_of_a_fleet_file_is_chosen_with_ready_instances(tmp_path: Path) -> None:
    gateway = find_gateway(url=URL, manage=None, fleet_file=fleet_file(tmp_path), model=None)
    assert gateway.model == "default/one"
    assert [instance.url for instance in gateway.instances] == ["http://127.0.0.1:9001"]
    assert gateway.fleet_model is not None
    assert gateway.fleet_model.preset == "round-robin"


def test_model_is_required_without_a_fleet_file() -> None:
    assert find_gateway(url=URL, manage="http://127.0.0.1:2", fleet_file=None, model="m").instances == ()
    with pytest.raises(BadInput, match="the model to query"):
        find_gateway(url=URL, manage=None, fleet_file=None, model=None)


def test_unknown_model_error_lists_known_models(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="default/one"):
        find_gateway(url=URL, manage=None, fleet_file=fleet_file(tmp_path), model="two")


def test_unreadable_fleet_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        find_gateway(url=URL, manage=None, fleet_file=tmp_path / "none.yaml", model=None)


def test_traffic_name_is_trace_or_generated(tmp_path: Path) -> None:
    generated = load_traffic(None, limit=20, rate=6.5, seed=3)
    assert generated.name == "generated conversations (seed 3)"
    assert generated.requests[-1].arrival == pytest.approx(19 / 6.5)
    file = tmp_path / "hour.jsonl"
    lines = (
        f'{{"timestamp": {1000 * second}, "input_length": 5, "output_length": 2, "hash_ids": [0]}}'
        for second in (0, 0, 2)
    )
    file.write_text("\n".join(lines))
    recorded = load_traffic(file, limit=None, rate=None)
    assert recorded.name == "hour.jsonl"
    assert [request.arrival for request in recorded.requests] == [0.0, 1.0, 2.0]
    assert recorded.rate == pytest.approx(1.0)


@pytest.mark.parametrize(("limit", "rate"), [(0, None), (5, 0.0), (5, -1.0)])
def test_zero_requests_and_zero_rate_are_refused(limit: int, rate: float | None) -> None:
    with pytest.raises(BadInput):
        load_traffic(None, limit=limit, rate=rate)


def test_unreachable_gateway_is_a_one_line_error() -> None:
    done = run_program("replay", "--url", URL, "--model", "m", "--limit", "2")
    assert done.returncode == 2
    assert "nothing answers at 127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr

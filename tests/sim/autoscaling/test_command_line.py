"""``python -m fairlead_sim.autoscaling``: its controllers, settings and errors."""

from dataclasses import replace

import pytest

from fairlead_sim.autoscaling import __main__ as command
from fairlead_sim.autoscaling.scenarios import SCENARIOS
from fairlead_testing.pytest_hooks.nightly import shortened

STEP = SCENARIOS[command.EXAMPLE_SCENARIO](1, None)


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        command,
        "SCENARIOS",
        {command.EXAMPLE_SCENARIO: lambda seed, traces: replace(STEP, seconds=shortened(900.0, 400.0))},
    )


def line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Returns the printed line without the run time."""
    assert command.main(arguments) == 0
    return capsys.readouterr().out.rpartition("  ")[0]


def test_a_preset_and_a_setting_make_another_controller(capsys: pytest.CaptureFixture[str]) -> None:
    core = line(capsys)
    assert core == line(capsys, "--controller", "fairlead_autoscaler.core:ScalingCore")
    wary = line(capsys, "--set", "down_room=9")
    preset = line(capsys, "--preset", "hpa-concurrency")
    turned = line(capsys, "--preset", "hpa-concurrency", "--set", "target=1")
    assert len({core, wary, preset, turned}) == 4


def test_the_fleet_is_another_plant_and_shows_what_was_cached(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--replicas", "4"]) == command.main(["--replicas", "4", "--fleet"]) == 0
    aggregated, fleet, cached = capsys.readouterr().out.splitlines()
    assert aggregated.rpartition("  ")[0] != fleet.rpartition("  ")[0]
    assert 5.0 < float(cached.split()[1]) < 30.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "no scenario is called 'nope'"),
        (["--preset", "hpa"], "no preset is called 'hpa' (known: apa-concurrency, "),
        (
            ["--preset", "dynamo", "--set", "target=1"],
            "dynamo has no parameter target (parameters: headroom, interval_seconds)",
        ),
        (["--preset", "hpa-kv", "--set", "target=much"], "--set: the value in 'target=much' is not a number"),
        (["--set", "spread=1"], "--set: 'spread' is not a setting"),
        (["--replicas", "3", "--set", "margin=1"], "--set cannot be combined with --controller or --replicas"),
        (["--controller", "no.such:Thing"], "No module named 'no'"),
    ],
)
def test_what_there_is_not_is_refused_in_a_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.replace("\n", " ")

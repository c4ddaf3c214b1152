"""``fairlead explain scaling`` and ``fairlead replay-scaling``, from arguments to exit codes."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from fairlead.errors import BadInput
from fairlead_autoscaler.core import GatewayTraffic, ModelSpec, Observation, PoolObservation, PoolSpec, ScalingCore
from fairlead_autoscaler.history.recorder import TickRecord, encode_record
from fairlead_cli.app import build_app
from fairlead_cli.scaling.decision_inputs import parse_moment
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer, ReceivedRequest

NOW = datetime(2026, 11, 21, 14, 0).timestamp()


def looks(name: str = "default/tiny") -> list[TickRecord]:
    model = ModelSpec(name, 2.0, None, (PoolSpec("main", maximum=4),))
    core, found = ScalingCore(model), []
    for tick in range(5):
        before = core.state
        seen = Observation(5.0 * tick, GatewayTraffic(3.0, 900.0), {"main": PoolObservation(1, 1, replicas=())})
        found.append(TickRecord(NOW + 5.0 * tick, model, seen, core.step(seen), before=before))
    return found


def autoscaler_response(request: ReceivedRequest) -> CannedResponse:
    """Answers as the autoscaler's port does."""
    parts = urlsplit(request.path)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    if parts.path == "/autoscaling":
        return CannedResponse((msgspec.json.encode({"models": {"default/tiny": looks()[-1]}}),))
    if parts.path == "/autoscaling/look" and float(query.get("at", NOW)) >= NOW:
        at = float(query.get("at", NOW + 99))
        return CannedResponse((encode_record([look for look in looks() if look.wall <= at][-1]),))
    if parts.path == "/autoscaling/recording":
        return CannedResponse([encode_record(look) + b"\n" for look in looks()])
    return CannedResponse((b'{"error": {"message": "no look is kept from then"}}',), 404)


@pytest.fixture
def url() -> Iterator[str]:
    with CannedServer(autoscaler_response) as server:
        yield server.url


def exit_code(*words: str) -> int:
    """The exit code of the command line."""
    return int(build_app()(words, result_action="return_value"))


def test_explain_scaling_accepts_short_name_or_no_name(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (["tiny"], ["default/tiny"], []):
        assert exit_code("explain", "scaling", *name, "--autoscaler", url) == 0
        out = capsys.readouterr().out
        assert out.startswith("default/tiny at 2026-11-21 14:00:20, mode Auto\n")
        assert "planned: 1, by the rule " in out
        assert out.endswith(f"\nread from the autoscaler of {url}\n")


def test_explain_scaling_at_an_earlier_and_a_dropped_time(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("explain", "scaling", "tiny", "--at", f"{NOW + 7}", "--autoscaler", url) == 0
    assert "14:00:05" in capsys.readouterr().out
    assert exit_code("explain", "scaling", "tiny", "--at", f"{NOW - 7}", "--autoscaler", url) == 1
    assert "no look is kept from then" in capsys.readouterr().err


def test_wrong_usage_exits_2_and_unreachable_exits_3(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("explain", "scaling", "tiny", "--at", "soon", "--autoscaler", url) == 2
    assert "--at: 'soon' is not a time (write it like 5m (ago), 14:05 or 2026-11-21T14:05)" in capsys.readouterr().err
    assert exit_code("explain", "scaling", "huge", "--autoscaler", url) == 1
    unknown = f"MODEL: the model huge is not autoscaled; these are: default/tiny (read from the autoscaler of {url})"
    assert unknown in capsys.readouterr().err
    assert exit_code("explain", "scaling", "tiny", "--autoscaler", "http://127.0.0.1:9") == 3
    assert "--autoscaler is the address of an autoscaler's own port" in capsys.readouterr().err


def test_autoscaler_without_models_says_what_to_set(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairlead_cli.scaling.explain_command.query", lambda *_: b'{"models": {}}')
    assert exit_code("explain", "scaling", "--autoscaler", url) == 1
    assert "no model is autoscaled: set `autoscaling: {mode: Auto}`" in capsys.readouterr().err


def test_json_output_is_the_raw_answer(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("explain", "scaling", "tiny", "-o", "json", "--autoscaler", url) == 0
    assert json.loads(capsys.readouterr().out)["model"]["name"] == "default/tiny"


def test_replay_from_autoscaler_and_from_files_is_equal(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scaling-000001.jsonl").write_bytes(b"".join(encode_record(look) + b"\n" for look in looks()))
    assert exit_code("replay-scaling", "--autoscaler", url) == 0
    live = capsys.readouterr().out
    assert exit_code("replay-scaling", str(tmp_path)) == 0
    assert capsys.readouterr().out == live
    assert "default/tiny/main: 2026-11-21 14:00:00 to 2026-11-21 14:00:20, 5 observations\n" in live
    assert "no decision differs" in live


def test_differences_show_both_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scaling-000001.jsonl").write_bytes(b"".join(encode_record(look) + b"\n" for look in looks()))
    assert exit_code("replay-scaling", str(tmp_path), "--set", "freeze=true", "--model", "tiny", "-o", "json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert {one["other"]["rule"] for one in found["moments"]} == {"frozen"}
    assert exit_code("replay-scaling", str(tmp_path), "--model", "huge") == 1
    missing = "fairlead replay-scaling: --model: nothing is recorded of huge; recorded are: default/tiny\n"
    assert capsys.readouterr().err == missing
    assert exit_code("replay-scaling", str(tmp_path), "--since", f"{NOW + 99}") == 1
    assert "--since: nothing is recorded since" in capsys.readouterr().err
    assert exit_code("replay-scaling", str(tmp_path), "--set", "nothing=1") == 2
    capsys.readouterr()
    assert exit_code("replay-scaling", str(tmp_path / "gone")) == 2
    assert capsys.readouterr().err == f"fairlead replay-scaling: {tmp_path}/gone: No such file or directory\n"


def test_targets_are_changed_as_the_api_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scaling-000001.jsonl").write_bytes(b"".join(encode_record(look) + b"\n" for look in looks()))
    found = []
    for changes in (
        ("target=99%", "ttft=800ms", "tpot=100ms", "period=7d"),
        ("target=0.99", "ttft=0.8", "itl=0.1", "period=604800"),
    ):
        words = [word for change in changes for word in ("--set", change)]
        assert exit_code("replay-scaling", str(tmp_path), *words, "-o", "json") == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]


def test_invalid_replay_options_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (("--set", "target=99"), "--set: target is a share above 0 and at most 1, not 99 (write 0.99 for 99 %)"),
        (
            ("--set", "xyz=1"),
            "--set: 'xyz' is not a setting (there are target, ttft, itl, period and the core's, such as ",
        ),
        (
            ("--set", "tpot=soon"),
            "--set: tpot: 'soon' is neither a number nor a value as in spec.slo (write it like 800ms, 2s or 1m30s)",
        ),
        (("--set", "target=99 %"), "--set: target: '99 %' is neither a number nor a value as in spec.slo (write it "),
        (("--since", "yesterday"), "--since: 'yesterday' is not a time "),
    ):
        assert exit_code("replay-scaling", str(tmp_path), *words) == 2
        assert capsys.readouterr().err.startswith(f"fairlead replay-scaling: {said}")


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("5m", 300.0),
        ("-90s", 90.0),
        ("13:58", 120.0),
        ("13:59:30", 30.0),
        ("14:01", 86_340.0),
        ("2026-11-21T13:00", 3_600.0),
    ],
)
def test_time_formats_are_parsed(text: str, ago: float) -> None:
    assert NOW - parse_moment(text, NOW) == pytest.approx(ago)
    assert parse_moment("1750000000", NOW) == 1_750_000_000.0


def test_invalid_time_is_refused() -> None:
    for text in ("", "soon", "25:00", "14:05:99", "nan", "inf", "9" * 400):
        with pytest.raises(BadInput, match="--at"):
            parse_moment(text, NOW)

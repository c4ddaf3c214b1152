"""``fairlead explain scaling`` and ``fairlead replay-scaling``, from arguments to exit codes."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from fairlead.decision import DecisionInput
from fairlead.engine_profile import builtin_profile
from fairlead.errors import BadInput, FairleadError
from fairlead.fleet.model import Role
from fairlead_autoscaler.core import (
    GatewayTraffic,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolPlan,
    PoolSpec,
    ReplicaMetrics,
    ReplicaState,
    ScalingCore,
    SleepTier,
)
from fairlead_autoscaler.history.recorder import TickRecord, encode_record
from fairlead_autoscaler.history.replay import parse_changes
from fairlead_autoscaler.scaling_policy import EnforcedPlan
from fairlead_cli.app import build_app
from fairlead_cli.exit_codes import describe_error, report_failure
from fairlead_cli.scaling.explain_command import (
    INPUT_LABELS,
    decision_terms,
    parse_moment,
    render_inputs,
    render_look,
    render_terms,
)
from fairlead_cli.scaling.replay_command import to_core_change
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer, ReceivedRequest

NOW = datetime(2026, 11, 21, 14, 0).timestamp()


def looks(name: str = "default/tiny") -> list[TickRecord]:
    model = ModelSpec(name, 2.0, None, (PoolSpec("main", maximum=4),))
    core, records = ScalingCore(model), []
    for tick in range(5):
        before = core.state
        seen = Observation(5.0 * tick, GatewayTraffic(3.0, 900.0), {"main": PoolObservation(1, 1, replicas=())})
        records.append(TickRecord(NOW + 5.0 * tick, model, seen, core.step(seen), before=before))
    return records


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
    try:
        return int(build_app()(words, result_action="return_value"))
    except FairleadError as error:
        return report_failure(describe_error(error), 2)


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
    (comparison,) = json.loads(capsys.readouterr().out)
    assert {moment["other"]["rule"] for moment in comparison["moments"]} == {"frozen"}
    assert exit_code("replay-scaling", str(tmp_path), "--model", "huge") == 1
    missing = "fairlead: --model: nothing is recorded of huge; recorded are: default/tiny\n"
    assert capsys.readouterr().err == missing
    assert exit_code("replay-scaling", str(tmp_path), "--since", f"{NOW + 99}") == 1
    assert "--since: nothing is recorded since" in capsys.readouterr().err
    assert exit_code("replay-scaling", str(tmp_path), "--set", "nothing=1") == 2
    capsys.readouterr()
    assert exit_code("replay-scaling", str(tmp_path / "gone")) == 2
    assert capsys.readouterr().err == f"fairlead: {tmp_path}/gone: No such file or directory\n"


def test_targets_are_changed_as_the_api_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scaling-000001.jsonl").write_bytes(b"".join(encode_record(look) + b"\n" for look in looks()))
    outputs = []
    for changes in (
        ("target=99%", "ttft=800ms", "tpot=100ms", "period=7d"),
        ("target=0.99", "ttft=0.8", "itl=0.1", "period=604800"),
    ):
        words = [word for change in changes for word in ("--set", change)]
        assert exit_code("replay-scaling", str(tmp_path), *words, "-o", "json") == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


def test_invalid_replay_options_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
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
        assert capsys.readouterr().err.startswith(f"fairlead: {message}")


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


MODEL = ModelSpec(
    "default/tiny", 2.0, 0.05, (PoolSpec("main", maximum=9, profile=builtin_profile("l4-qwen8b")),), target=0.99
)

SEEN = GatewayTraffic(50.0, 60_000.0, 3.0, 1.0)


def tick_record(model: ModelSpec = MODEL, gateway: GatewayTraffic | None = SEEN) -> TickRecord:
    """The last of forty looks under load."""
    core = ScalingCore(model)
    replica = ReplicaMetrics("a", ReplicaState.READY, 500.0, 20.0, 9.0, 1.0, 0.4, 60_000.0, 5_000.0, 250.0, 50.0, 50.0)
    pools = {pool.name: PoolObservation(2, 1, 1, 0, (12.0,), (replica,)) for pool in model.pools}
    for tick in range(40):
        seen = Observation(5.0 * tick, gateway, pools, 1e9)
        plan = core.step(seen)
    return TickRecord(1e9, model, seen, plan, {"main": EnforcedPlan(7, 2, "need", "much came", 7)})


def test_tick_text_goes_from_observation_to_written_replicas() -> None:
    lines = render_look(tick_record())
    text = "\n".join(lines)
    assert lines[0].startswith("default/tiny at 2001-09-09 ")
    assert "99 % of the requests within TTFT 2s and TPOT 50ms, over 24h" in text
    assert "50 requests of 60,000 prompt tokens; 3 queued now, 1 gave up" in text
    assert "pool main: 2 desired; 1 ready, 1 starting (for 12s), 0 leaving" in text
    for label in ("capacity", "load now", "forecast", "attained", "goal", "need", "planned: "):
        assert any(line.strip().startswith(label) for line in lines), label
    assert lines[-1] == "  written: 2 -> 7"


def test_slo_that_grows_with_the_prompt_is_shown() -> None:
    lines = render_look(tick_record(replace(MODEL, ttft_per_kilo_token_seconds=0.4)))
    assert lines[1] == (
        "  99 % of the requests within TTFT 2s plus 400ms per 1,000 prompt tokens and TPOT 50ms, over 24h"
    )


def test_model_without_slo_shows_none() -> None:
    lines = render_look(tick_record(replace(MODEL, ttft_seconds=None, itl_seconds=None)))
    assert lines[1] == "  it has no SLO: sized by what the memory and the batch of an engine hold"


def test_inputs_come_in_order_of_the_computation() -> None:
    lines = [line.strip() for line in render_look(tick_record())]
    places = [
        next(n for n, line in enumerate(lines) if line.startswith(label))
        for label in ("goal", "load now", "need", "target", "of which")
    ]
    assert places == sorted(places)


def test_every_core_input_has_a_label() -> None:
    split = replace(
        MODEL,
        pools=tuple(
            PoolSpec(role.value, role, maximum=9, profile=builtin_profile("l4-qwen8b"))
            for role in (Role.PREFILL, Role.DECODE)
        ),
    )
    for record in (tick_record(), tick_record(gateway=None), tick_record(split)):
        for pool in record.plan.pools.values():
            assert set(pool.inputs) <= set(INPUT_LABELS)


def test_unknown_values_are_dashes_never_zeros() -> None:
    blind = tick_record(gateway=None)
    pool = blind.plan.pools["main"]
    unknown = replace(
        pool,
        inputs={
            "need_replicas": DecisionInput(None),
            "speed_factor": DecisionInput(1.0, 65.0),
            "strange": DecisionInput(3.5),
        },
    )
    seen = replace(blind.observation, pools={"main": PoolObservation(2, 2)})
    lines = render_look(
        replace(
            blind, observation=seen, plan=replace(blind.plan, pools={"main": unknown}), notes=("gateway a is missing",)
        )
    )
    assert "  the arrivals are not known: no gateway reported them" in lines
    assert "  note: gateway a is missing" in lines
    assert "  nothing is known of its engines" in lines
    assert any(line.split() == ["need", "–"] for line in lines)
    assert any(line.split()[:3] == ["engine's", "step", "1.00"] and line.endswith(", 1m5s old") for line in lines)
    assert any(line.split() == ["strange", "3.5"] for line in lines)


def test_bounds_of_this_hour_and_other_hours_are_shown() -> None:
    now = replace(tick_record(), rulings={"main": EnforcedPlan(7, 2, "need", "much came", 7, bounds=(2, 9))})
    lines = [line.split(maxsplit=2)[2] for line in render_look(now) if line.startswith(("  at least", "  at most"))]
    assert lines == ["2 replicas; 1 at other hours", "9 replicas"]
    together = replace(now, model=replace(MODEL, replicas_most=11))
    assert "  all pools together: 11 replicas at most" in render_look(together)
    assert not any("together" in line for line in render_look(now))


def test_unwritten_and_overridden_decisions_show_the_reason() -> None:
    held = EnforcedPlan(4, 2, "bounds", "9 lies outside 0 to 4", 9, "the mode is Advise")
    lines = render_look(replace(tick_record(), rulings={"main": held}))
    assert lines[-2:] == [
        "  decided: 4, by the rule bounds: 9 lies outside 0 to 4",
        "  not written (2 stays): the mode is Advise",
    ]
    same = render_look(replace(tick_record(), rulings={"main": EnforcedPlan(2, 2, "enough", "as it is", 2)}))
    assert same[-1] == "  nothing changes: 2 it is"


def test_sleeping_engines_are_shown_with_wake_time() -> None:
    tiered = replace(MODEL, pools=(replace(MODEL.pools[0], tier=SleepTier(3, least=1, wake_seconds=4.0)),))
    core = ScalingCore(tiered)
    replica = ReplicaMetrics("a", ReplicaState.READY, 500.0, 20.0, 1.0, 0.0, 0.1, 900.0, 200.0, 9.0, 1.0, 1.0)
    pool = PoolObservation(2, 1, 1, 0, (), (replica,), asleep_desired=2, asleep=2, waking=1)
    seen = Observation(0.0, SEEN, {"main": pool}, 1e9)
    plan = core.step(seen)
    ruling = EnforcedPlan(2, 2, "need", "much came", 2, asleep=1, asleep_desired=2)
    text = "\n".join(render_look(TickRecord(1e9, tiered, seen, plan, {"main": ruling})))
    assert "2 desired and 2 asleep; 1 ready, 1 starting, 1 of them waking, 0 leaving, 2 asleep" in text
    assert "waking takes          4s" in text
    assert set(plan.pools["main"].inputs) <= set(INPUT_LABELS)
    assert text.endswith("written: 2 and 2 asleep -> 2 and 1 asleep")


def test_ejected_replicas_and_their_replacements_are_shown() -> None:
    core = ScalingCore(MODEL)
    for tick, ejected in enumerate((0,) * 40 + (1,)):
        seen = Observation(
            5.0 * tick,
            GatewayTraffic(1.0, 500.0),
            {"main": PoolObservation(2, 2, replicas=(), ejected=ejected)},
            1e9,
        )
        plan = core.step(seen)
    count = plan.pools["main"].replicas
    text = "\n".join(render_look(TickRecord(1e9, MODEL, seen, plan, {"main": EnforcedPlan(count, 2, "up", "", count)})))
    assert "pool main: 2 desired; 2 ready (1 of them ejected), 0 starting" in text
    assert "ready, no answer      1 replica" in text
    assert "their replacements    1 replica" in text
    assert "every gateway has ejected 1 ready replica: 1 more in exchange" in text
    assert set(plan.pools["main"].inputs) <= set(INPUT_LABELS)


def test_neutral_inputs_are_hidden_and_need_shows_its_sum() -> None:
    inputs = {
        "output_growth": 1.0,
        "first_token_miss_factor": 1.0,
        "gap_miss_factor": 1.3,
        "level_replicas": 6.2,
        "spread_replicas": 0.55,
        "deviation_share": 0.08,
        "forecast_replicas": 6.9,
        "certain_replicas": 6.91,
        "recurring_burst_replicas": 0.0,
        "need_replicas": 7.53,
        "window_max_replicas": 7.53,
        "needed_here_replicas": 7.53,
    }

    def shown(**other: float) -> list[str]:
        values = {name: DecisionInput(value) for name, value in (inputs | other).items()}
        return [line for _, line in render_inputs(values)]

    def need(**other: float) -> str:
        return next(line for line in shown(**other) if line.startswith("  need  "))

    assert [line.split("  ")[1] for line in shown()] == [
        "slow answers",
        "load now",
        "its spread",
        "forecasts are off by",
        "forecast",
        "enough for it",
        "need",
        "most of the window",
    ]
    assert need().endswith("7.53 replicas = 6.91 forecast + 0.62 for errors of the forecast")
    assert need(need_replicas=6.91).endswith("6.91 replicas = 6.91 forecast")
    assert need(recurring_burst_replicas=8.0, need_replicas=8.1).endswith("+ 1.19 for errors of the forecast or bursts")
    assert any("needed of this pool" in line for line in shown(needed_here_replicas=0.9))


def test_target_attained_share_and_budget_are_shown() -> None:
    inputs = {"missed_share": 0.0042, "budget_left_requests": 1234.4, "allowed_miss_share": 0.0131}

    def shown(**other: float | None) -> list[str]:
        values = {name: DecisionInput(value) for name, value in (inputs | other).items()}
        return [line.split(maxsplit=1)[1] for _, line in render_inputs(values)]

    assert shown() == [
        "99.58 % of the period's requests in time",
        "of the budget    1,234 requests more may miss",
        "1.31 % of the next requests may miss",
    ]
    assert shown(missed_share=0.0)[0].startswith("100 %")
    assert shown(missed_share=0.00001)[0].startswith("99.99 %")
    assert shown(missed_share=None)[0] == "–"
    assert shown(budget_left_requests=-12.0)[1].endswith("none: 12 requests too many missed")


def test_other_targets_show_what_they_would_change() -> None:
    inputs = {
        name: DecisionInput(value)
        for name, value in {"need_replicas": 7.5, "need_at_95_replicas": 6.25, "need_at_99_9_replicas": 8.0}.items()
    }
    assert [line for _, line in render_inputs(inputs, 2.0)][1:] == [
        "  at a target of 95 %   6.25 replicas, 1.25 less: $2.50 an hour less",
        "  at a target of 99.9 % 8 replicas, 0.50 more: $1.00 an hour more",
    ]
    assert [line for _, line in render_inputs(inputs)][1].endswith("6.25 replicas, 1.25 less")


def test_terms_add_up_to_the_plan() -> None:
    model = replace(MODEL, pools=(replace(MODEL.pools[0], usd_per_hour=4.0),))
    inputs = {
        "level_replicas": 6.2,
        "certain_replicas": 6.91,
        "need_replicas": 7.53,
        "backlog_replicas": 0.2,
        "window_max_replicas": 7.8,
        "target_replicas": 8.0,
        "hedged_replicas": 1.0,
    }
    plan = PoolPlan(9, "hedged", "", {name: DecisionInput(value) for name, value in inputs.items()})
    assert sum(term.replicas for term in decision_terms(plan)) == pytest.approx(plan.replicas)
    assert [" ".join(line.split()) for line in render_terms(model, "main", plan)] == [
        "of which",
        "load now 6.20 $24.80 an hour",
        "forecast +0.71 $2.84 an hour",
        "errors of the forecast +0.62 $2.48 an hour",
        "waiting requests +0.20 $0.80 an hour",
        "window +0.07 $0.28 an hour",
        "rounding +0.20 $0.80 an hour",
        "hedged starts +1.00 $4.00 an hour",
    ]
    held = replace(plan, replicas=6, inputs={**plan.inputs, "hedged_replicas": DecisionInput(0.0)})
    assert any("rules and bounds -2.00 −$8.00" in " ".join(line.split()) for line in render_terms(model, "main", held))
    assert not any("$" in line for line in render_terms(MODEL, "main", plan)), "no price, no money"
    assert list(render_terms(model, "main", replace(plan, inputs={}))) == []


def test_terms_of_several_pools_end_at_their_demand() -> None:
    priced = replace(MODEL.pools[0], usd_per_hour=4.0)
    model = replace(MODEL, pools=(priced, replace(priced, name="other")))
    names = ("level_replicas", "certain_replicas", "need_replicas", "window_max_replicas", "target_replicas")
    plan = PoolPlan(2, "up", "", {name: DecisionInput(number) for number, name in enumerate(names, 1)})
    lines = list(render_terms(model, "other", plan))
    assert lines[0] == "  demand, in replicas of pool main"
    assert [" ".join(line.split()[:1]) for line in lines[1:]] == ["load", "forecast", "errors", "window"]
    assert not any("$" in line for line in lines), "a replica of another pool has another price"


def test_requests_judged_since_last_tick_are_shown() -> None:
    record = tick_record()
    (replica,) = record.observation.pools["main"].replicas or ()
    replica = replace(replica, ttft_counts=(11.0, 2.0), itl_counts=(1.0, 0.0))
    pool = replace(record.observation.pools["main"], replicas=(replica,))
    gateway = GatewayTraffic(13.0, 9_000.0)
    text = render_look(replace(record, observation=replace(record.observation, gateway=gateway, pools={"main": pool})))
    assert "  of those that were judged since then: 11 of 13 first tokens in time, 1 of 1 answer in time" in text


GUIDE = Path(__file__).parents[3] / "docs" / "concepts" / "autoscaling.md"


def test_what_the_guide_sets_are_settings() -> None:
    changes = re.findall(r"--set (\S+=\S+)", GUIDE.read_text())
    assert len(changes) >= 3
    parse_changes(map(to_core_change, changes))

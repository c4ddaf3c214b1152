"""The live view: its size, and the engines, decisions and events in it."""

import io
import shlex
from dataclasses import replace

import msgspec
import pytest
from rich.console import Console

from fairlead import management_api as api
from fairlead_cli.local.view.live_view import (
    Frame,
    ProcessView,
    StackSummary,
    curl_lines,
    render_frame,
    sdk_lines,
)
from fairlead_cli.management.client import GatewaySnapshot

KEY = "default/tiny"


def frame(engines: int = 8, decisions: int = 20, events: int = 20, *, answering: bool = True) -> Frame:
    ids = [f"main-{n}/400{n}/0" for n in range(engines)]
    processes = [ProcessView("gateway", "Ready"), ProcessView("redis", "Waiting", 2)]
    processes += [
        ProcessView(f"main-{n}", "Ready", n, 100 + n, KEY, (instance_id,)) for n, instance_id in enumerate(ids)
    ]
    instances = [
        api.InstanceOut(id=instance_id, engine="sim", state="Ready", in_flight=3, waiting=1, backlog_seconds=0.5)
        for instance_id in ids
    ]
    stats = {
        instance_id: api.InstanceStatsOut(
            requests=5, ttft_mean_seconds=0.2, itl_mean_seconds=0.04, share_of_work=1 / engines
        )
        for instance_id in ids
    }
    numbers = api.ModelStatsOut(in_flight=3, queue=1, window=api.SliceOut(cached_token_share=0.43), instances=stats)
    choice = api.ChoiceOut(instance=ids[0], rule="affinity", reason="a home " * 20)
    snapshot = GatewaySnapshot(
        api.FleetOut(
            version=1,
            models=[api.ModelOut(key=KEY, namespace="default", name="tiny", preset="dual-hash", instances=instances)],
        ),
        api.StatsOut(ready=True, uptime_seconds=1.0, models={KEY: numbers}),
        api.DecisionsOut(
            decisions=[
                api.DecisionOut(request_id=f"r{n}", model=KEY, wall=float(n), prompt_tokens=100.0, choices=[choice])
                for n in range(decisions)
            ]
        ),
    )
    event_lines = tuple((float(n), f"event {n}\nmore of it") for n in range(events))
    return Frame("http://u", "http://m", 61.0, tuple(processes), snapshot if answering else None, event_lines)


def render(frame: Frame, width: int = 80, height: int = 24, *, colour: bool = False) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=colour).print(render_frame(frame, height, width))
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("engines", [1, 8, 30, 200])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 20), (100, 30), (200, 60)])
def test_frame_fits_the_terminal(width: int, height: int, engines: int) -> None:
    lines = render(frame(engines), width, height)
    assert len(lines) < height
    assert max(map(len, lines)) <= width


def test_small_terminal_shows_engines_decisions_and_events() -> None:
    lines = render(frame())
    assert sum("● Ready" in line and line.startswith("main-") for line in lines) == 8
    assert any("→ main-0" in line and "affinity" in line for line in lines)
    assert any(line.endswith("event 19") for line in lines)
    assert any("hit rate 43 %" in line for line in lines)
    assert any("http://u/v1" in line and "http://m/" in line for line in lines)
    assert any("× redis ↻2" in line for line in lines)


def test_text_of_events_is_neither_markup_nor_terminal_control() -> None:
    lines = render(replace(frame(), events=((1.0, "main-0 does not sleep: [/INST] \x1b[2J"),)))
    assert any("[/INST] \N{REPLACEMENT CHARACTER}[2J" in line for line in lines)


def test_unhealthy_and_busiest_engines_are_shown_when_lines_are_few() -> None:
    many = frame(30)
    assert many.snapshot is not None
    instances = many.snapshot.fleet.models[0].instances
    busy = msgspec.structs.replace(instances[25], in_flight=9)
    models = [
        msgspec.structs.replace(many.snapshot.fleet.models[0], instances=[*instances[:25], busy, *instances[26:]])
    ]
    dead = replace(many.processes[20], phase="Waiting")
    changed_frame = replace(
        many,
        processes=(*many.processes[:20], dead, *many.processes[21:]),
        snapshot=replace(many.snapshot, fleet=api.FleetOut(version=1, models=models)),
    )
    lines = render(changed_frame)
    rows = [line.split()[0] for line in lines if line.startswith("main-")]
    assert {"main-18", "main-25"} <= set(rows)
    assert rows == sorted(rows, key=lambda name: int(name.removeprefix("main-")))
    assert f"… and {30 - len(rows)} more; the status page has all" in lines
    assert any("→ main-0" in line for line in lines)
    assert lines[-1].endswith("event 19")


def test_narrow_terminal_drops_the_bars() -> None:
    lines = render(frame(), 60, 24)
    assert sum(line.startswith("main-") and "● Ready" in line for line in lines) == 8
    assert not any("work in the last minute" in line for line in lines)


def test_processes_are_shown_before_the_gateway_answers() -> None:
    lines = render(frame(answering=False))
    assert any("the gateway does not answer yet" in line for line in lines)
    assert sum(line.startswith("main-") for line in lines) == 8


def test_engines_of_one_process_have_a_line_each() -> None:
    shared = Frame(
        "u", "m", 1.0, (ProcessView("main-0..3", "Starting", 0, 1, KEY, tuple(f"main-{n}/1/0" for n in range(4))),)
    )
    lines = render(shared)
    assert [line.split()[0] for line in lines if "Starting" in line] == ["main-0", "main-1", "main-2", "main-3"]


def test_no_color_disables_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[32m" in "".join(render(frame(), colour=True))
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in "".join(render(frame(), colour=True))


@pytest.mark.parametrize("needs_key", [False, True])
def test_the_first_requests_can_be_copied_from_a_narrow_terminal(needs_key: bool) -> None:
    stack = StackSummary("http://127.0.0.1:8000", "http://m", ("qwen2.5-7b",), 8, ("sim",), 1.0, needs_key=needs_key)
    code, command = sdk_lines(stack), curl_lines(stack)
    assert max(map(len, [*code, *command])) <= 79
    compile("\n".join(code), "snippet", "exec")
    words = shlex.split("\n".join(command).replace("\\\n", ""))
    assert words[:3] == ["curl", "-sN", "http://127.0.0.1:8000/v1/chat/completions"]
    body = msgspec.json.decode(words[-1])
    assert body == {
        "model": "qwen2.5-7b",
        "stream": True,
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
    }
    assert ("authorization: Bearer" in " ".join(words)) == needs_key

"""The process: its command line, its ready lines and its exit."""

import argparse
import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.errors import FairleadError, SettingsError
from fairlead_sim.server import command_line
from fairlead_testing.processes import block_until, is_listening

PATIENCE = 120.0


def read(*arguments: str) -> command_line.EngineProcessOptions:
    parser = argparse.ArgumentParser()
    command_line.add_engine_arguments(parser)
    return command_line.parse_engine_options(parser.parse_args(arguments))


@contextmanager
def program(*arguments: str) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    """Yields the running program and the addresses of its engines."""
    command = [sys.executable, "-m", "fairlead_sim", "engine", *arguments]
    count = int(arguments[arguments.index("--count") + 1]) if "--count" in arguments else 1
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline() for _ in range(count)]
            assert all(line.startswith("ready http://127.0.0.1:") for line in lines)
            yield process, [line.split()[1] for line in lines]
        finally:
            process.kill()


@pytest.mark.usefixtures("new_interpreters")
def test_one_program_hosts_many_engines_and_leaves_no_port_behind() -> None:
    with program("--count", "8", "--model", "tiny") as (process, urls):
        assert len(set(urls)) == 8
        for url in urls:
            assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "tiny"
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert not any(is_listening(int(url.rpartition(":")[2])) for url in urls)


def test_an_interrupt_ends_it_as_well() -> None:
    with program() as (process, _urls):
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


def test_a_second_signal_ends_a_drain_at_once() -> None:
    with program("--shutdown-timeout", "600") as (process, (url,)):
        body = {"prompt": "x", "max_tokens": 30_000, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as stream:
            received = stream.iter_bytes()
            next(received)
            process.terminate()
            block_until(lambda: httpx.get(f"{url}/sim/state").json()["draining"], "the engine drains")
            process.terminate()
            with pytest.raises(httpx.HTTPError):
                for _ in received:
                    pass
        assert process.wait(PATIENCE) == 0


def test_a_lone_engine_that_dies_takes_its_process_with_it() -> None:
    with program() as (process, (url,)):
        with pytest.raises(httpx.HTTPError):
            httpx.post(f"{url}/sim/faults", json={"kind": "die"})
        assert process.wait(PATIENCE) == 70


def test_faults_of_the_command_line_hit_the_engine_they_name() -> None:
    with program("--count", "2", "--fault", "1:error,status=503") as (_process, urls):
        codes = [httpx.post(f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 1}).status_code for url in urls]
        assert codes == [200, 503]


def test_a_taken_port_is_said_and_ends_with_status_2() -> None:
    with program() as (_process, (url,)):
        command = [sys.executable, "-m", "fairlead_sim", "engine", "--listen", url.removeprefix("http://")]
        second = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert second.returncode == 2
        assert "cannot listen on 127.0.0.1" in second.stderr


def test_the_lag_of_the_loop_is_exported() -> None:
    with program() as (_process, (url,)):
        for _ in range(1_000):
            page = httpx.get(f"{url}/metrics").text
            if 'fairlead_sim_loop_lag_seconds{quantile="0.99"}' in page:
                return
        raise AssertionError("no lag after a thousand scrapes")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--listen", "nowhere"),
        ("--listen", "127.0.0.1:65530", "--count", "9"),
        ("--speed", "0"),
        ("--count", "0"),
        ("--profile", "abacus"),
        ("--profile", "{"),
        ("--profile", '{"prefillTokenSeconds": "slow"}'),
        ("--lora", "nameless"),
        ("--fault", "sulk"),
        ("--max-num-seqs", "0"),
        ("--num-gpu-blocks-override", "3"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[str, ...]) -> None:
    with pytest.raises(FairleadError) as caught:
        read(*arguments)
    assert getattr(caught.value, "field", None) == arguments[-2] or isinstance(caught.value, SettingsError)


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ('{"base": "910b4", "kvTokens": 4096}', {"kv_tokens": 4096}),
        ('{"base": "910b4", "max_sequences": 3}', {"max_sequences": 3}),
    ],
)
def test_a_profile_may_be_given_as_json_on_top_of_a_known_one(text: str, changed: dict[str, Any]) -> None:
    profile = command_line.parse_profile(text)
    for name, value in changed.items():
        assert getattr(profile, name) == value
    assert profile.weights_seconds == builtin_profile("910b4").weights_seconds


def test_the_capacities_of_a_profile_can_be_overridden() -> None:
    blocks = ("--num-gpu-blocks-override", "40", "--block-size", "32", "--max-model-len", "1280")
    profile = read("--max-num-seqs", "2", *blocks).settings.profile
    assert (profile.max_sequences, profile.kv_tokens) == (2, 1280)


def test_switches_of_the_surface_go_on_and_off() -> None:
    surface = read("--no-enable-scale-out", "--no-dev-mode").settings.surface
    assert (surface.scale_out, surface.dev_mode, surface.runtime_lora) == (False, False, True)


def test_equal_engines_have_equal_fingerprints() -> None:
    first, second = (read("--seed", seed).settings.fingerprint for seed in ("1", "2"))
    other = read("--max-model-len", "99").settings.fingerprint
    assert first == second != other
    assert "-dp2-" in read("--data-parallel-size", "2").settings.fingerprint


def test_speed_makes_the_same_request_take_less_time_in_the_engine() -> None:
    from fairlead_sim.runtime.settings import EngineSettings
    from fairlead_testing.sim.engines import running_engine

    async def first_step(speed: float) -> float:
        async with running_engine(EngineSettings(profile=builtin_profile("910b4"), speed=speed)) as served:
            profile = served.engine.drivers[0].core.profile
            return profile.step_time(computed=1, sequences=1, resident=0)

    assert asyncio.run(first_step(1.0)) == pytest.approx(10 * asyncio.run(first_step(10.0)))


def test_help_names_every_fault() -> None:
    command = [sys.executable, "-m", "fairlead_sim", "engine", "--help"]
    help_text = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    assert "core-dead" in re.sub(r"-\s+", "-", help_text)  # a line may end within a name
    assert json.dumps("--listen") not in help_text

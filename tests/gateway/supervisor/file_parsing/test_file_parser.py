"""The parsing process: same results and problems as parsing here, and no harm when it fails."""

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.errors import ManifestError, Unavailable
from fairlead.fleet.file import parse_fleet_file
from fairlead.limits import Limits
from fairlead_gateway.supervisor.file_parsing.client import FileParser
from fairlead_gateway.tenants.supervisor.key_list import parse_key_file

EXAMPLE = """
models:
  - name: tiny
    instances:
      - {url: "http://127.0.0.1:9001"}
      - {url: "http://127.0.0.1:9002"}
      - {url: "http://127.0.0.1:9003"}
"""
RICH = """
models:
  - name: qwen
    namespace: team-a
    servedNames: [Qwen/Qwen3-8B]
    kvTransfer: nixl
    routing: {preset: cache-aware}
    tls: {caFile: /etc/ca.pem}
    auth: {tokenEnv: ENGINE_TOKEN}
    instances:
      - url: http://127.0.0.1:9001
        role: Prefill
        adapters: [sql]
        dpRank: 1
        kvEvents: tcp://127.0.0.1:5557
        kvPull: {address: "10.0.0.1:5710", bytesPerToken: 131072.0, bytesPerSecond: 1.25e9}
      - {url: "http://127.0.0.1:9002", id: second, weight: 2.5, state: Draining}
"""
KEYS = f'keys:\n  - {{name: a, digest: "{"0" * 64}"}}\n'
BROKEN = (
    "",
    "models: [",
    "models:\n  - {name: m, instances: [{url: nothing}], colour: red}\n",
    "models:\n  - {name: m, instances: []}\n---\nmodels: []\n",
)


@pytest.fixture
def parser() -> Iterator[FileParser]:
    parser = FileParser(Limits(), os.environ)
    parser.start()
    yield parser
    parser.close()


def _problem(parse: object, *arguments: object, **more: object) -> object:
    assert callable(parse)
    with pytest.raises(ManifestError) as error:
        parse(*arguments, **more)
    return error.value.problems


@pytest.mark.parametrize("text", [EXAMPLE, RICH])
def test_fleet_is_the_one_that_this_process_would_parse(parser: FileParser, text: str) -> None:
    assert parser.parse_fleet(text.encode(), "fleet.yaml") == parse_fleet_file(text, file="fleet.yaml")


def test_keys_are_those_that_this_process_would_parse(parser: FileParser) -> None:
    expected: Mapping[bytes, str] = parse_key_file(KEYS, file="keys.yaml", limits=Limits())
    assert parser.parse_keys(KEYS.encode(), "keys.yaml") == expected


@pytest.mark.parametrize("text", BROKEN)
def test_problems_are_those_that_this_process_would_find(parser: FileParser, text: str) -> None:
    expected = _problem(parse_fleet_file, text, file="fleet.yaml")
    assert _problem(parser.parse_fleet, text.encode(), "fleet.yaml") == expected
    assert parser.parse_fleet(EXAMPLE.encode(), "fleet.yaml").models, "a broken file ends no process"


def test_limits_of_the_gateway_hold_in_the_process() -> None:
    limits = replace(Limits(), instances=2)
    parser = FileParser(limits, os.environ)
    problems = _problem(parser.parse_fleet, EXAMPLE.encode(), "fleet.yaml")
    assert problems == _problem(parse_fleet_file, EXAMPLE, file="fleet.yaml", limits=limits)
    parser.close()


def test_after_release_each_file_has_a_process_of_its_own(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    module = "import runpy; runpy.run_module('fairlead_gateway.supervisor.file_parsing.process', run_name='__main__')"
    program = f"import os; open({str(starts)!r}, 'a').write(f'{{os.getpid()}}\\n'); {module}"
    parser = FileParser(Limits(), os.environ, command=(sys.executable, "-c", program))
    for _ in range(2):
        parser.parse_fleet(EXAMPLE.encode(), "fleet.yaml")
    assert len(starts.read_text().split()) == 1
    parser.release_process()
    for _ in range(2):
        parser.parse_fleet(EXAMPLE.encode(), "fleet.yaml")
    pids = starts.read_text().split()
    assert len(pids) == 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    parser.close()


@pytest.mark.parametrize(
    "command",
    [
        ("/nonexistent/python",),
        (sys.executable, "-c", "pass"),
        (sys.executable, "-c", "import sys; sys.stdin.buffer.read(1); print('garbage' * 9, flush=True)"),
    ],
    ids=["cannot-start", "ends", "garbage"],
)
def test_file_is_parsed_here_if_the_process_fails(command: tuple[str, ...]) -> None:
    parser = FileParser(Limits(), os.environ, command=command)
    parser.start()
    assert parser.parse_fleet(EXAMPLE.encode(), "f") == parse_fleet_file(EXAMPLE, file="f")
    parser.close()


def test_name_that_is_no_unicode_is_parsed_here(parser: FileParser) -> None:
    assert parser.parse_fleet(EXAMPLE.encode(), "\udcff.yaml").models


def test_closed_parser_parses_nothing(parser: FileParser) -> None:
    parser.close()
    with pytest.raises(Unavailable):
        parser.parse_fleet(EXAMPLE.encode(), "fleet.yaml")


def test_process_has_none_of_the_gateway_s_secrets(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    program = f"import os; open({str(seen)!r}, 'w').write(repr(dict(os.environ)))"
    environ = {**os.environ, "FAIRLEAD_KEY_PEPPER": "pepper", "ENGINE_TOKEN": "token"}
    parser = FileParser(Limits(), environ, command=(sys.executable, "-c", program))
    parser.parse_fleet(EXAMPLE.encode(), "fleet.yaml")
    assert "pepper" not in seen.read_text()
    assert "token" not in seen.read_text()
    parser.close()

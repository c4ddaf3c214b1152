"""`fairlead tenants`: limits in words, and the tenants of the stack on this machine."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairlead.api.spec.tenant.spec import AMOUNTS
from fairlead_cli.local.run_directory import RunningStack, make_run_directory, write_stack_file
from fairlead_cli.tenants.command import describe_limits
from fairlead_testing.cli.command_line import run_program


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        ({"per": "Day", "usd": "20"}, "20 USD per day"),
        (
            {"per": "Minute", "requests": 600, "tokens": 9, "key": "ci"},
            "600 requests, 9 tokens per minute of the key ci",
        ),
        ({"concurrency": 8, "bytesInFlight": "64Mi"}, "8 concurrency, 64Mi bytesInFlight"),
        *[({name: 7}, f"7 {name}") for name in AMOUNTS if name != "usd"],
    ],
)
def test_a_limit_names_its_amounts_window_and_key(limit: dict[str, Any], text: str) -> None:
    assert describe_limits({"limits": [limit]}) == [text]


def _tenants(folder: Path, *names: str) -> str:
    path = folder / f"{'-'.join(names)}.yaml"
    documents = [
        {"apiVersion": "serving.fairlead.io/v1alpha1", "kind": "ModelTenant", "metadata": {"name": name}, "spec": {}}
        for name in names
    ]
    path.write_text("\n---\n".join(map(json.dumps, documents)))
    return str(path)


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Publishes a stack on this machine that follows some files of tenants."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    def write(*files: str, port: int = 9) -> None:
        url = f"http://127.0.0.1:{port}"
        stack = RunningStack(os.getpid(), "http://127.0.0.1:8000", url, float(port), tenant_files=files)
        write_stack_file(make_run_directory(), stack)

    return write


def test_tenants_and_keys_of_the_stack_on_this_machine_are_found(tmp_path: Path, publish: Callable[..., None]) -> None:
    publish(_tenants(tmp_path, "acme", "globex"))
    for words in (["tenants"], ["tenants", "show", "acme"], ["keys", "list"]):
        done = run_program(*words)
        assert done.returncode == 0, done.stderr
    assert "globex" in run_program("tenants").stdout
    assert "neither a file nor a cluster" in run_program("keys", "revoke", "acme", "ci").stderr, (
        "changes name their file"
    )


def test_the_management_address_says_whose_tenants_are_shown(tmp_path: Path, publish: Callable[..., None]) -> None:
    publish(_tenants(tmp_path, "acme"), port=7)
    publish(_tenants(tmp_path, "globex"), port=9)
    for address, name in (("127.0.0.1:7", "acme"), ("http://127.0.0.1:9/", "globex"), ("9", "globex")):
        assert name in run_program("tenants", "list", "--manage", address).stdout
        assert run_program("tenants", "show", name, "--manage", address).returncode == 0
        assert name in run_program("keys", "list", "--manage", address).stdout + name
    unknown = run_program("tenants", "list", "--manage", "127.0.0.1:8")
    assert (unknown.returncode, "--file" in unknown.stderr) == (2, True)


@pytest.mark.parametrize(
    ("files", "message"), [((), "asks for no API key"), (("a.yaml", "b.yaml"), "has several files of ModelTenants")]
)
def test_a_stack_without_one_file_of_tenants_is_named(
    files: tuple[str, ...], message: str, publish: Callable[..., None]
) -> None:
    publish(*files)
    done = run_program("tenants")
    assert done.returncode == 2
    assert message in done.stderr
    assert "--file" in done.stderr

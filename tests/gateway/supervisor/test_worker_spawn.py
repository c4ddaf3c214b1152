"""The environment of workers, and who may read their memory."""

import mmap
import os
import subprocess
import sys
from dataclasses import fields

import pytest

from fairlead.settings import GatewaySettings, read_settings, variable_name
from fairlead_gateway.supervisor.worker_handle import PreforkedWorkers, narrow_environment


def test_a_worker_gets_no_secret_of_the_supervisor_and_no_way_to_the_cluster() -> None:
    engine_tokens = {"OPENAI_TOKEN": "t", "PATH": "/bin"}
    settings = {"FAIRLEAD_LOG_LEVEL": "info", "FAIRLEAD_TRACE_HEADERS": "a=b"}
    hidden = {
        "FAIRLEAD_MANAGE_TOKEN": "m",
        "FAIRLEAD_KEY_PEPPER": "p",
        "FAIRLEAD_HASH_SECRET": "h",
        "FAIRLEAD_REDIS_URL": "redis://:x@h",
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "KUBECONFIG": "/etc/kube/config",
    }
    assert narrow_environment({**engine_tokens, **settings, **hidden}) == {**engine_tokens, **settings}


@pytest.mark.parametrize("name", [item.name for item in fields(GatewaySettings) if not item.metadata["secret"]])
def test_a_setting_reaches_workers(name: str) -> None:
    environ = {variable_name(name): "1m"}
    assert getattr(read_settings(GatewaySettings, narrow_environment(environ)), name) == "1m"


@pytest.mark.skipif(sys.platform != "linux", reason="the switch is Linux's")
@pytest.mark.skipif(sys.platform != "linux", reason="seals are Linux' own")
@pytest.mark.parametrize("size", [0, 1 << 20])
def test_a_worker_cannot_take_the_shared_memory_from_its_siblings(size: int) -> None:
    workers = PreforkedWorkers(0, has_peers=True, slots=8)
    try:
        assert workers.shared_memory_fd is not None
        with mmap.mmap(workers.shared_memory_fd, 256) as memory:
            with pytest.raises(PermissionError):
                os.ftruncate(workers.shared_memory_fd, size)
            memory[255] = 1
    finally:
        workers.close()


@pytest.mark.parametrize("module", ["fairlead_gateway.__main__", "fairlead_gateway.worker.__main__"])
def test_processes_of_the_same_user_cannot_read_a_gateway_process(module: str) -> None:
    code = f"""
import argparse
import sys
from unittest import mock
import {module} as process
from fairlead.runtime import process_tuning

class Reached(Exception):
    pass

def check():
    assert not process_tuning.is_inspectable()
    raise Reached

assert process_tuning.is_inspectable()
with mock.patch.object(process_tuning, "raise_open_file_limit", check):
    try:
        if module == "fairlead_gateway.__main__":
            process._run(argparse.Namespace(fleet=None), None, None, None, None, None)
        else:
            process.main(["--channel", "0"])
    except Reached:
        sys.exit(0)
sys.exit(1)
""".replace("if module ==", f"if {module!r} ==")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""``fairlead rollout`` on a real API server: what its verbs write, and its errors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.field_managers import CHANGED_BY_ANNOTATION
from fairlead.kube.resources import MODEL_DEPLOYMENTS
from fairlead.runtime.clock import SystemClock
from fairlead_cli.cluster.access.connection import local_user
from fairlead_testing.cli.command_line import run_program
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.manifests import simulated_model
from fairlead_testing.kube.operator_process import apply_crds_and_namespaces

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]
SPACE = "rollouts"


@asynccontextmanager
async def api_with_model(server: ApiServer) -> AsyncIterator[KubeApi]:
    """A client of a server with Fairlead's kinds and a model."""
    async with KubeApi(server.config(), SystemClock(), lambda: 0.5) as api:
        await apply_crds_and_namespaces(api, SPACE)
        pools = [{"acceleratorClassName": "cpu", "minReplicas": 2}]
        await api.apply(simulated_model("qwen", SPACE, pools=pools), "kubectl")
        yield api


def rollout(server: ApiServer, *words: str) -> tuple[int, str, str]:
    """Exit code, output and complaints of the command."""
    done = run_program("rollout", *words, "-n", SPACE, "--kubeconfig", str(server.kubeconfig))
    return done.returncode, done.stdout, done.stderr


async def test_pause_and_resume_write_a_field_and_who_changed_it(api_server: ApiServer) -> None:
    async with api_with_model(api_server) as api:
        for verb, is_paused in (("pause", True), ("resume", False)):
            code, _, err = await asyncio.to_thread(rollout, api_server, verb, "qwen")
            assert code == 0, err
            live = await api.get(MODEL_DEPLOYMENTS, SPACE, "qwen")
            assert live["spec"]["rollout"]["paused"] is is_paused
            assert live["metadata"]["annotations"][CHANGED_BY_ANNOTATION] == local_user()


async def test_unknown_model_error_lists_existing_models(api_server: ApiServer) -> None:
    async with api_with_model(api_server):
        code, _, err = await asyncio.to_thread(rollout, api_server, "status", "qwem")
    assert code == 2
    assert f"no model {SPACE}/qwem" in err
    assert "known: qwen" in err
    code, out, _ = await asyncio.to_thread(rollout, api_server, "status")  # the only one
    assert (code, out.startswith(f"{SPACE}/qwen runs revision")) == (1, True)


def test_unreachable_cluster_exits_3(tmp_path: Path) -> None:
    done = run_program("rollout", "status", "qwen", "--kubeconfig", str(tmp_path / "none"))
    assert done.returncode == 3
    assert done.stderr.startswith("fairlead: ")

"""The admission policy of engine pods on a real API server."""

from itertools import count
from pathlib import Path

import pytest
import yaml

from fairlead.kube.client import KubeApi
from fairlead.kube.resources import Manifest
from fairlead.runtime.clock import SystemClock
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.helm import apply_namespace, kubectl, render_chart
from fairlead_testing.processes import block_until

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]
PLACE = "team"
MARKS = {"fairlead.io/model": "qwen", "fairlead.io/pool": "main", "fairlead.io/endpoint": "true"}
CONTROLLER = "system:serviceaccount:kube-system:replicaset-controller"
REFUSED = "only controllers of workloads may give pods the labels"
ROLE: Manifest = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}


def pod(name: str, labels: dict[str, str]) -> str:
    metadata = {"name": name, "namespace": PLACE, "labels": labels}
    spec = {"containers": [{"name": "engine", "image": "a"}]}
    return yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


async def test_only_workload_controllers_create_pods_that_gateways_take_for_engines(
    api_server: ApiServer, program: Path
) -> None:
    async def prepare() -> None:
        async with KubeApi(api_server.config(), SystemClock(), lambda: 0.5) as admin:
            await apply_namespace(admin, PLACE)
            for number, user in enumerate(("editor", CONTROLLER)):
                subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}
                binding = {
                    "metadata": {"name": f"b{number}", "namespace": PLACE},
                    "subjects": [subject],
                    "roleRef": ROLE,
                }
                await admin.apply(
                    {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", **binding}, "test"
                )

    def create(user: str, name: str, labels: dict[str, str]) -> str:
        """Returns why the pod is refused; empty if it is created."""
        try:
            kubectl(api_server, f"--as={user}", "create", "-f", "-", text=pod(name, labels))
        except AssertionError as error:
            return str(error)
        return ""

    await prepare()
    policies = [manifest for manifest in render_chart(program) if manifest["metadata"]["name"].endswith("-engine-pods")]
    assert len(policies) == 2
    kubectl(api_server, "apply", "-f", "-", text=yaml.safe_dump_all(policies))
    names = (f"p{number}" for number in count())
    block_until(lambda: REFUSED in create("editor", next(names), MARKS), "the policy is in effect")
    assert create("editor", "plain", {"app": "web"}) == ""
    with pytest.raises(AssertionError, match=REFUSED):
        kubectl(api_server, "--as=editor", "-n", PLACE, "label", "pod", "plain", "fairlead.io/model=qwen")
    assert create(CONTROLLER, "engine", MARKS) == ""
    kubectl(api_server, "--as=editor", "-n", PLACE, "label", "pod", "engine", "app=web")  # their labels stay theirs

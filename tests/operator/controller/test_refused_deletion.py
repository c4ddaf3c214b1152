"""Deletions that a policy refuses."""

from typing import Any

from fairlead.kube.errors import Forbidden
from fairlead_testing.kube.operator_harness import OperatorHarness, model_manifest


def serve_model(harness: OperatorHarness, **spec: Any) -> None:
    harness.kube.put(model_manifest(**spec))
    harness.run_until_idle()


def test_rejected_deletion_stalls_with_its_cause(harness: OperatorHarness) -> None:
    pools = [{"name": name, "acceleratorClassName": "cpu"} for name in ("main", "other")]
    serve_model(harness, pools=pools)

    def refuse(write: str) -> None:
        if write == "delete Deployment qwen-other":
            raise Forbidden('admission webhook "p" denied the request', status=403)

    harness.kube.before_write = refuse
    harness.edit(pools=pools[:1])
    harness.run_until_idle()
    assert harness.status()["observedGeneration"] == 2
    assert harness.conditions() == {"Ready": ("True", "AllReady"), "Stalled": ("True", "PolicyRefused")}
    assert harness.message("Stalled").startswith("Deployment qwen-other cannot be deleted: admission webhook")
    assert harness.reconcile() == 30.0
    harness.kube.before_write = lambda _: None
    harness.run_until_idle()
    assert (harness.names(), harness.conditions()) == (["qwen-main"], {"Ready": ("True", "AllReady")})

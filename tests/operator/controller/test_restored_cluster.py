"""A cluster that was restored from a backup while the operator runs."""

import asyncio
import copy

from fairlead.kube.resources import MODEL_DEPLOYMENTS, SERVICES
from fairlead_testing.kube.operator_harness import OperatorHarness, model_manifest


def test_model_that_is_older_than_what_was_seen_is_not_reconciled_without_pause(harness: OperatorHarness) -> None:
    harness.kube.put(model_manifest())
    harness.run_until_idle()
    backup = copy.deepcopy((harness.kube._objects, harness.kube._owners, harness.kube._version))
    harness.edit(engine={"type": "Sim", "args": ["--more"]})
    harness.run_until_idle()
    harness.kube._objects, harness.kube._owners, harness.kube._version = backup
    harness.keys += harness.cache.replace_models(harness.kube.objects_of(MODEL_DEPLOYMENTS.kind))
    (service,) = harness.kube.objects_of("Service")
    asyncio.run(harness.kube.delete(SERVICES, "chat", "qwen-main", service["metadata"]["uid"]))
    before = harness.kube.reads
    assert harness.reconcile() == 1.0
    assert (harness.names("Service"), harness.kube.reads - before) == ([], 1)

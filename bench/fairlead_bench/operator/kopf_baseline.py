"""The baseline operator: kopf's handlers for edges (created, changed), no queue, no child watch.

It makes the same objects as Fairlead's, rendered by the same function and applied with the same
client. It misses what Fairlead's covers: children that are deleted or edited, models that are
deleted while it is away, and two writers.
"""

import os
import random
from pathlib import Path
from typing import Any

import kopf

from fairlead.api.spec.engine import EngineType
from fairlead.fleet.labels import FIELD_MANAGER
from fairlead.kube.client import KubeApi
from fairlead.kube.resources import MODEL_DEPLOYMENTS
from fairlead.kube.transport.kubeconfig import load_config
from fairlead.runtime.clock import SystemClock
from fairlead_operator.controller import revisions
from fairlead_operator.controller.desired_state import parse_model
from fairlead_operator.kube.kopf_watch import connection_info
from fairlead_operator.object_metadata import with_ownership, with_revision
from fairlead_operator.render import InstallationDefaults, RenderContext, render_model


def main() -> None:
    """Watches until SIGTERM."""
    access = load_config(os.environ, Path.home())
    api = KubeApi(access, SystemClock(), random.random, agent="naive")
    facts = RenderContext(InstallationDefaults({EngineType.SIM: "fairlead.io/sim:1"}))
    handlers, kind = kopf.OperatorRegistry(), MODEL_DEPLOYMENTS

    @kopf.on.login(registry=handlers)
    async def _login(**_: Any) -> kopf.ConnectionInfo:
        return connection_info(access, SystemClock().wall())

    @kopf.on.create(kind.group, kind.version, kind.plural, registry=handlers)
    @kopf.on.update(kind.group, kind.version, kind.plural, registry=handlers)
    async def _changed(body: kopf.Body, patch: kopf.Patch, **_: Any) -> None:
        model = dict(body)
        spec = dict(body["spec"])
        revision = revisions.choose_revision(model, (), frozenset()).revision
        children = render_model(parse_model(model, spec), {}, facts).manifests
        for one in [
            revisions.controller_revision(model, revision),
            *(with_revision(child, revision.hash) for child in children),
        ]:
            await api.apply(with_ownership(one, model), FIELD_MANAGER)
        patch.status["observedGeneration"] = body["metadata"]["generation"]
        patch.status["clientName"] = body["metadata"]["name"]

    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True
    kopf.run(registry=handlers, settings=settings, clusterwide=True, standalone=True)


if __name__ == "__main__":
    main()

"""The pods of a ModelDeployment, as the operator renders them, and the notes on them.

The cluster and the chart are unknown here. Names stand for the chart's images, and the cluster has
every feature.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from fairlead.api.spec.engine import EngineType
from fairlead.api.v1alpha1 import AcceleratorClass, ModelDeployment
from fairlead.kube.resources import Manifest
from fairlead.manifests.lint import LintNote
from fairlead.manifests.pod_rules import lint_pod, template_path
from fairlead_operator.render import InstallationDefaults, RenderContext, RenderedModel, render_model

_CONTEXT: Final = RenderContext(
    InstallationDefaults(dict.fromkeys(EngineType, "engine"), downloader_image="downloader"), leader_worker_sets=True
)


def render(model: ModelDeployment, classes: Mapping[str, AcceleratorClass]) -> RenderedModel:
    metadata = model.metadata.model_copy(update={"uid": "00000000-0000-0000-0000-000000000000"})
    return render_model(model.model_copy(update={"metadata": metadata}), classes, _CONTEXT)


def pod_templates(workload: Manifest) -> list[dict[str, Any]]:
    """Returns the pod templates of a Deployment or a LeaderWorkerSet; none of other kinds."""
    spec = workload.get("spec") or {}
    group = spec.get("leaderWorkerTemplate") or {}
    found = (spec.get("template"), group.get("leaderTemplate"), group.get("workerTemplate"))
    return [template for template in found if template is not None]


def lint_pods(model: ModelDeployment, classes: Mapping[str, AcceleratorClass]) -> Iterator[LintNote]:
    """Yields the problems of rendering, and the notes on pods. A path is of the manifest."""
    for index, pool in enumerate(model.spec.pools):
        rendered = render(model.model_copy(update={"spec": model.spec.model_copy(update={"pools": [pool]})}), classes)
        template = {} if pool.template is None else pool.template.spec
        for problem in rendered.problems:
            yield LintNote(("spec", "pools", index), problem.message, problem.fix, is_problem=True)
        notes = [note for one in rendered.manifests for pod in pod_templates(one) for note in lint_pod(pod)]
        for note in dict.fromkeys(notes):
            path = ("spec", "pools", index, *template_path(template, [str(step) for step in note.path]))
            yield LintNote(path, note.message, note.fix, note.is_problem)

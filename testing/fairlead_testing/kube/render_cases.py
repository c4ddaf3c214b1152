"""Cases of operator rendering, for tests and for the script that writes golden files."""

from pathlib import Path
from typing import Any

import yaml

from fairlead.api.spec.engine import EngineType
from fairlead.api.v1alpha1 import AcceleratorClass, ModelDeployment
from fairlead.kube.resources import Manifest
from fairlead_operator.render import AllowedPeer, InstallationDefaults, RenderContext
from fairlead_testing.yaml_documents import load_documents


def read_case(path: Path) -> tuple[ModelDeployment, dict[str, AcceleratorClass]]:
    """Returns the ModelDeployment of a file, and its AcceleratorClasses."""
    documents = list(load_documents(path.read_text(encoding="utf-8")))
    (model,) = (
        ModelDeployment.model_validate(document) for document in documents if document["kind"] == "ModelDeployment"
    )
    classes = [
        AcceleratorClass.model_validate(document) for document in documents if document["kind"] == "AcceleratorClass"
    ]
    return model, {class_.metadata.name: class_ for class_ in classes}


def default_context(**changed: Any) -> RenderContext:
    """Returns the context of a cluster with all features, and an installation with all images."""
    values: dict[str, Any] = {
        "installation": InstallationDefaults(
            images={
                EngineType.VLLM: "vllm/vllm-openai:v0.32.0",
                EngineType.SGLANG: "lmsysorg/sglang:v0.5.23",
                EngineType.SIM: "fairlead.io/sim:1",
            },
            pull_secrets=("installation-pull",),
            peers=(AllowedPeer("fairlead-system", {"app.kubernetes.io/name": "fairlead-gateway"}),),
            downloader_image="fairlead.io/operator:1",
        ),
        "leader_worker_sets": True,
    }
    return RenderContext(**{**values, **changed})


class _Dumper(yaml.SafeDumper):
    """Dumps multi-line text as blocks, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def golden_text(manifests: tuple[Manifest, ...]) -> str:
    """Returns the manifests as in a golden file."""
    if not manifests:
        return "# Nothing is created.\n"
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)

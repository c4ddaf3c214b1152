"""Problems of the LoRA adapters of a fleet file, each with line, field and fix."""

from fairlead.engines.lora_api import has_lora_api
from fairlead.errors import FileProblem
from fairlead.fleet.file.schema import FileFleet
from fairlead.fleet.model import Role
from fairlead.manifests.yaml_nodes import YamlNode, format_path, format_value

_Path = tuple[str | int, ...]


def adapter_problems(content: FileFleet, node: YamlNode, file: str) -> list[FileProblem]:
    """Returns the problems of adapters: names that something else has, and models that hand KV
    over, whose engines serve no adapters.
    """
    problems: list[FileProblem] = []

    def add(path: _Path, message: str, fix: str) -> None:
        problems.append(FileProblem(file, node.locate(path).line, format_path(path), message, fix))

    owners, namespaces = _owners(content), {model.namespace for model in content.models}
    for number, model in enumerate(content.models):
        if model.adapters and any(instance.role is not Role.SERVE for instance in model.instances):
            message = "a model with Prefill and Decode instances serves no adapters"
            add(("models", number, "adapters"), message, "give the adapters to a model whose instances Serve")
        for index, instance in enumerate(model.instances if model.adapters else ()):
            if not has_lora_api(instance.engine):
                message = f"engines of the type {instance.engine} load no adapters at run time"
                add(("models", number, "instances", index, "engine"), message, "remove the adapters of the model")
        for index, adapter in enumerate(model.adapters):
            path: _Path = ("models", number, "adapters", index, "name")
            name, (first, slash, _) = adapter.name, adapter.name.partition("/")
            if slash and first in namespaces:
                why = "it begins with a namespace that holds models"
                add(path, f"clients cannot reach the adapter by {format_value(name)}: {why}", "use another name")
            elif name in owners:
                add(path, f"{owners[name]} has the name {format_value(name)}", "use another name")
            owners.setdefault(name, f"an adapter of the model {model.namespace}/{model.name}")
    return problems


def _owners(content: FileFleet) -> dict[str, str]:
    """Returns who has each name for clients, adapters left out."""
    owners: dict[str, str] = {}
    for model in content.models:
        for name in (model.name, *model.served_names):
            owners.setdefault(name, f"the model {model.namespace}/{model.name}")
    for route in content.routes:
        for name in (route.name, *route.served_names):
            owners.setdefault(name, f"the route {route.namespace}/{route.name}")
    return owners

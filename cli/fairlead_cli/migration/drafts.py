"""Models, pools and engines while a conversion reads them."""

import re
from dataclasses import dataclass, field
from typing import Any, Final

from fairlead_cli.migration.command_line import EngineFlags
from fairlead_cli.migration.field_reader import FieldReader

_SLICE: Final = re.compile(r"\bmig-|[/.-](vgpu|vcuda)|\.shared$|gpu-?(mem|core)", re.IGNORECASE)
"""In the names of resources and node labels of a part of a device."""


@dataclass(frozen=True, slots=True)
class MigrationOptions:
    """Options of a conversion, which add to the manifests.

    accelerator: the AcceleratorClass of all pools; None: as the manifests suggest.
    external: True to route to the engines that already run.
    """

    accelerator: str | None = None
    external: bool = False


@dataclass(slots=True)
class Devices:
    """The accelerators of a pool, as far as a manifest names them.

    hints: node labels and names that may contain the model of the accelerator.
    signs: of devices in a manifest that requests none, such as a runtime class.
    unknown: True if the format leaves it to its chart how many devices an engine gets.
    is_cpu: True if the manifest says that there is none.
    """

    resource: str = ""
    count: int = 0
    hints: list[str] = field(default_factory=list)
    signs: list[str] = field(default_factory=list)
    unknown: bool = False
    is_cpu: bool = False

    def add(self, resource: str, count: int) -> None:
        if not _SLICE.search(self.resource) or _SLICE.search(resource):
            self.resource, self.count = resource, count

    @property
    def slice(self) -> str:
        """The part of a device that a pod gets; empty for whole devices."""
        return next((name for name in (self.resource, *self.hints) if _SLICE.search(name)), "")


@dataclass(slots=True)
class EngineDraft:
    """An engine: its image, flags and environment.

    needs_key: True if the engine that runs now refuses requests without an API key.
    """

    type: str = "VLLM"
    image: str = ""
    flags: EngineFlags = field(default_factory=EngineFlags)
    env: list[dict[str, Any]] = field(default_factory=list)
    pull_secrets: list[str] = field(default_factory=list)
    needs_key: bool = False


@dataclass(slots=True)
class PoolDraft:
    """A pool and its engine.

    selector: labels of the pods that run now, for an external model.
    secrets: URL of an endpoint to the Secret with its token.
    mounted_claims: folder in the engine to the claim that is mounted there, and its folder if any.
    labels: of the pods that run now.
    claim_volumes: a volume for each claim that the old workload makes for each pod.
    reader: the fields of the pool, for notes.
    args: of its engines alone.
    """

    reader: FieldReader
    name: str = "main"
    role: str = "Serve"
    min_replicas: int = 1
    max_replicas: int | None = None
    nodes: int = 1
    engine: EngineDraft = field(default_factory=EngineDraft)
    devices: Devices = field(default_factory=Devices)
    selector: dict[str, str] = field(default_factory=dict)
    port: int = 8000
    endpoints: list[str] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict)
    mounted_claims: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    claim_volumes: list[dict[str, Any]] = field(default_factory=list)
    pod: dict[str, Any] = field(default_factory=dict)
    container: dict[str, Any] = field(default_factory=dict)
    args: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class NamedDraft:
    """An object of Fairlead while it is put together. ``served_names``: its names for clients."""

    name: str
    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    served_names: list[str] = field(default_factory=list)


@dataclass(slots=True)
class ModelDraft(NamedDraft):
    """A model and its pools. With disaggregated prefill, the decode pool is the first.

    is_api: an OpenAI-compatible API that others run.
    spec: further fields of the spec, such as autoscaling and rollout.
    """

    reader: FieldReader
    uri: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    pools: list[PoolDraft] = field(default_factory=list)
    spec: dict[str, Any] = field(default_factory=dict)
    is_api: bool = False

"""The engine's environment as pods see it: two volumes on the node, for packages and for weights.

Pods run the image of a simulated engine, which has the interpreter. The engine's packages come from
a volume at ``/opt/vllm``, and the model from a volume that the ModelDeployment names as
``pvc:weights/model``. Both are read-only, and their claims are ordinary ones, so the pods are
admitted under restricted Pod Security.

The folder ``pod`` of the environment has what the image lacks: the command ``vllm``, Mooncake, what
vLLM calls and imports, and their shared libraries.
"""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from e2e.kube.workloads.manifests import Manifest, image, resource
from e2e.vllm.engine.engine_processes import KvConnector
from e2e.vllm.engine.installation import Installation

MOUNT = "/opt/vllm"
CLASS = "e2e-cpu"
WEIGHTS = "pvc:weights/model"
_PACKAGES, _WEIGHTS = "engine-packages", "weights"
_POD = "pod"
_COMMAND = '#!/bin/sh\nexec python3 -m vllm.entrypoints.cli.main "$@"\n'
_IN_IMAGE = re.compile(r"(libc|libm|libdl|libpthread|librt|libgcc_s|libstdc\+\+|ld-linux-x86-64|linux-vdso)\.so")
_COMMANDS = ("lscpu",)
"""Programs of this machine that vLLM calls on processors."""
_MODULES = ("_sqlite3",)
"""Modules of the standard library that vLLM imports and the image lacks."""


def prepare(installed: Installation, mooncake: KvConnector) -> None:
    """Writes the folder ``pod`` of the environment, and lets any user read the weights."""
    for file in installed.model.iterdir():
        file.chmod(0o644)
    folder = installed.folder / "engine" / _POD
    command = folder / "bin" / "vllm"
    command.parent.mkdir(parents=True, exist_ok=True)
    command.write_text(_COMMAND)
    command.chmod(0o755)
    assert mooncake.path is not None
    python = folder / "python"
    shutil.rmtree(python, ignore_errors=True)
    shutil.copytree(mooncake.path, python)
    for name in _COMMANDS:
        found = shutil.which(name)
        assert found is not None, f"this machine has no {name}"
        shutil.copy(found, folder / "bin" / name)
    for name in _MODULES:
        module = importlib.util.find_spec(name)
        assert module is not None, f"this Python has no {name}"
        shutil.copy(str(module.origin), python)
    libraries = folder / "lib"
    libraries.mkdir(exist_ok=True)
    packages = (installed.engine_packages / "vllm", python / "mooncake")
    objects = [path for package in packages for path in package.rglob("*.so*") if path.is_file()]
    objects += [*(folder / "bin" / name for name in _COMMANDS), *python.glob("*.so")]
    for name, place in _libraries(objects).items():
        shutil.copy(place, libraries / name)


def volumes(installed: Installation, namespace: str) -> list[Manifest]:
    """Returns a volume and a claim for the packages, and for the weights, in a namespace."""
    places = {_PACKAGES: installed.folder / "engine", _WEIGHTS: installed.folder}
    return [
        manifest
        for name, place in places.items()
        for manifest in (_volume(f"{namespace}-{name}", place, namespace, name), _claim(name, f"{namespace}-{name}"))
    ]


def accelerator_class() -> Manifest:
    return resource("AcceleratorClass", CLASS, profile={"preset": "tiny-cpu"})


def pool(**fields: object) -> Manifest:
    """Returns a pool whose pods have the environment, and ask for little: the node is small."""
    container = {
        "name": "engine",
        "resources": {"requests": {"cpu": "50m", "memory": "1Gi"}},
        "volumeMounts": [{"name": _PACKAGES, "mountPath": MOUNT, "readOnly": True}],
        "startupProbe": {"periodSeconds": 2, "failureThreshold": 450},
    }
    claim = {"name": _PACKAGES, "persistentVolumeClaim": {"claimName": _PACKAGES, "readOnly": True}}
    template = {"spec": {"containers": [container], "volumes": [claim]}}
    return {"acceleratorClassName": CLASS, "template": template, **fields}


def engine(installed: Installation, *arguments: str, **environment: str) -> Manifest:
    """Returns the field ``spec.engine``: vLLM with a small cache, on one thread."""
    settings = {
        "PATH": f"{MOUNT}/{_POD}/bin:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": f"{MOUNT}/{installed.engine_packages.relative_to(installed.folder / 'engine')}:{MOUNT}/{_POD}/python",
        "LD_LIBRARY_PATH": f"{MOUNT}/{_POD}/lib",
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    shape = ("--dtype=bfloat16", "--enforce-eager", "--max-model-len=4096")
    return {
        "type": "VLLM",
        "image": image("sim"),
        "args": [*shape, "--block-size=32", "--num-gpu-blocks-override=1024", *arguments],
        "env": [{"name": name, "value": value} for name, value in settings.items()],
    }


def _volume(name: str, place: Path, namespace: str, claim: str) -> Manifest:
    return resource(
        "PersistentVolume",
        name,
        accessModes=["ReadOnlyMany"],
        capacity={"storage": "1Gi"},
        claimRef={"namespace": namespace, "name": claim},
        hostPath={"path": str(place), "type": "Directory"},
        persistentVolumeReclaimPolicy="Retain",
        storageClassName="",
    )


def _claim(name: str, volume: str) -> Manifest:
    size = {"requests": {"storage": "1Gi"}}
    fields = {"accessModes": ["ReadOnlyMany"], "resources": size, "storageClassName": "", "volumeName": volume}
    return resource("PersistentVolumeClaim", name, **fields)


def _libraries(objects: Sequence[Path]) -> dict[str, Path]:
    """Returns the shared libraries of this machine that programs need and the image lacks."""
    command = ["ldd", *map(str, objects)]
    output = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    own = {path.name for path in objects}
    return {
        name: Path(place)
        for name, place in re.findall(r"^\s+(\S+) => (/\S+)", output, re.MULTILINE)
        if not _IN_IMAGE.match(name) and name not in own
    }

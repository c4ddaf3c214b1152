"""The image of kind's nodes for podman, where there is no docker engine.

It is Debian with kind's own files and Kubernetes' programs. Images of those that run in pods are in
containerd's store.

It is what kind's Dockerfile of its base and ``kind build node-image`` make together. Nothing is
pulled: packages are Debian's, programs are compiled from Go modules.
"""

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster.artifacts import go_builds, image_set, network_policies, pinned_versions
from e2e.cluster.artifacts.go_builds import path_of
from e2e.cluster.run_record import ClusterError, progress_step
from scripts.release.images.components import PREFIX
from scripts.release.images.layers import ImageLayer, OciImage, build_lock, write_archive, write_layer

VOLUMES_IMAGE = f"{PREFIX}/local-path-provisioner:{pinned_versions.LOCAL_PATH}"
VOLUMES_HELPER = f"{PREFIX}/local-path-helper:{pinned_versions.LOCAL_PATH}"

_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "conntrack", "iptables", "nftables", "iproute2", "ethtool", "util-linux"),
    *(
        "mount",
        "kmod",
        "libseccomp2",
        "e2fsprogs",
        "bash",
        "ca-certificates",
        "curl",
        "jq",
        "procps",
        "hostname",
        "runc",
    ),
)
"""The packages of kind's base without NFS, iSCSI and fuse. runc is Debian's."""
_UNWANTED_UNITS = (
    "lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service",
    "lib/systemd/system/multi-user.target.wants/*",
    "etc/systemd/system/*.wants/*",
    "lib/systemd/system/local-fs.target.wants/*",
    "lib/systemd/system/sockets.target.wants/*udev*",
    "lib/systemd/system/sockets.target.wants/*initctl*",
    "lib/systemd/system/basic.target.wants/*",
)
_PLACES = {
    "usr/bin": ("kubeadm", "kubelet", "kubectl"),
    "usr/local/bin": ("containerd", "ctr", "containerd-shim-runc-v2", "crictl"),
    "opt/cni/bin": ("host-local", "loopback", "ptp", "portmap"),
}
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_IMPORT_SECONDS = 20.0


def build(environ: Mapping[str, str]) -> str:
    """Makes the image where podman does not have it, and returns its name.

    environ: of podman.
    """
    name = f"{PREFIX}/kind-node:{pinned_versions.KUBERNETES}-{_key()}"
    go_builds.compile_missing(pinned_versions.KIND_NODE)
    network_policies.build()
    with build_lock("kind-node"):
        if subprocess.run(["podman", "image", "exists", name], env=environ, check=False).returncode:
            with progress_step("node image, in all"), tempfile.TemporaryDirectory(dir=_work()) as work:
                _build(Path(work), name, environ)
    return name


def _key() -> str:
    seen = hashlib.sha256(Path(__file__).read_bytes() + Path(network_policies.__file__).read_bytes())
    for module in ("kubernetes", "kind_node", "storage", "policies"):
        seen.update(pinned_versions.digest(module).encode())
    return seen.hexdigest()[:12]


def _work() -> Path:
    folder = pinned_versions.cache_folder() / "kind-node"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _build(work: Path, name: str, environ: Mapping[str, str]) -> None:
    root = work / "root"
    with progress_step("Debian"):
        _install_debian(root)
    _put_files(root)
    with progress_step("images of its programs"):
        images = _images(root, work)
        write_archive(work / "images.tar", images)
    with progress_step("containerd's store"):
        _fill_store(root, work)
    with progress_step("podman import"):
        _import(root, name, environ)


def _install_debian(root: Path) -> None:
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), re.MULTILINE))
    lists = [*Path("/etc/apt").glob("sources.list"), *Path("/etc/apt/sources.list.d").glob("*.sources")]
    options = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "man", "locale")]
    words = ["mmdebstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", *options]
    _run(*words, release["VERSION_CODENAME"], str(root), *map(str, lists))


def _put_files(root: Path) -> None:
    """Kind's files and settings, and the programs that run outside of pods."""
    shutil.copytree(
        pinned_versions.binaries("kind_node") / pinned_versions.KIND_FILES,
        root,
        dirs_exist_ok=True,
        copy_function=shutil.copyfile,
    )
    for path in (*(root / "usr/local/bin").iterdir(), *(root / "kind/bin").iterdir()):
        path.chmod(0o755)
    for pattern in _UNWANTED_UNITS:
        for path in root.glob(pattern):
            path.unlink()
    with (root / "etc/systemd/journald.conf").open("a") as file:
        file.write("ReadKMsg=no\n")
    _run(
        "chroot", str(root), "systemctl", "enable", "kubelet.service", "containerd.service", "undo-mount-hacks.service"
    )
    _run("chroot", str(root), "systemctl", "mask", "systemd-binfmt.service")
    programs = _programs()
    for folder, names in _PLACES.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for program in names:
            shutil.copy(programs[program], root / folder)
    for folder in ("etc/kubernetes/manifests", "kind/manifests"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "kind/version").write_text(pinned_versions.KUBERNETES)
    (root / "kind/manifests/default-storage.yaml").write_text(_volumes_manifest())
    (root / "etc/containerd/cri-base.json").write_text(json.dumps(_runtime_spec(programs["ctr"])))
    settings = root / "etc/containerd/config.toml"
    # Without CAP_SYS_RESOURCE, which machines in machines lack, no score may be lowered.
    settings.write_text(settings.read_text().replace("restrict_oom_score_adj = false", "restrict_oom_score_adj = true"))


def _programs() -> dict[str, Path]:
    return {program.name: path_of(program) for program in pinned_versions.KIND_NODE}


def _runtime_spec(ctr: Path) -> dict[str, Any]:
    """Containerd's own, with kind's hook and without limits, which its node sets."""
    spec: dict[str, Any] = json.loads(_run(str(ctr), "oci", "spec"))
    spec.setdefault("hooks", {}).setdefault("createContainer", []).append({"path": "/kind/bin/mount-product-files.sh"})
    spec["process"].pop("rlimits", None)
    return spec


def _volumes_manifest() -> str:
    """The provisioner's own manifests, with our images, as the default class under kind's name."""
    text = (pinned_versions.binaries("storage") / pinned_versions.VOLUMES_MANIFEST).read_text()
    documents = [document for document in yaml.safe_load_all(text) if document]
    for document in documents:
        match document["kind"]:
            case "Deployment":
                (container,) = document["spec"]["template"]["spec"]["containers"]
                container |= {"image": VOLUMES_IMAGE}
                container["command"] += ["--helper-image", VOLUMES_HELPER]
            case "StorageClass":
                document["metadata"] = {
                    "name": "standard",
                    "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
                }
            case "ConfigMap":
                data = document["data"]
                data["helperPod.yaml"] = re.sub(r"image: \S+", f"image: {VOLUMES_HELPER}", data["helperPod.yaml"])
                data["config.json"] = data["config.json"].replace("/opt/", "/var/")
    return yaml.safe_dump_all(documents)


def _images(root: Path, work: Path) -> list[OciImage]:
    """All images of a cluster's own pods, under the names that kubeadm and containerd look for."""
    programs = _programs()
    kubeadm = str(programs["kubeadm"])
    wanted = _run(kubeadm, "config", "images", "list", "--kubernetes-version", pinned_versions.KUBERNETES).split()
    settings = tomllib.loads((root / "etc/containerd/config.toml").read_text())
    wanted.append(settings["plugins"]["io.containerd.grpc.v1.cri"]["sandbox_image"])
    made = [_image(work, VOLUMES_IMAGE, [_program(work, programs["local-path-provisioner"])])]
    made.append(_image(work, network_policies.IMAGE, [_program(work, network_policies.build(), "bin/netpol")]))
    made.append(_image(work, VOLUMES_HELPER, [_tree(work, root, "helper", "/bin/sh", "/bin/mkdir", "/bin/rm")]))
    for name in dict.fromkeys(wanted):
        program = name.rpartition("/")[2].partition(":")[0]
        if program == "pause":
            made.append(replace(image_set.pause(), name=name, config={"Entrypoint": ["/pause"]}))
        elif program in programs:
            place = program if program == "coredns" else f"usr/local/bin/{program}"
            below = [_tree(work, root, "nftables", "/usr/sbin/nft")] if program == "kube-proxy" else []
            made.append(_image(work, name, [*below, _program(work, programs[program], place)], f"/{place}"))
        else:
            raise ClusterError(f"kubeadm wants the image {name}, for which there is no program")
    return made


def _image(work: Path, name: str, roots: Sequence[Path], entry: str = "") -> OciImage:
    config = {"Entrypoint": [entry], "Env": [_PATH]} if entry else {"Env": [_PATH]}
    return OciImage(name, [_layer(work, root) for root in roots], config)


def _layer(work: Path, root: Path) -> ImageLayer:
    return write_layer(root, work / f"{root.name}.tar.gz")


def _program(work: Path, program: Path, place: str = "") -> Path:
    """A folder with one program in it."""
    folder = work / f"layer-{program.name}"
    target = folder / (place or f"usr/local/bin/{program.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(program, target)
    return folder


def _tree(work: Path, root: Path, name: str, *programs: str) -> Path:
    """A folder with some of Debian's programs, and the libraries that they load."""
    libraries = re.findall(r"(/\S+) \(0x", _run("chroot", str(root), "ldd", *programs))
    folder = work / f"layer-{name}"
    folder.mkdir(exist_ok=True)
    packed = ["chroot", str(root), "tar", "--dereference", "-cf", "-", *programs, *dict.fromkeys(libraries)]
    with subprocess.Popen(packed, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tar:
        subprocess.run(["tar", "-xf", "-", "-C", str(folder)], stdin=tar.stdout, check=True)
    return folder


def _fill_store(root: Path, work: Path) -> None:
    """Gives the images to containerd's store below ``root``, by a containerd of this machine."""
    programs = _programs()
    with _containerd(programs["containerd"], root, work) as address:
        client = [str(programs["ctr"]), "--address", address, "--namespace", "k8s.io"]
        pinned = "--label=io.cri-containerd.pinned=pinned"
        _run(*client, "images", "import", pinned, "--all-platforms", "--no-unpack", str(work / "images.tar"))
    shutil.rmtree(root / "var/lib/containerd/tmpmounts", ignore_errors=True)


@contextmanager
def _containerd(program: Path, root: Path, work: Path) -> Iterator[str]:
    """Yields the address of a containerd without plugins of Kubernetes."""
    address = str(work / "containerd.sock")
    (work / "containerd.toml").write_text(
        f'version = 2\nroot = "{root / "var/lib/containerd"}"\nstate = "{work / "state"}"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", '
        '"io.containerd.cri.v1.images", "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]\n'
        f'[grpc]\naddress = "{address}"\n'
    )
    log = work / "containerd.log"
    with log.open("wb") as out:
        daemon = subprocess.Popen([program, "-c", str(work / "containerd.toml")], stdout=out, stderr=out)
        try:
            end = time.monotonic() + _IMPORT_SECONDS
            while not Path(address).exists():
                if daemon.poll() is not None or time.monotonic() > end:
                    raise ClusterError(f"containerd does not start:\n{log.read_text()[-2_000:]}")
                time.sleep(0.05)
            yield address
        finally:
            daemon.terminate()
            daemon.wait()


def _import(root: Path, name: str, environ: Mapping[str, str]) -> None:
    changes = (
        'ENTRYPOINT ["/usr/local/bin/entrypoint","/sbin/init"]',
        "ENV container=docker",
        "STOPSIGNAL SIGRTMIN+3",
    )
    words = [word for change in changes for word in ("--change", change)]
    packed = ["tar", "-C", str(root), "--numeric-owner", "--xattrs", "-cf", "-", "."]
    with subprocess.Popen(packed, stdout=subprocess.PIPE) as tar:
        done = subprocess.run(
            ["podman", "import", "--quiet", *words, "-", name],
            env=environ,
            stdin=tar.stdout,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode or tar.returncode:
        raise ClusterError(f"podman import failed:\n{done.stderr[-2_000:]}")


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(words[:3])} failed:\n{done.stderr[-2_000:]}")
    return done.stdout

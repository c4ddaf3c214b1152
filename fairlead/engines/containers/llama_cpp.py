"""The container of llama.cpp: `llama-server` with flags of the sources that llama-cpp-python 0.3.36
carries.

A test checks each flag against the parser of those sources.

The preStop hook for images without Python: with a shell and curl.

It is for instances of one pod: it knows no leader. Nothing may listen since the engine has ended,
or since it is starting. The first process of a container loses a SIGTERM that it neither catches
nor blocks, and would then hold its devices until SIGKILL. So the hook waits until that process
notices SIGTERM.
"""

from dataclasses import dataclass
from typing import Any, Final

from fairlead.api.spec.pools import PoolRole
from fairlead.engines.containers.base import HTTP_PORT, EngineContainer, HealthProbe, InstancePod, host_resources
from fairlead.engines.containers.prestop_drain import IDLE_SECONDS, PreStopDrain
from fairlead.engines.containers.weights import model_weights
from fairlead.errors import BadInput
from fairlead.fleet.labels import PodEngineInfo

SHELL_DRAIN_SCRIPT: Final = """\
url=$1 end=$(($(date +%s) + $2)) quiet=$3 idle_since=
shift 3
notices() {
  for mask in $(sed -n 's/^Sig[BC][lg][kt]:.*\\(....\\)$/\\1/p' /proc/1/status); do
    if [ $((0x$mask >> 14 & 1)) -eq 1 ]; then return 0; fi
  done
  [ ! -r /proc/1/status ]
}
while [ "$(date +%s)" -lt "$end" ]; do
  page=$(curl -sf --noproxy '*' -m 5 "$url"); result=$?
  if [ "$result" -eq 7 ] && notices; then break; fi
  busy=$result
  for name; do
    case $(printf '%s\\n' "$page" | sed -n "s/^$name[^ ]* //p") in
      '' | 0 | 0.0) ;;
      *) busy=1 ;;
    esac
  done
  now=$(date +%s)
  if [ "$busy" -ne 0 ]; then idle_since=; else idle_since=${idle_since:-$now}; fi
  if [ -n "$idle_since" ] && [ $((now - idle_since)) -ge "$quiet" ]; then break; fi
  sleep 0.5
done
"""
"""Arguments: URL, maximum seconds, idle seconds, gauges. Result 7 of curl: nothing listens."""

LOAD_GAUGES: Final = ("llamacpp:requests_processing", "llamacpp:requests_deferred")
_PROGRAM: Final = "/app/llama-server"
"""Its place in the published server images."""
_SUFFIX: Final = ".gguf"


@dataclass(frozen=True, slots=True)
class ShellDrain(PreStopDrain):
    """A hook that polls like that of `prestop_drain`. It needs a `url`."""

    def prestop_hook(self, max_seconds: float) -> dict[str, Any]:
        """Returns the container's preStop hook.

        max_seconds: maximum time of the hook.
        """
        assert self.url is not None
        arguments = [self.url, f"{max_seconds:g}", str(IDLE_SECONDS), *self.gauges]
        return {"exec": {"command": ["sh", "-c", SHELL_DRAIN_SCRIPT, "drain", *arguments]}}


def llama_cpp_container(pod: InstancePod) -> EngineContainer:
    """Returns one pod's container. Raises BadInput for features that llama.cpp lacks."""
    _check_supported(pod)
    source, shape = pod.spec.model, pod.pool.parallelism
    weights = model_weights(source)
    is_repository = source.scheme == "hf"
    model = f"--hf-repo={weights.argument}" if is_repository else f"--model={weights.argument}"
    cpu, memory = host_resources(pod, shape.ranks_per_pod)
    return EngineContainer(
        command=(_PROGRAM,),
        args=(model, *_flags(pod), *pod.spec.engine.args),
        env=weights.env,
        ports={"http": HTTP_PORT},
        pod_info=PodEngineInfo(port=HTTP_PORT, served_name=source.engine_name),
        health=HealthProbe(),
        drain=ShellDrain(f"http://127.0.0.1:{HTTP_PORT}/metrics", LOAD_GAUGES),
        weights=weights,
        cpu_millis=cpu,
        memory_bytes=memory,
    )


def _check_supported(pod: InstancePod) -> None:
    source, shape, pool = pod.spec.model, pod.pool.parallelism, f"spec.pools[{pod.pool.name}]"
    if source.scheme not in ("hf", "pvc", "file"):
        hint = "copy the GGUF file to a claim and write pvc:CLAIM/PATH.gguf, or use hf://"
        raise BadInput(f"llama.cpp cannot load {source.scheme}:// weights", field="spec.model.uri", hint=hint)
    if source.scheme != "hf" and not source.location.endswith(_SUFFIX):
        message = f"llama.cpp loads one GGUF file, and {source.uri} does not end with {_SUFFIX}"
        raise BadInput(message, field="spec.model.uri", hint="write the path of the file, such as pvc:models/a.gguf")
    if source.revision is not None:
        hint = "remove revision, and name the quantization in the uri: hf://user/model:Q4_K_M"
        raise BadInput("llama.cpp loads no revision of a repository", field="spec.model.revision", hint=hint)
    if pod.pool.role is not PoolRole.SERVE:
        message = "llama.cpp does not transfer KV between engines"
        raise BadInput(message, field=f"{pool}.role", hint="use the role Serve")
    if shape.nodes > 1 or shape.data > 1:
        message = "one llama-server runs on one node, without data-parallel copies"
        raise BadInput(message, field=f"{pool}.parallelism", hint="use more replicas, or tensor or pipeline alone")
    if shape.tensor > 1 and shape.pipeline > 1:
        message = "llama.cpp splits a model by rows or by layers, and not by both"
        raise BadInput(message, field=f"{pool}.parallelism", hint="leave tensor or pipeline out")


def _flags(pod: InstancePod) -> list[str]:
    """Returns the flags.

    Why: `/slots` shows prompts. The web page is no part of the API. With a projector, the engine
    fetches any URL that a request names.
    """
    flags = [f"--alias={pod.served_name}", f"--host={pod.host}", f"--port={HTTP_PORT}"]
    flags += ["--metrics", "--no-slots", "--no-ui", "--no-mmproj"]
    if pod.pool.parallelism.tensor > 1:
        flags.append("--split-mode=row")
    return flags

"""docs/reference/engines.md: engines, versions and command line switches, from golden files and the
engines' own lists. docs/reference/catalog.md: the models of the catalogue, and accelerators.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from fairlead.api.manifest_schema import SCHEMA_FILE
from fairlead_cli.catalog.architecture import count_parameters, kv_bytes_per_device, weight_bytes
from fairlead_cli.catalog.command import DeploymentOptions, render_with_class
from fairlead_cli.catalog.entry import CatalogEntry, find_entry, read_entries
from fairlead_cli.catalog.memory_plan import MEMORY_SHARE, WORKSPACE_BYTES, PlanRequest, choose_plan, gib, known_device
from fairlead_cli.catalog.roofline import (
    BANDWIDTH_SHARE,
    COMPUTE_SHARE,
    HOPPER_COMPUTE_SHARE,
    AcceleratorFigures,
    accelerator_figures,
)
from fairlead_operator.render import CURRENT_VERSION
from scripts.generators.engine_flags import known

CASES: Final = Path(__file__).resolve().parents[2] / "tests" / "operator" / "render" / "cases"
GOLDEN: Final = CASES.parent / "golden" / f"v{CURRENT_VERSION}"
_TOKENS: Final = 10_000
_HEAD: Final = """# Engines

What runs in the pods of a `ModelDeployment`, by `spec.engine.type`. Every switch below is checked against the engine itself, in the
version of the table; other releases work as far as they know the same switches. vLLM refuses to start with an unknown switch, and
`fairlead lint` names the switches that vLLM and SGLang of these versions lack. It does not look into images.

| vLLM | what it takes |
|---|---|
| before 0.11.0 | nothing: it does not know `--allowed-media-domains`, which every engine gets |
| 0.11.0 | the switches of an engine on one node, without `kvCache.transfer` and `kvCache.offload` |
| {vllm} | every switch |

| kind | version | command | weights | KV hand-over |
|---|---|---|---|---|
| `vllm` | {vllm} | `vllm serve` | every source | NIXL, Mooncake |
| `sglang` | {sglang} | `python3 -m sglang.launch_server` | every source | NIXL, Mooncake, between Prefill and Decode only |
| `llamacpp` | {llamacpp} | `/app/llama-server` | `hf://`, `pvc:` and `file://` | none |
| `trtllm` | {trtllm} | `trtllm-serve` | `hf://`, `oci://`, `pvc:` and `file://` | none |
| `sim` | this release | `python3 -m fairlead_sim engine` | none | simulated |
| `custom` | yours | yours | every source, as `$(MODEL_PATH)` | yours |
| `external` | yours | none: nothing is created | | yours |
| `openai` | others' | none: [an API outside](../how-to/external-engines.md#apis-that-others-run) | `openai://NAME` | none |

## Weights

| source | becomes |
|---|---|
| `hf://` | the engine downloads it into `HF_HOME`: a scratch volume, or `model.cache` |
| `s3://`, `gs://` | streamed into the accelerator (Run:ai streamer, in the image); nothing is kept, and `model.cache` is refused |
| `oci://` | an image volume, which the node keeps (Kubernetes 1.35); `model.credentials` is then a pull secret |
| `pvc:` | mounted read-only |
| `file://` | a path in the image, or on a volume of the pool's template |

`model.credentials` becomes environment variables of the engine. Images need `python3`, which the hook below runs.
Those of llama.cpp need a shell and curl.

## A pod's life

- **Start.** The start-up probe gives 30 minutes; `startupProbe` in a pool's `template` gives more.
- **Ready** is `GET /health`. It says nothing of load; gateways know that themselves. Liveness takes a minute or two to give up.
- **End.** A pod that is deleted leaves the fleet at once. Before SIGTERM, a hook waits until the engine's own metrics say that
  nothing runs or waits there for 5 s, for at most `rollout.drainTimeout`; SIGKILL follows 30 s after that. A custom engine, whose
  metrics are not known, gets SIGTERM after 10 s and should finish by itself what it has. So does TensorRT-LLM, whose metrics do
  not say when it is idle.
- **Restricted** Pod Security throughout: user 65532 (any other works; on OpenShift the one that it
  assigns), no capabilities, no token, `HOME` on a scratch volume. RDMA drivers that want `IPC_LOCK` get it from `template`, in a
  namespace that allows it.
- **Upgrades** of Fairlead change no pod: the Deployment notes what of the installation (render version, image, pull secrets, user)
  went into its pods, and keeps that until a part of the spec that shapes pods changes. Replicas, SLO, routing and `rollout` other
  than `drain` shape none.

## What requests can make an engine do

`--allowed-media-domains` restricts [media by URL](requests.md#media-by-url). Both engines read an
empty list as all hosts; `media.invalid` is a name that never resolves. Engines that share blocks
start with a known hash seed, and vLLM with `--prefix-caching-hash-algo=sha256`.

## What a node is asked for

Devices as the AcceleratorClass says. Real engines also ask for two cores and one for each device, for 4 GiB and 4 more for each
device, for what `kvCache.offload` takes, and with NIXL for one core more, which its progress thread keeps busy. Real engines
have `/dev/shm` in memory, at most 16 GiB. Where KV or layers cross the network, one `rdmaResource`.

## Ports

| port | what |
|---|---|
| 8000 | HTTP; of a custom engine `engine.port` |
| 5500 + rank | KV events (ZMQ) |
| 5600 + rank | NIXL's side channel |
| 5700 + rank | replay of KV events |
| 5800 + rank | KV for peers, with `kvCache.offload.peers` |
| 8998 | Mooncake's and SGLang's bootstrap server, on prefill instances |
| 29501 | where the nodes of one instance meet |

None of these but HTTP knows any authentication: the NetworkPolicy lets in pods of the same model, and the gateways to HTTP, events
and bootstrap.
"""


def engines_page(note: str) -> str:
    """Returns docs/reference/engines.md."""
    versions = {kind: entry["version"] for kind, entry in known().items()}
    tables = "".join(_table(kind) for kind in sorted(versions))
    return f"{note}{_HEAD.format(**versions)}{tables}"


def _table(kind: str) -> str:
    rows: dict[str, tuple[str, list[str]]] = {}
    for case, argument in _arguments(kind):
        flag, _, value = argument.partition("=")
        _, cases = rows.setdefault(flag, (value, []))
        if case not in cases:
            cases.append(case)
    lines = []
    for flag, (value, cases) in sorted(rows.items()):
        others = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
        lines.append(f"| `{flag}` | {f'`{value}`' if value else ''} | {cases[0]}{others} |\n")
    count = len(known()[kind]["flags"])
    head = f"\n## Switches of {kind}\n\nOf the {count} that it knows, these are written; `engine.args` come after them and win.\n\n"
    return head + "| switch | for example | in the golden file |\n|---|---|---|\n" + "".join(lines)


def _arguments(kind: str) -> Iterator[tuple[str, str]]:
    for path in sorted(GOLDEN.glob("*.yaml")):
        model = next(yaml.safe_load_all((CASES / path.name).read_text(encoding="utf-8")))
        engine_arguments = model["spec"].get("engine", {}).get("args", [])
        for manifest in yaml.load_all(
            path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        ):
            for container in _engines(manifest or {}):
                if manifest["metadata"]["labels"]["fairlead.io/engine"] == kind:
                    generated = (
                        argument
                        for argument in container["args"]
                        if argument.startswith("--") and argument not in engine_arguments
                    )
                    yield from ((path.stem, argument) for argument in generated)


def _engines(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    spec = manifest.get("spec", {})
    group = spec.get("leaderWorkerTemplate", {})
    for template in (spec.get("template"), group.get("leaderTemplate"), group.get("workerTemplate")):
        if template is not None:
            yield template["spec"]["containers"][0]


def catalog_example() -> str:
    """Returns examples/catalog/qwen3-32b.yaml."""
    figures, entry = accelerator_figures(), find_entry("qwen3-32b")
    device = known_device("nvidia-h100", figures, None)
    plan = choose_plan(PlanRequest(entry, device))
    if plan is None:
        raise ValueError("the example does not fit")
    note = "# Written by `fairlead catalog show qwen3-32b --on nvidia-h100 --with-class`.\n"
    manifests = render_with_class(entry, plan, DeploymentOptions(), figures[device.name])
    return note + manifests.replace(SCHEMA_FILE, f"../../crds/schema/{SCHEMA_FILE}")


def catalog_page(note: str) -> str:
    """Returns docs/reference/catalog.md."""
    entries = read_entries().values()
    models = "".join(_model(entry) for entry in entries)
    sources = "".join(_sources(entry) for entry in entries)
    accelerators = "".join(_accelerator(name, figures) for name, figures in accelerator_figures().items())
    return (
        f"{note}# Catalogue of models\n\n"
        "What `fairlead catalog` knows ([how to use it](../how-to/catalog.md)). Parameters, weights and KV are\n"
        "computed from the figures of each model's `config.json`.\n\n"
        "| Name | Repository | Parameters | Weights | Longest context "
        f"| KV of {_TOKENS:,} tokens | Tool calls | Reasoning |\n|---|---|---|---|---|---|---|---|\n{models}\n"
        "Parsers are those of vLLM / SGLang; a dash stands for none. KV is that of one device.\n\n"
        "## Memory\n\n"
        f"An engine takes {MEMORY_SHARE:.0%} of a device. {gib(WORKSPACE_BYTES)} of it are workspace: activations, "
        "graphs and buffers of\ncommunication. The rest holds weights and KV. A plan fits if there is room for the "
        "weights and for one\nrequest of the whole context.\n\n"
        "- KV has 16 bits a value. A KV cache of 8 bits (`--kv-cache-dtype=fp8`) holds twice as much.\n"
        "- Heads of K and V are divided among devices. A device has at least one head, and compressed KV\n"
        "  (MLA) is whole on each.\n"
        "- vLLM keeps only the window of layers that have one, and the tokens of one step. SGLang, and\n"
        "  vLLM with chunked attention (Llama 4), keep all.\n"
        "- Layers with linear attention (Qwen3.5 and later) keep a state of one size for each request.\n"
        "  SGLang reserves a pool for such states, whose size is a share of the others'.\n"
        "- Sparse attention (DeepSeek-V3.2, GLM-5) keeps all KV, and a key of 8 bits for its indexer.\n"
        "- FP8 halves the layers; MXFP4 and the INT4 of Kimi shrink the experts. Embeddings have 16 bits.\n"
        "  Layers for multi-token prediction are not loaded. The vision part of Llama 4 is not counted.\n"
        "- Layers quantized in blocks are split only where each device gets whole blocks.\n\n"
        "## Accelerators\n\n"
        "Memory is what drivers report. Bandwidth and operations are those of data sheets, dense. A\n"
        f"roofline takes {COMPUTE_SHARE:.0%} of the operations and {BANDWIDTH_SHARE:.0%} of the bandwidth; of the\n"
        f"operations of H100 and H200 it takes {HOPPER_COMPUTE_SHARE:.0%}, as measured on an H100.\n\n"
        "| Class | Memory | Bandwidth | bf16 | fp8 | fp4 | Node label | Source |\n|---|---|---|---|---|---|---|---|\n"
        f"{accelerators}\n"
        f"## Sources\n\n{sources}"
    )


def _model(entry: CatalogEntry) -> str:
    config = entry.config
    kv = kv_bytes_per_device(config, _TOKENS, 1, has_windows=False)
    tools = _pair(entry.vllm.tool_call_parser, entry.sglang.tool_call_parser)
    reasoning = _pair(entry.vllm.reasoning_parser, entry.sglang.reasoning_parser)
    return (
        f"| `{entry.name}` | {entry.repository} | {count_parameters(config).total / 1e9:,.1f} B "
        f"| {gib(weight_bytes(config))} | {config.max_position_embeddings:,} | {gib(kv)} | {tools} | {reasoning} |\n"
    )


def _pair(vllm: str | None, sglang: str | None) -> str:
    return " / ".join(f"`{name}`" if name else "–" for name in (vllm, sglang))


def _sources(entry: CatalogEntry) -> str:
    lines = "".join(f"- {source}\n" for source in (*entry.config_sources, *entry.parser_sources))
    return f"### {entry.name}\n\n{lines}\n"


def _accelerator(name: str, figures: AcceleratorFigures) -> str:
    flops = " | ".join(
        f"{figures.flops[kind] / 1e12:,.0f} T" if kind in figures.flops else "–" for kind in ("bf16", "fp8", "fp4")
    )
    label = f"`{figures.node_label}`" if figures.node_label else "–"
    return (
        f"| `{name}` | {gib(figures.memory_bytes)} | {figures.bytes_per_second / 1e12:,.2f} TB/s | {flops} | {label} "
        f"| {figures.source} |\n"
    )

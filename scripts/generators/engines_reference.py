"""Tables of the pages of engines and models.

Those of docs/reference/engines.md come from golden files and the engines' own lists of switches,
those of docs/reference/catalog.md from the catalogue.
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
from scripts.generators.page_tables import with_tables

CASES: Final = Path(__file__).resolve().parents[2] / "tests" / "operator" / "render" / "cases"
GOLDEN: Final = CASES.parent / "golden" / f"v{CURRENT_VERSION}"
_TOKENS: Final = 10_000
ENGINES_PAGE: Final = "docs/reference/engines.md"
CATALOG_PAGE: Final = "docs/reference/catalog.md"


def engines_page(root: Path) -> str:
    return with_tables(root / ENGINES_PAGE, {f"switches-{kind}": _table(kind) for kind in known()})


def engine_figures() -> dict[str, str]:
    """Returns the figures in the sentences of both pages, by name."""
    versions = {f"{kind}-switches": entry["version"].split()[-1] for kind, entry in known().items()}
    shares = {
        "memory": MEMORY_SHARE,
        "compute": COMPUTE_SHARE,
        "bandwidth": BANDWIDTH_SHARE,
        "hopper-compute": HOPPER_COMPUTE_SHARE,
    }
    return {
        **versions,
        **{f"catalog-{name}": f"{share * 100:.0f}" for name, share in shares.items()},
        "catalog-workspace": gib(WORKSPACE_BYTES).split()[0],
    }


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
    head = f"Of the {count} that it knows, these are written; `engine.args` come after them and win.\n\n"
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


def catalog_page(root: Path) -> str:
    entries = read_entries().values()
    models = (
        "| Name | Repository | Parameters | Weights | Longest context "
        f"| KV of {_TOKENS:,} tokens | Tool calls | Reasoning |\n|---|---|---|---|---|---|---|---|\n"
    )
    accelerators = (
        "| Class | Memory | Bandwidth | bf16 | fp8 | fp4 | Node label | Source |\n|---|---|---|---|---|---|---|---|\n"
    )
    tables = {
        "models": models + "".join(map(_model, entries)),
        "accelerators": accelerators + "".join(_accelerator(*row) for row in accelerator_figures().items()),
        "sources": "\n".join(map(_sources, entries)),
    }
    return with_tables(root / CATALOG_PAGE, tables)


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
    return f"### {entry.name}\n\n{lines}"


def _accelerator(name: str, figures: AcceleratorFigures) -> str:
    flops = " | ".join(
        f"{figures.flops[kind] / 1e12:,.0f} T" if kind in figures.flops else "–" for kind in ("bf16", "fp8", "fp4")
    )
    label = f"`{figures.node_label}`" if figures.node_label else "–"
    return (
        f"| `{name}` | {gib(figures.memory_bytes)} | {figures.bytes_per_second / 1e12:,.2f} TB/s | {flops} | {label} "
        f"| {figures.source} |\n"
    )

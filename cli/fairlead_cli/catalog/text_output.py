"""The table of the catalogue, and the same values for programs."""

from collections.abc import Mapping, Sequence
from typing import Any

from fairlead_cli.catalog.architecture import count_parameters, weight_bytes
from fairlead_cli.catalog.entry import CatalogEntry
from fairlead_cli.catalog.memory_plan import MemoryPlan, gib
from fairlead_cli.formatting import UNKNOWN, align_columns


def entry_values(entry: CatalogEntry, plan: MemoryPlan | None) -> dict[str, Any]:
    """Returns an entry as a value for JSON.

    plan: on an accelerator; None without one, or where the model does not fit.
    """
    return {
        "name": entry.name,
        "repository": entry.repository,
        "parameters": count_parameters(entry.config).total,
        "weightBytes": weight_bytes(entry.config),
        "maxContext": entry.config.max_position_embeddings,
        "devices": None if plan is None else plan.devices,
        "toolCallParser": {"vllm": entry.vllm.tool_call_parser, "sglang": entry.sglang.tool_call_parser},
        "reasoningParser": {"vllm": entry.vllm.reasoning_parser, "sglang": entry.sglang.reasoning_parser},
        "sources": [*entry.config_sources, *entry.parser_sources],
    }


def render_list(
    entries: Sequence[CatalogEntry], plans: Mapping[str, MemoryPlan | None] | None, *, is_wide: bool
) -> str:
    """Returns the table of entries.

    plans: by entry; None without an accelerator.
    is_wide: with the parsers of vLLM.
    """
    head = ["NAME", "REPOSITORY", "PARAMETERS", "WEIGHTS", "CONTEXT"]
    rows = [[*head, *(["DEVICES"] if plans is not None else []), *(["TOOLS", "REASONING"] if is_wide else [])]]
    for entry in entries:
        row = [
            entry.name,
            entry.repository,
            f"{count_parameters(entry.config).total / 1e9:,.1f}B",
            gib(weight_bytes(entry.config)),
            f"{entry.config.max_position_embeddings:,}",
        ]
        if plans is not None:
            plan = plans[entry.name]
            row.append(UNKNOWN if plan is None else str(plan.devices))
        if is_wide:
            row += [entry.vllm.tool_call_parser or UNKNOWN, entry.vllm.reasoning_parser or UNKNOWN]
        rows.append(row)
    return align_columns(rows)

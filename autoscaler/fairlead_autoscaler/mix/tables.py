"""Imported profile tables as candidates of a mix, and the grid of shapes that belongs to them."""

from collections.abc import Mapping
from dataclasses import replace

from fairlead.errors import BadInput
from fairlead.request_shapes import RequestShapeGrid
from fairlead_autoscaler.mix.profile_tables import ProfileTable, flatten
from fairlead_autoscaler.mix.types import PoolCandidate


def candidates_of(table: ProfileTable, pools: Mapping[str, PoolCandidate] | None = None) -> list[PoolCandidate]:
    """The table's accelerators in its order. ``pools``: what is known of the pool of an accelerator, by its name (bounds,
    running replicas, start-up; its throughput and cost are replaced by the table's); accelerators without one are free to be
    used or not."""
    found = []
    for one in table.accelerators:
        pool = (pools or {}).get(one.name) or PoolCandidate(one.name, one.cost_per_hour, ())
        found.append(replace(pool, cost_per_hour=one.cost_per_hour, throughput=flatten(one.requests_per_second)))
    return found


def grid_of(table: ProfileTable) -> RequestShapeGrid:
    """The buckets that the table's lengths are the upper edges of. Raises BadInput for a table without lengths (Mélange's
    files)."""
    if table.prompt_tokens is None or table.output_tokens is None:
        raise BadInput("the table does not say which lengths its rows and columns stand for", field="table")
    return RequestShapeGrid((0.0, *table.prompt_tokens), (0.0, *table.output_tokens))

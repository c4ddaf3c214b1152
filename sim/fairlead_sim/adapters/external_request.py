"""A request as an outside tool passes it to a core.

Why: cores may set attributes on it, so this module is not compiled.
"""

from fairlead_sim.workload.traces import TraceRequest


class ExternalRequest:
    """The request fields of the router seam; ``blocks`` are the keys of the full prompt blocks."""

    def __init__(self, request: TraceRequest, blocks: tuple[int, ...]) -> None:
        self.id = request.id
        self.arrival = request.arrival
        self.prompt_tokens = request.prompt_tokens
        self.blocks = blocks
        self.session = request.session
        self.tenant = request.tenant

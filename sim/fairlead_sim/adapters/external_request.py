"""A request as an outside tool offers it to a core: in a module that is not compiled, since a core may set attributes of its own."""

from fairlead_sim.workload.traces import TraceRequest


class ExternalRequest:
    """By the router seam's words; ``blocks`` are the keys of its full cache blocks."""

    def __init__(self, request: TraceRequest, blocks: tuple[int, ...]) -> None:
        self.id = request.id
        self.arrival = request.arrival
        self.prompt_tokens = request.prompt_tokens
        self.blocks = blocks
        self.session = request.session
        self.tenant = request.tenant

"""A program that makes routing decisions through ``fairlead_sim.seams``: a line with a number on
stdin is so many of them.

It imports nothing of this benchmark: it runs with the sources of either commit. Each decision is a
choice, its first token, and the end of the request of 16 decisions ago. Requests are turns of 64
conversations that grow.
"""

import sys
from collections import deque

from fairlead_sim.seams import router

_ENDPOINTS = 8
_SESSIONS = 64
_IN_FLIGHT = 16
_SHARED_BLOCKS = 4
_TURN_BLOCKS = 2
_MOST_TURNS = 16
_BLOCK_TOKENS = 512
_SECONDS_BETWEEN = 0.01


class Hints:
    """Attributes of the start, an endpoint or a request. Why: attributes are read faster than a
    mapping."""

    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)


def endpoints() -> list[Hints]:
    """Returns endpoints with equal load."""
    fields: dict[str, float] = {"inflight": 2, "waiting": 0, "running": 2, "held": 0, "pending_prefill_tokens": 0}
    fields |= {"inflight_tokens": 8_192, "kv_util": 0.25, "matched_tokens": 0}
    return [Hints(id=f"engine-{number}", up=True, **fields) for number in range(_ENDPOINTS)]


def request(number: int) -> Hints:
    """Returns request ``number``: the next turn of a conversation.

    After the last turn a new conversation begins.
    """
    session, turn = number % _SESSIONS, number // _SESSIONS
    life, turn = divmod(turn, _MOST_TURNS)
    shared = [hash((session % 8, block)) for block in range(_SHARED_BLOCKS)]
    own = [hash((session, life, block)) for block in range((turn + 1) * _TURN_BLOCKS)]
    blocks = tuple(value & 0xFFFF_FFFF_FFFF_FFFF for value in shared + own)
    return Hints(
        id=f"request-{number:08}",
        session=f"session-{session}-{life}",
        arrival=number * _SECONDS_BETWEEN,
        prompt_tokens=len(blocks) * _BLOCK_TOKENS,
        blocks=blocks,
    )


def main() -> None:
    """Answers each line with ``done`` when its decisions are made; the requests of the next line
    are drawn before that."""
    ids = [f"engine-{number}" for number in range(_ENDPOINTS)]
    engine = {"block_tokens": _BLOCK_TOKENS, "kv_tokens": 430_000, "max_seqs": 256, "step_tokens": 8_192}
    core = router(Hints(n=_ENDPOINTS, live=ids, ttft_slo=2.0, prefill_s_per_token=1e-4, **engine))
    offered = endpoints()
    in_flight: deque[tuple[Hints, str]] = deque()
    number = 0
    print("ready", flush=True)
    for line in sys.stdin:
        made = [request(number + more) for more in range(int(line))]
        print("drawn", flush=True)
        sys.stdin.readline()
        for asked in made:
            now = number * _SECONDS_BETWEEN
            chosen = core.pick(asked, offered, now)
            core.on_first_token(asked, chosen, now, 0)
            in_flight.append((asked, chosen))
            if len(in_flight) > _IN_FLIGHT:
                core.on_complete(*in_flight.popleft(), now, 128)
            number += 1
        print("done", flush=True)


if __name__ == "__main__":
    main()

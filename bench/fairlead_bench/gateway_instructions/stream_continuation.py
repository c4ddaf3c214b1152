"""Instructions of a relayed chunk, whether or not the gateway can continue the stream.

    python -m fairlead_bench stream-instructions [--new HEAD] [--base HEAD~3]

To continue a stream, the gateway asks its engine for the ids of tokens, keeps them, and takes them
out of each event. Each kind of stream has a gateway of its own, of the same compiled sources. The
base is a commit that could not continue streams from their tokens, and does not know the setting
``resume``. All kinds are compared with its one kind.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from fairlead_bench.gateway_instructions.counted_gateway import Callers, keyed_callers
from fairlead_bench.gateway_instructions.instruction_table import InstructionTable, Windows, means
from fairlead_bench.gateway_instructions.scenarios import CHUNK, STREAM, cost_of_streams, stream_scenarios
from fairlead_bench.results import ResultRow, load_goals

BASE = "98751bf8"
"""The commit before streams could be continued from their tokens."""
NAME = "stream-instructions"
ON, OFF, UNKNOWN = "ids asked for", "resume: Never", "ids asked for, the engine sends none"
KINDS = (OFF, ON, UNKNOWN)


def rows(windows: Windows, base: Windows, revision: str) -> list[ResultRow]:
    """Returns a row for each unit of each kind, compared with the base, and the ratios to `OFF`."""
    wanted, found = load_goals(NAME), []
    counted, before = means(windows), means(base)
    for unit in (CHUNK, STREAM):
        for kind in KINDS:
            name = f"{unit}, {kind}"
            found.append(wanted.ratio(f"instructions per {name}", "", counted[name], revision, before.get(name)))
        off = counted[f"{unit}, {OFF}"]
        for kind in (ON, UNKNOWN):
            name = f"{unit}, {kind}"
            found.append(wanted.ratio(f"instructions of a {name} ÷ {OFF}", "", counted[name], OFF, off))
    return found


def _streams(kinds: Sequence[str], resume: str = "", *, knows_ids: bool = True) -> Callers:
    return keyed_callers(stream_scenarios, partial(_cost, kinds), resume=resume, knows_ids=knows_ids)


def _cost(kinds: Sequence[str], counts: Mapping[str, float], turns: Mapping[str, int]) -> dict[str, float]:
    return {f"{unit}, {kind}": cost for unit, cost in cost_of_streams(counts, turns).items() for kind in kinds}


main = InstructionTable(
    NAME,
    (_streams([OFF], "Never"), _streams([ON]), _streams([UNKNOWN], knows_ids=False)),
    rows,
    base=BASE,
    base_callers=(_streams(KINDS),),
).run

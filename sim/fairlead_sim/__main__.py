"""``python -m fairlead_sim engine …``: one or many simulated engines in this process."""

import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until a signal; returns the exit code.

    Imports here: the first process of a container loses a SIGTERM that comes before its handler.
    """
    import argparse
    import asyncio
    from random import Random

    from fairlead.errors import FairleadError
    from fairlead.runtime.clock import SystemClock
    from fairlead.runtime.event_loop import loop_factory
    from fairlead_sim.server import command_line, process

    parser = argparse.ArgumentParser(prog="python -m fairlead_sim", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    engine = commands.add_parser("engine", help="serve simulated engines over HTTP")
    command_line.add_engine_arguments(engine)
    try:
        given = command_line.parse_engine_options(parser.parse_args(arguments))
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(
                process.run_engines(
                    given, clock=SystemClock(), random=Random(), print_line=lambda line: print(line, flush=True)
                )
            )
    except FairleadError as error:
        print(f"fairlead_sim: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.exit(main())

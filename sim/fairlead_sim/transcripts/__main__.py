"""``python -m fairlead_sim.transcripts DIR [--write PAGE]``: replay the recordings, print the table, write the page."""

import argparse
import asyncio
import sys
from pathlib import Path

from fairlead_sim.transcripts import manifest, report
from fairlead_sim.transcripts.replay import replay_all


def main() -> int:
    """Exit status 0 when every claim of the manifest holds."""
    parser = argparse.ArgumentParser(prog="fairlead_sim.transcripts", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of recordings (*.txt)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="also write the reference page")
    arguments = parser.parse_args()
    claimed = manifest.load()
    results = asyncio.run(replay_all(claimed, arguments.folder))
    sys.stdout.write(report.table(claimed, results) + "\n")
    if report.broken(results):
        return 1
    if arguments.write is not None:
        arguments.write.write_text(report.page(claimed), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

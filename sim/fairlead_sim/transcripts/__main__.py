"""Replays the recordings in DIR and prints the results; ``--write`` writes the reference page."""

import argparse
import asyncio
import sys
from pathlib import Path

from fairlead_sim.transcripts import manifest, report
from fairlead_sim.transcripts.replay import replay_all


def main() -> int:
    """Returns 0 if every claim of the manifest holds."""
    parser = argparse.ArgumentParser(prog="fairlead_sim.transcripts", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="the folder of recordings (*.txt)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the reference page, from the manifest alone")
    arguments = parser.parse_args()
    claimed = manifest.load_manifest()
    if arguments.folder is None and arguments.write is None:
        parser.error("nothing to do: give DIR, --write or both")
    if arguments.folder is not None:
        results = asyncio.run(replay_all(claimed, arguments.folder))
        sys.stdout.write(report.render_table(claimed, results) + "\n")
        if report.broken_claims(results):
            return 1
    if arguments.write is not None:
        arguments.write.write_text(report.render_page(claimed), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

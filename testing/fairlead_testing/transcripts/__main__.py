"""Replays the recordings in DIR and prints the results; ``--write`` writes the reference page;
``--record`` records them again.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from fairlead_testing.transcripts import recording, replay
from fairlead_testing.transcripts.replay import record_entries, replay_all


def main() -> int:
    """Returns 0 if every claim of the manifest holds."""
    parser = argparse.ArgumentParser(prog="fairlead_testing.transcripts", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="the folder of recordings (*.txt)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the reference page, from the manifest alone")
    parser.add_argument("--record", metavar="HOST:PORT", help="send the requests to this engine, and keep its answers")
    parser.add_argument(
        "--engine", metavar="NAME", default="eight-k", help="the manifest's engine that it is (%(default)s)"
    )
    parser.add_argument(
        "--into", type=Path, default=Path("out/recordings"), metavar="DIR", help="where to (%(default)s)"
    )
    arguments = parser.parse_args()
    claimed = recording.load_manifest()
    if arguments.folder is None and arguments.write is None:
        parser.error("nothing to do: give DIR, --write or both")
    if arguments.record is not None:
        if arguments.folder is None or arguments.engine not in claimed.engines:
            parser.error(f"--record needs DIR, and --engine one of {', '.join(claimed.engines)}")
        entries = claimed.entries_for(arguments.engine)
        made = asyncio.run(record_entries(entries, arguments.folder, arguments.record))
        arguments.into.mkdir(parents=True, exist_ok=True)
        for name, content in made.items():
            (arguments.into / name).write_bytes(content)
        sys.stdout.write(f"{len(made)} recordings in {arguments.into}\n")
        return 0
    if arguments.folder is not None:
        results = asyncio.run(replay_all(claimed, arguments.folder))
        sys.stdout.write(replay.render_table(claimed, results) + "\n")
        if replay.broken_claims(results):
            return 1
    if arguments.write is not None:
        arguments.write.write_text(replay.render_page(claimed), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

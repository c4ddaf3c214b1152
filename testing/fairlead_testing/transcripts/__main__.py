"""Records the exchanges with a real engine again: the same requests, its answers of now.

    python -m fairlead_testing.transcripts DIR HOST:PORT ENGINE INTO

DIR has the recordings, ENGINE is the name of the running engine's configuration in the manifest.
"""

import asyncio
import sys
from pathlib import Path

from fairlead_testing.transcripts.recording import load_manifest
from fairlead_testing.transcripts.replay import record_entries

if __name__ == "__main__":
    folder, authority, engine, into = sys.argv[1:]
    made = asyncio.run(record_entries(load_manifest().entries_for(engine), Path(folder), authority))
    Path(into).mkdir(parents=True, exist_ok=True)
    for name, content in made.items():
        (Path(into) / name).write_bytes(content)
    print(f"{len(made)} recordings in {into}")

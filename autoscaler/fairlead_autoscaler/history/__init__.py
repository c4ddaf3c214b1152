"""History: the records of past ticks, and their replay.

- `recorder`: records in memory and in files.
- `replay`: the core once more over a recording, with other settings.
"""

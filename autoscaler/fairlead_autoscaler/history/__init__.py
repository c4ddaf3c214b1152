"""History: the records of past ticks, and their replay.

- `recorder`: records in memory and in files.
- `replay`: runs the core again over a recording, with other settings.
"""

"""Messages between a worker and the supervisor.

- `reporters`: what a worker reports: dispatches, crashes, loads, times, prompts and use.
- `peer_updates`: applies what other processes did.
"""

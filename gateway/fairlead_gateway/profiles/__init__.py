"""Learns engine profiles from the requests of a gateway: the seconds per token, step and sequence.

- `messages`: timing events from workers, and profiles for them.
- `observations`: turns timing events into measured spans of an engine's time.
- `profile_estimator`: fits a profile to the spans of each kind of engine.
- `supervisor`: runs it and sends the profiles to the workers. It alone reads a clock.
"""

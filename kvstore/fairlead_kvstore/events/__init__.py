"""KV events of engines, from bytes to an unbroken sequence. Pure.

- `payloads`: the events as they are encoded in a payload
- `decoder`: from a payload to events in slices, within the limits
- `types`: frames, the outcomes of a stream, and its position
- `stream_sequencer`: `EventSequencer`, which detects gaps and restarts and requests replays
"""

"""The KV-cache index: which instance has which block, in which tier, and the indexer that maintains
it.

In reading order:

- `events`: an engine's KV events, from bytes to an unbroken sequence
- `blockstore`: the blocks of every instance, derived from events
- `reader`: ZMQ connections to engines
- `redis`: the connection to Redis, and its keys
- `index`: the index in Redis, its writer and its readers
- `fleet_reader`: `FleetReader`, which reads the engines of a fleet, in indexers and in gateways
- `indexer`: the process that reads a fleet's events and writes the index
"""

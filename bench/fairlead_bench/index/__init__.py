"""The index measured: the indexer's process, the mirror, Redis, and beside them a hash in Redis for each block."""

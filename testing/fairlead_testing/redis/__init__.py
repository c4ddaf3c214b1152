"""Real Valkey servers: single, with sentinels, and as a cluster."""

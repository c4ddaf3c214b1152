"""The index in Redis, looked at from the command line."""

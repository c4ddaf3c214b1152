"""The whole operator before a real API server that fails it: what must hold, for seconds in tests and for minutes in the soak."""

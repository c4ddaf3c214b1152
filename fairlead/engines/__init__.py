"""Engine adapters: everything that differs between engine kinds, one file a kind."""

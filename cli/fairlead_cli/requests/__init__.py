"""``fairlead requests``: the last, the slow and the failed requests, each with its main cause."""

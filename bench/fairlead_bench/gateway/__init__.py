"""What a gateway costs, beside its peers: the parts of ``bench/gateway/run.py``."""

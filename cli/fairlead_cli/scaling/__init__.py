"""What the autoscaler saw and decided, for people: ``explain scale`` and ``replay-scaling``."""

"""What a gateway learns from the requests it has seen: what a step of an engine costs, how long answers get, how much memory they
will take. Nothing here reads a clock or does I/O; times are arguments."""

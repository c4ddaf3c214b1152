"""Requests that a gateway holds: who goes next when an engine can start one, and when holding is worth it at all.

Pure: no clock, no I/O; the caller says what time it is and what the engines have before them."""

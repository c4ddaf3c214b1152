"""Turns custom resources into running engines; see operator/README.md."""

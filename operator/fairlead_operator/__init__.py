"""Turns custom resources into running engines. Not built yet; see operator/README.md."""

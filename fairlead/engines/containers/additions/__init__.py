"""Additions to the containers of all engines, whatever their kind."""

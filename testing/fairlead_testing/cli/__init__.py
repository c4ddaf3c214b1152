"""Test support for the command line."""

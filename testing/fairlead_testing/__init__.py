"""Helpers that tests of several components share; real small programs, no mocks."""

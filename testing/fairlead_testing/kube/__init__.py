"""Kubernetes for tests: a real API server, fakes, Helm, and operator processes."""

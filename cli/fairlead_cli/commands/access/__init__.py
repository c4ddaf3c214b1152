"""Verbs that show tenants, and create and revoke their API keys."""

"""The gateway's management API: `client` (which gateways, and their answers)."""

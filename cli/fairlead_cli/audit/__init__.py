"""``fairlead audit``: the audit records of gateways or of a folder. `command` is the verb."""

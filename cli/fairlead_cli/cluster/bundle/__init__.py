"""``fairlead support-bundle``: `collector` reads, `redaction` removes secrets and prompts,
`archive` packs, `command` runs it.
"""

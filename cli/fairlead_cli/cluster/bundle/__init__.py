"""``fairlead support-bundle``: `redaction` removes secrets and prompts, `archive` packs, `command`
reads the installation and runs it.
"""

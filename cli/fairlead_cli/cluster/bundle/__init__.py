"""``fairlead support-bundle``: `redaction` removes secrets and prompts, `command` reads the
installation and packs the archive.
"""

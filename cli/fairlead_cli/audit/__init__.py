"""``fairlead audit``: the audit records of gateways or of a folder.

- `command`: the verb.
- `sources`: reads the records.
- `text_output`: renders them for people.
"""

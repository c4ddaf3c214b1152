"""``fairlead audit``: the audit records of gateways or of a folder.

- `command`: from the options to the exit code.
- `sources`: reads the records.
- `text_output`: renders them for people.
"""

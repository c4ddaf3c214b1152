"""``fairlead usage`` and ``fairlead cost``.

- `command`: reads ledgers of gateways or of a folder.
- `focus`: a report as CSV with the columns of FOCUS.
"""

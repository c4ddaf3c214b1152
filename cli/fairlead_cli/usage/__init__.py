"""``fairlead usage`` and ``fairlead cost``: what tenants used, and what it costs.

`options` are those of a report, `ledger_sources` reads folders or gateways, `text_output` and
`documents` render, and `command` joins them.
"""

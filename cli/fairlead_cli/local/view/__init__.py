"""Output of ``fairlead up``: `screen` (plain lines or live) → `banner` (addresses), `frame` →
`live_view` (the picture).
"""

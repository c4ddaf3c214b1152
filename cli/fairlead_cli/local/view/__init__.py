"""Output of ``fairlead up``: `screen` (plain lines or live) → `banner` (addresses), `process_views`
→ `live_view` (the picture).
"""

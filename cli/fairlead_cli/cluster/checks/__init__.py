"""``fairlead check``: `catalogue` (all checks; `model_checks` is a part) → `analyzers` (a pure
function each) → `runner` → `text_output` → `command`.

`check` and `verdict` are the value types; `seeded_faults` lists the faults that tests seed.
"""

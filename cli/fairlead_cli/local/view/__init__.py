"""Output of ``fairlead up``: `live_view` has the plain lines and the live picture."""

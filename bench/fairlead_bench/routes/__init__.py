"""Cost of routes: processor time that a route adds to a request.

request_cost: what a route adds, and the measurement.
shadow_cost: what a copy for a shadow adds to its original.
fallback_search: the search for the next model of a request.
"""

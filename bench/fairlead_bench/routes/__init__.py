"""Cost of routes: processor time that a route adds to a request.

request_cost: the command line and the measurement.
"""

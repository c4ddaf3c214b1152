"""Driving a gateway with a trace, open loop, and reporting what came back beside what the fleet simulator says."""

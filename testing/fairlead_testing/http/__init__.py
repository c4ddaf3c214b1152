"""HTTP servers, raw clients, certificates, and network links with faults."""

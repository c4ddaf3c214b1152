"""Who holds which prefix: the index, its local mirror and what gateways publish."""

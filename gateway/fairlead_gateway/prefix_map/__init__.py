"""Between the bytes that gateways route by and the token blocks that engines tell of. No I/O and no clock."""

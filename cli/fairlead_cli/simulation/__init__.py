"""``fairlead simulate``: what is asked, the runs, and the table."""

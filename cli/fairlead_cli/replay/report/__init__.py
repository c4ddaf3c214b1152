"""The report of a replay: `report` has its value, files, plots and tables."""

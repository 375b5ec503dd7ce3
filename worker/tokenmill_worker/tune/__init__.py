"""`tokenmill tune`: which settings a model wants on this machine, measured. cli.py puts the parts together."""

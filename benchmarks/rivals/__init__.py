"""The same echo job through other job queues; each file is run by an interpreter that has that queue installed."""

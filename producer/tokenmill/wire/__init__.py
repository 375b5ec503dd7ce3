"""The contract between producers and workers: messages, keys, errors and the transitions. All that a worker imports."""

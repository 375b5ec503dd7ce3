"""Measurements: fixed seed, warm-up, both sides in one run, a table for people, one JSON line last; not tests."""

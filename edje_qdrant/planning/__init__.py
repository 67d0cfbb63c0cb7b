"""Estimates of memory, disk and time for a planned collection."""

"""Estimates of the hardware that a planned collection needs."""

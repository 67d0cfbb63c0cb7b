"""Scoring of the image-text pairs of a file."""

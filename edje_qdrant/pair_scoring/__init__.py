"""Scores for image-text pairs that a file lists."""

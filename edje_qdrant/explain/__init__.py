"""Explanations of scores: which image regions a text matches."""

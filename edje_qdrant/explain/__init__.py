"""Explanations of scores: the image regions and words that a match rests on."""

"""Losses, hard negatives and the training loop."""

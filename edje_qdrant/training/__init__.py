"""Training: recipes, data, losses, hard negatives and the loop."""

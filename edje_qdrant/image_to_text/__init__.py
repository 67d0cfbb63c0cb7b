"""Search in the other direction: captions and labels for an image."""

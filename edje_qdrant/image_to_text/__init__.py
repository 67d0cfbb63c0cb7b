"""Image to text: captions and labels for an image."""

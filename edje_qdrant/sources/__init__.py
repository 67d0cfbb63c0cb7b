"""Where images are: listing of sources, and reading of one image by its path."""

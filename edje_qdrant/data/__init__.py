"""Image-text data for training and evaluation: annotation files, tar shards, data sets."""

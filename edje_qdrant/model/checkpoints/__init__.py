"""Model folders and published checkpoints: reading and writing."""

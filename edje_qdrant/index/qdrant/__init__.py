"""A Qdrant server as a vector index."""

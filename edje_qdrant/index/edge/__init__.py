"""Qdrant Edge as a vector index in a local folder."""

"""Ingest of image files into a collection."""

"""faiss as a vector index in a local folder."""

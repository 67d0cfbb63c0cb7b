"""Two-stage search over Qdrant collections that another program filled."""

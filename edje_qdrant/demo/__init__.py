"""The procedural scenes, the bundled small model and the demo that shows reranking work."""

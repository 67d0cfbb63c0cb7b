"""Evaluation of searches on annotated images, before and after reranking."""

"""Measure how often a search finds the right answer, before and after reranking."""

"""Stage 2: candidate tokens, and the reranker that scores them."""

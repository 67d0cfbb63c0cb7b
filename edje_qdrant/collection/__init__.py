"""Image collections: vectors and payloads in an index, tokens in a store, one contract."""

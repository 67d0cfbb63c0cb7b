"""HTTP service for a collection, with a search page; needs the extra `web`."""

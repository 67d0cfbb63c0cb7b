"""Serve a collection over HTTP, with a page to search it in; needs the extra `web`."""

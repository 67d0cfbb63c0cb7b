"""Tools for agents over the Model Context Protocol (extra `mcp`): search, rerank, explain."""

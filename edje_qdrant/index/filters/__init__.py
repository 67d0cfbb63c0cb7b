"""Payload filters: checks, field paths, conversion."""

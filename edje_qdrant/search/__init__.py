"""The steps between candidates and hits: scoring within bounds, fusion, grouping, ranking."""

"""Inference-optimised form of the joint encoder."""

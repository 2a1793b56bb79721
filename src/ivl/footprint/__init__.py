"""Bytes: of weights, key/value cache and activations, and on which device they go. No torch."""

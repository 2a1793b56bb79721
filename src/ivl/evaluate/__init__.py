"""How well a model reads, and whether it computes what it should."""

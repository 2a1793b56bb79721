"""The network: vision tower, projector, decoder, and their assembly."""

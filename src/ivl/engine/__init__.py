"""From a conversation to an answer: requests, sampling, streaming. `engine.py` is the way in."""

"""Calibration: what a model's activations look like, and weights quantized with that in mind.

samples.py     calibration data: folders of pages, texts, conversations
sequences.py   a sample as the model reads it: embeddings, image features in their places
activations.py what goes into a decoder layer's matrices
awq_search.py  scales per channel and clipped ranges, searched for
awq_layer.py   one decoder layer: searched, its scales folded, rounded to 4 bits
awq.py         a whole checkpoint, one layer at a time
"""

"""From images and messages to tiles and token ids.

`tiles` chooses how an image is divided, `pixels` reads and cuts it, `template` writes a
conversation as typed segments, `tokenizer` turns those into ids. Nothing here imports torch.
"""

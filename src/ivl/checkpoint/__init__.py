"""Files on disk and named tensors: layouts, strict reading, the hub."""

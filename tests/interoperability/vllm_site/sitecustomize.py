"""For interpreters with vLLM and a torch for CPUs: declares what torchvision cannot load.

The registry has torchvision for CUDA only. Its compiled operators do not load without, and its
Python part, which is all that vLLM's InternVL needs, stops where two of them are not declared.
"""

import torch

_LIBRARY = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

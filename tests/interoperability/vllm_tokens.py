"""Greedy tokens of vLLM for questions about images: run by an interpreter that has vLLM.

    PYTHONPATH=vllm_site python vllm_tokens.py DIRECTORY DTYPE < questions.json > tokens.json

A question is {"prompt": text with <image>, "image": PATH or null, "max_tokens": n}. The last line
of the output is a JSON list with a list of token ids for each.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # One process: nothing is left behind when it is interrupted.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}

from PIL import Image
from transformers import AutoConfig, PretrainedConfig, Qwen2Config


class VisionConfig(PretrainedConfig):
    model_type = "intern_vit_6b"
    initializer_factor = 0.1
    num_channels = 3

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.__dict__.update(settings)


class ChatConfig(PretrainedConfig):
    """What `configuration_internvl_chat.py` of the official repositories makes of config.json."""

    model_type = "internvl_chat"

    def __init__(
        self,
        vision_config: dict[str, Any] | None = None,
        llm_config: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.vision_config = VisionConfig(**(vision_config or {}))
        self.text_config = self.llm_config = Qwen2Config(**(llm_config or {}))
        super().__init__(**settings)

    def get_text_config(self, *_: Any, **__: Any) -> Qwen2Config:
        return self.text_config


def main() -> None:
    directory, dtype = sys.argv[1:]
    questions = json.load(sys.stdin)
    AutoConfig.register("internvl_chat", ChatConfig)
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=directory,
        dtype=dtype,
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=1,
        limit_mm_per_prompt={"image": 1},
    )
    tokens = []
    for question in questions:
        request: dict[str, Any] = {"prompt": question["prompt"]}
        if question["image"]:
            image = Image.open(question["image"]).convert("RGB")
            request["multi_modal_data"] = {"image": image}
        sampling = SamplingParams(
            temperature=0, max_tokens=question["max_tokens"], ignore_eos=True, detokenize=False
        )
        [answer] = engine.generate(request, sampling, use_tqdm=False)
        tokens.append(list(answer.outputs[0].token_ids))
    print(json.dumps(tokens))


if __name__ == "__main__":
    main()

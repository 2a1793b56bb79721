"""Names that other servers have for things: what to send instead, and what says nothing.

People change the address of a program, and the program goes on sending what its last server took.
A field of another server's that asks for something is refused with the name that it has here; one
that asks for nothing passes. Sources: the API references of vLLM, SGLang, LMDeploy, llama.cpp's
server, text-generation-inference, Ollama and Anthropic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

ANY: Final = object()
"""As a value that says nothing: whatever it is. It only goes with another field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What one API calls the things that advice speaks of."""

    max_tokens: str
    json: str
    regex: str
    choice: str
    max_tiles: str
    repetition_penalty: str
    temperature: str
    stop: str
    seed: str
    top_k: str
    image: str
    file: str
    text: str
    system: str
    messages: str


OPENAI: Final = Words(
    max_tokens="'max_tokens'",
    json="'response_format' of the type json_schema, or 'structured_outputs.json'",
    regex="'structured_outputs.regex'",
    choice="'structured_outputs.choice'",
    max_tiles="'max_tiles'",
    repetition_penalty="'repetition_penalty'",
    temperature="'temperature'",
    stop="'stop'",
    seed="'seed'",
    top_k="'top_k'",
    image="a part of the type image_url",
    file="a part of the type file",
    text="a part of the type text",
    system="a message of the role system",
    messages="'messages'",
)
COMPLETIONS: Final = replace(
    OPENAI,
    json="'structured_outputs.json'",
    max_tiles="it to /v1/chat/completions, as 'max_tiles'",
    image="it to /v1/chat/completions, as a part of a message",
    file="it to /v1/chat/completions, as a part of a message",
    system="it to /v1/chat/completions, as a message",
    messages="'prompt', a text, or messages to /v1/chat/completions",
)
RESPONSES: Final = Words(
    max_tokens="'max_output_tokens'",
    json="'text.format' of the type json_schema",
    regex="'structured_outputs.regex' of /v1/chat/completions",
    choice="'structured_outputs.choice' of /v1/chat/completions",
    max_tiles="'max_tiles'",
    repetition_penalty="'repetition_penalty'",
    temperature="'temperature'",
    stop="'stop'",
    seed="'seed'",
    top_k="'top_k'",
    image="a part of the type input_image",
    file="a part of the type input_file",
    text="a part of the type input_text",
    system="'instructions'",
    messages="'input'",
)
OLLAMA: Final = Words(
    max_tokens="'options.num_predict'",
    json="'format'",
    regex="'structured_outputs.regex' of /v1/chat/completions",
    choice="a schema with an enum in 'format'",
    max_tiles="'options.max_tiles'",
    repetition_penalty="'options.repeat_penalty'",
    temperature="'options.temperature'",
    stop="'options.stop'",
    seed="'options.seed'",
    top_k="'options.top_k'",
    image="'images' of the message, in base64",
    file="'images' of the message, in base64",
    text="'content' as a text",
    system="a message of the role system",
    messages="'messages' of /api/chat",
)


@dataclass(frozen=True, slots=True)
class Foreign:
    """A field of others: what to do instead (with `Words` in braces), and its idle values."""

    advice: str
    idle: tuple[Any, ...] = ()


NOT_DONE = "it is not done here."
NO_BEAMS = "there is no search with beams; {temperature} and {seed} give other answers."
CLIENTS_OWN = "it is an option of the client, and not of the request."
NO_SAMPLER = "this sampler is not here."
OWN_TEMPLATE = "the model's own template is used."
NO_GRAMMAR = "grammars are not read; send {regex}, or {json}."
SIZES = "{max_tokens} bounds the answer; the server's --context bounds prompt and answer."
LOADING = "that is said when the server is started."
NO_REASONING = "the models do not reason before they answer."
ROUND_OFF = "send {image} for each picture."

FIELDS: Final[dict[str, Foreign]] = {
    # How many tokens
    "max_tokens": Foreign("send {max_tokens}."),
    "max_completion_tokens": Foreign("send {max_tokens}."),
    "max_output_tokens": Foreign("send {max_tokens}."),
    "max_new_tokens": Foreign("send {max_tokens}."),
    "max_tokens_to_sample": Foreign("send {max_tokens}."),
    "max_length": Foreign(SIZES),
    "n_predict": Foreign("send {max_tokens}.", (-1,)),
    "num_predict": Foreign("send {max_tokens}.", (-1,)),
    "num_ctx": Foreign(SIZES),
    "n_ctx": Foreign(SIZES),
    "max_model_len": Foreign(SIZES),
    "min_tokens": Foreign("an answer ends where the model ends it.", (0,)),
    "min_new_tokens": Foreign("an answer ends where the model ends it.", (0,)),
    "min_length": Foreign("an answer ends where the model ends it.", (0,)),
    "ignore_eos": Foreign("an answer ends where the model ends it.", (False,)),
    "truncate": Foreign("a prompt that is too long is refused.", (False, True)),
    "shift": Foreign("an answer ends where the context does.", (False, True)),
    "truncate_prompt_tokens": Foreign("a prompt that is too long is refused."),
    "n_keep": Foreign("a prompt that is too long is refused.", (0, -1)),
    "num_keep": Foreign("a prompt that is too long is refused.", (0, -1, 4)),
    "n_discard": Foreign(NOT_DONE, (0,)),
    "t_max_predict_ms": Foreign("send {max_tokens}.", (0, -1)),
    # Forms
    "guided_json": Foreign("send {json}."),
    "guided_regex": Foreign("send {regex}."),
    "guided_choice": Foreign("send {choice}."),
    "guided_grammar": Foreign(NO_GRAMMAR),
    "guided_decoding_backend": Foreign(LOADING, (ANY,)),
    "guided_whitespace_pattern": Foreign(NOT_DONE),
    "structural_tag": Foreign("send {json}."),
    "grammar": Foreign(NO_GRAMMAR, ("",)),
    "ebnf": Foreign(NO_GRAMMAR, ("",)),
    "regex": Foreign("send {regex}."),
    "json_schema": Foreign("send {json}.", ({},)),
    "schema": Foreign("send {json}."),
    "response_schema": Foreign("send {json}."),
    "response_format": Foreign("send {json}."),
    "response_model": Foreign("send {json}."),
    "format": Foreign("send {json}.", ("",)),
    "structured_outputs": Foreign("send {json}."),
    "guidance": Foreign("send {json}."),
    # Images
    "max_dynamic_patch": Foreign("send {max_tiles}."),
    "min_dynamic_patch": Foreign("the model's own number is used; {max_tiles} is the most.", (1,)),
    "max_num": Foreign("send {max_tiles}."),
    "max_patches": Foreign("send {max_tiles}."),
    "max_tiles": Foreign("send {max_tiles}."),
    "max_pixels": Foreign("send {max_tiles}: an image becomes tiles of 448 pixels a side."),
    "min_pixels": Foreign("send {max_tiles}: an image becomes tiles of 448 pixels a side."),
    "mm_processor_kwargs": Foreign("send {max_tiles}.", ({},)),
    "media_io_kwargs": Foreign(NOT_DONE, ({},)),
    "images": Foreign(ROUND_OFF, ([],)),
    "image": Foreign(ROUND_OFF),
    "image_url": Foreign(ROUND_OFF),
    "image_data": Foreign(ROUND_OFF, ([],)),
    "files": Foreign("send {file} for each.", ([],)),
    "file_url": Foreign("files are not fetched; send {file}, with the bytes in it.", ("",)),
    "video": Foreign("send frames of it, {image} for each."),
    "fps": Foreign("send frames of the video, {image} for each."),
    "num_frames": Foreign("send frames of the video, {image} for each."),
    # How tokens are chosen
    "do_sample": Foreign("send {temperature}; without one the likeliest token is taken.", (False,)),
    "repeat_penalty": Foreign("send {repetition_penalty}.", (1, 1.0)),
    "repetition_penalty": Foreign("send {repetition_penalty}.", (1, 1.0)),
    "repeat_last_n": Foreign("{repetition_penalty} weighs all tokens.", (64, -1, 0)),
    "penalize_nl": Foreign(NOT_DONE, (False, True)),
    "penalize_newline": Foreign(NOT_DONE, (False, True)),
    "random_seed": Foreign("send {seed}."),
    "seeds": Foreign("send {seed}."),
    "stop_sequences": Foreign("send {stop}.", ([],)),
    "stop_strings": Foreign("send {stop}.", ([],)),
    "stop_words": Foreign("send {stop}.", ([],)),
    "stop_token_ids": Foreign("send {stop}, as texts.", ([],)),
    "stop_regex": Foreign("send {stop}, as texts."),
    "bad_words": Foreign("'logit_bias' of -100 forbids a token.", ([],)),
    "allowed_token_ids": Foreign("send {choice}."),
    "temperature": Foreign("send {temperature}."),
    "temp": Foreign("send {temperature}."),
    "top_a": Foreign(NO_SAMPLER, (0, 0.0)),
    "tfs": Foreign(NO_SAMPLER, (1, 1.0)),
    "tfs_z": Foreign(NO_SAMPLER, (1, 1.0)),
    "typical_p": Foreign(NO_SAMPLER, (1, 1.0)),
    "typical": Foreign(NO_SAMPLER, (1, 1.0)),
    "epsilon_cutoff": Foreign(NO_SAMPLER, (0, 0.0)),
    "eta_cutoff": Foreign(NO_SAMPLER, (0, 0.0)),
    "top_n_sigma": Foreign(NO_SAMPLER, (-1, -1.0, 0)),
    "mirostat": Foreign(NO_SAMPLER, (0,)),
    "mirostat_mode": Foreign(NO_SAMPLER, (0,)),
    "mirostat_tau": Foreign(NO_SAMPLER, (ANY,)),
    "mirostat_eta": Foreign(NO_SAMPLER, (ANY,)),
    "dynatemp_range": Foreign(NO_SAMPLER, (0, 0.0)),
    "dynatemp_exponent": Foreign(NO_SAMPLER, (ANY,)),
    "xtc_probability": Foreign(NO_SAMPLER, (0, 0.0)),
    "xtc_threshold": Foreign(NO_SAMPLER, (ANY,)),
    "dry_multiplier": Foreign(NO_SAMPLER, (0, 0.0)),
    "dry_base": Foreign(NO_SAMPLER, (ANY,)),
    "dry_allowed_length": Foreign(NO_SAMPLER, (ANY,)),
    "dry_penalty_last_n": Foreign(NO_SAMPLER, (ANY,)),
    "dry_sequence_breakers": Foreign(NO_SAMPLER, (ANY,)),
    "min_keep": Foreign(NO_SAMPLER, (0, 1)),
    "samplers": Foreign("the order is fixed: penalties, temperature, top_k, top_p, min_p.", ([],)),
    "no_repeat_ngram_size": Foreign("send {repetition_penalty}.", (0,)),
    "length_penalty": Foreign(NO_BEAMS, (1, 1.0)),
    "early_stopping": Foreign(NO_BEAMS, (False,)),
    "num_beams": Foreign(NO_BEAMS, (1,)),
    "use_beam_search": Foreign(NO_BEAMS, (False,)),
    "best_of": Foreign("send 'n' for several answers.", (1,)),
    "num_return_sequences": Foreign("send 'n' for several answers.", (1,)),
    "watermark": Foreign(NOT_DONE, (False,)),
    # What comes back
    "skip_special_tokens": Foreign("control tokens are never part of an answer.", (True,)),
    "spaces_between_special_tokens": Foreign(NOT_DONE, (True, False)),
    "include_stop_str_in_output": Foreign("a stop text is not part of an answer.", (False,)),
    "return_full_text": Foreign("only what is new comes back.", (False,)),
    "echo": Foreign("only what is new comes back.", (False,)),
    "details": Foreign("send 'logprobs'.", (False,)),
    "decoder_input_details": Foreign(NOT_DONE, (False,)),
    "prompt_logprobs": Foreign("only tokens of the answer have them: send 'logprobs'.", (0,)),
    "n_probs": Foreign("send 'logprobs' and 'top_logprobs'.", (0,)),
    "top_n_tokens": Foreign("send 'logprobs' and 'top_logprobs'.", (0,)),
    "post_sampling_probs": Foreign(NOT_DONE, (False,)),
    "return_tokens": Foreign(NOT_DONE, (False,)),
    "return_token_ids": Foreign(NOT_DONE, (False,)),
    "return_tokens_as_token_ids": Foreign(NOT_DONE, (False,)),
    "return_hidden_states": Foreign(NOT_DONE, (False,)),
    "timings_per_token": Foreign("the end of an answer has 'timings'.", (False,)),
    "return_progress": Foreign(NOT_DONE, (False,)),
    "separate_reasoning": Foreign(NO_REASONING, (True, False)),
    "include_reasoning": Foreign(NO_REASONING, (True, False)),
    "reasoning_format": Foreign(NO_REASONING, ("none", "auto", "deepseek")),
    "reasoning": Foreign(NO_REASONING, ({},)),
    "reasoning_content": Foreign(NO_REASONING, ("",)),
    "enable_thinking": Foreign(NO_REASONING, (False,)),
    "thinking": Foreign(NO_REASONING, (False, {}, {"type": "disabled"}, "")),
    "think": Foreign(NO_REASONING, (False,)),
    "thinking_budget": Foreign(NO_REASONING, (0,)),
    # Prompts
    "add_generation_prompt": Foreign("an answer follows the last message.", (True,)),
    "continue_final_message": Foreign("an answer is begun anew.", (False,)),
    "add_special_tokens": Foreign(OWN_TEMPLATE, (True, False)),
    "chat_template": Foreign(OWN_TEMPLATE, ("",)),
    "chat_template_kwargs": Foreign(OWN_TEMPLATE, ({}, {"enable_thinking": False})),
    "template": Foreign(OWN_TEMPLATE, ("",)),
    "documents": Foreign("put them into a message.", ([],)),
    "system": Foreign("send {system}.", ("",)),
    "system_prompt": Foreign("send {system}.", ("",)),
    "instructions": Foreign("send {system}.", ("",)),
    "prompt": Foreign("send {messages}.", ("",)),
    "messages": Foreign("send {messages}."),
    "input": Foreign("send {messages}."),
    "inputs": Foreign("send {messages}."),
    "contents": Foreign("send {messages}."),
    "query": Foreign("send {messages}."),
    "history": Foreign("send {messages}.", ([],)),
    "cache_control": Foreign("what was read is kept and found again unasked.", (ANY,)),
    "cache_prompt": Foreign("what was read is kept and found again unasked.", (True,)),
    "id_slot": Foreign("there are no slots to choose from.", (-1,)),
    "slot_id": Foreign("there are no slots to choose from.", (-1,)),
    "session_id": Foreign("nothing is stored; send the conversation.", (-1, "")),
    "interactive_mode": Foreign("nothing is stored; send the conversation.", (False,)),
    "priority": Foreign("whoever comes first is answered first.", (0,)),
    "lora": Foreign("adapters are merged into a model first.", ([],)),
    "lora_path": Foreign("adapters are merged into a model first."),
    "lora_request": Foreign("adapters are merged into a model first."),
    "adapter_id": Foreign("adapters are merged into a model first."),
    "keep_alive": Foreign("it is for Ollama's API, /api/chat.", (-1,)),
    "options": Foreign("they are fields of the body itself, such as {temperature}.", ({},)),
    "sampling_params": Foreign("they are fields of the body itself, such as {temperature}.", ({},)),
    "parameters": Foreign("they are fields of the body itself, such as {temperature}.", ({},)),
    "generationConfig": Foreign("they are fields of the body itself, such as {temperature}."),
    "extra_body": Foreign("what is in it belongs into the body itself.", ({},)),
    "extra_headers": Foreign(CLIENTS_OWN, ({},)),
    "extra_query": Foreign(CLIENTS_OWN, ({},)),
    "timeout": Foreign(CLIENTS_OWN),
    "request_timeout": Foreign(CLIENTS_OWN),
    "max_retries": Foreign(CLIENTS_OWN),
    "num_retries": Foreign(CLIENTS_OWN),
    "api_key": Foreign("it is sent as the header Authorization: Bearer KEY."),
    "api_base": Foreign(CLIENTS_OWN),
    "base_url": Foreign(CLIENTS_OWN),
    "anthropic_version": Foreign(NOT_DONE),
    "rope_frequency_base": Foreign(LOADING, (0,)),
    "rope_frequency_scale": Foreign(LOADING, (0, 1)),
    "num_gqa": Foreign(LOADING, (ANY,)),
    "num_gpu": Foreign(LOADING),
    "num_thread": Foreign(LOADING),
}  # fmt: skip

PART_FIELDS: Final = (
    *("max_dynamic_patch", "min_dynamic_patch", "max_num", "max_patches", "max_tiles"),
    *("max_pixels", "min_pixels", "fps", "num_frames", "cache_control", "file_url"),
)
"""Those of `FIELDS` that stand in parts of messages too."""

PARTS: Final[dict[str, str]] = {
    "video_url": "send frames of the video, {image} for each.",
    "video": "send frames of the video, {image} for each.",
    "input_video": "send frames of the video, {image} for each.",
    "frame": "send {image} for each frame.",
    "input_audio": "this server does not hear; send what was said as {text}.",
    "audio_url": "this server does not hear; send what was said as {text}.",
    "audio": "this server does not hear; send what was said as {text}.",
    "image": "send {image}.",
    "image_url": "send {image}.",
    "input_image": "send {image}.",
    "image_pil": "send {image}.",
    "image_embeds": "send {image}.",
    "image_file": "nothing is stored here; send {image}.",
    "text": "send {text}.",
    "input_text": "send {text}.",
    "output_text": "send {text}.",
    "refusal": "send {text}.",
    "file": "send {file}.",
    "input_file": "send {file}.",
    "document": "send {file}.",
    "pdf": "send {file}.",
    "tool_use": "this server does not call tools.",
    "tool_call": "this server does not call tools.",
    "tool_result": "this server does not call tools.",
    "function_call": "this server does not call tools.",
    "function_call_output": "this server does not call tools.",
    "computer_call_output": "this server does not call tools.",
    "thinking": NO_REASONING,
    "reasoning": NO_REASONING,
    "redacted_thinking": NO_REASONING,
    "item_reference": "nothing is stored; send the message itself.",
}
"""Types of parts of a message that others know, or this API by another name."""

MEANS_NOTHING: Final = (None, False, [], {}, "", "none", "auto", "default")


def is_idle(name: str, value: Any) -> bool:
    """Whether a field that the API here does not have asks for nothing."""
    if value is None:
        return True
    found = FIELDS.get(name)
    return found is not None and any(idle is ANY or same(idle, value) for idle in found.idle)


def same(one: Any, other: Any) -> bool:
    """Equal, and both or neither of them a truth value: 0 is not false."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def asks_for_nothing(value: Any) -> bool:
    """Whether this is what clients send for a feature that they do not use."""
    if isinstance(value, dict) and value:
        return all(asks_for_nothing(inner) for inner in value.values())
    return any(same(nothing, value) for nothing in MEANS_NOTHING)


def advice_for_field(name: str, words: Words) -> str | None:
    """What to send instead of this field; None for one that nobody has."""
    found = FIELDS.get(name)
    return None if found is None else _filled(found.advice, words)


def advice_for_part(kind: str, words: Words) -> str | None:
    """What to send instead of a part of this type."""
    found = PARTS.get(kind)
    return None if found is None else _filled(found, words)


def _filled(advice: str, words: Words) -> str:
    names = {name: getattr(words, name) for name in Words.__slots__}
    return advice.format(**names)

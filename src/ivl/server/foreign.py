"""Names that other servers have for things: what to send instead, and what says nothing.

People change the address of a program, and the program goes on sending what its last server took.
A field of another server's that asks for something is refused with the name that it has here; one
that asks for nothing passes. Sources: the API references of vLLM, SGLang, LMDeploy, llama.cpp's
server, text-generation-inference, Ollama and Anthropic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

ANY: Final = object()
"""As a value that says nothing: whatever it is. It only goes with another field."""

Words: TypeAlias = Mapping[str, str]
"""What one API calls the things that advice speaks of."""

OPENAI: Final[Words] = {
    "max_tokens": "'max_tokens'",
    "json": "'response_format' of the type json_schema, or 'structured_outputs.json'",
    "regex": "'structured_outputs.regex'",
    "choice": "'structured_outputs.choice'",
    "max_tiles": "'max_tiles'",
    "repetition_penalty": "'repetition_penalty'",
    "temperature": "'temperature'",
    "stop": "'stop'",
    "seed": "'seed'",
    "image": "a part of the type image_url",
    "file": "a part of the type file",
    "text": "a part of the type text",
    "system": "a message of the role system",
    "messages": "'messages'",
}
COMPLETIONS: Final[Words] = {
    **OPENAI,
    "json": "'structured_outputs.json'",
    "max_tiles": "it to /v1/chat/completions, as 'max_tiles'",
    "image": "it to /v1/chat/completions, as a part of a message",
    "file": "it to /v1/chat/completions, as a part of a message",
    "system": "it to /v1/chat/completions, as a message",
    "messages": "'prompt', a text, or messages to /v1/chat/completions",
}
RESPONSES: Final[Words] = {
    **OPENAI,
    "max_tokens": "'max_output_tokens'",
    "json": "'text.format' of the type json_schema",
    "regex": "'structured_outputs.regex' of /v1/chat/completions",
    "choice": "'structured_outputs.choice' of /v1/chat/completions",
    "image": "a part of the type input_image",
    "file": "a part of the type input_file",
    "text": "a part of the type input_text",
    "system": "'instructions'",
    "messages": "'input'",
}
OLLAMA: Final[Words] = {
    **OPENAI,
    "max_tokens": "'options.num_predict'",
    "json": "'format'",
    "regex": "'structured_outputs.regex' of /v1/chat/completions",
    "choice": "a schema with an enum in 'format'",
    "max_tiles": "'options.max_tiles'",
    "repetition_penalty": "'options.repeat_penalty'",
    "temperature": "'options.temperature'",
    "stop": "'options.stop'",
    "seed": "'options.seed'",
    "image": "'images' of the message, in base64",
    "file": "'images' of the message, in base64",
    "text": "'content' as a text",
    "messages": "'messages' of /api/chat",
}

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

_FIELDS: Final[tuple[tuple[str, str, tuple[object, ...]], ...]] = (
    # How many tokens
    ("max_tokens max_completion_tokens max_output_tokens max_new_tokens max_tokens_to_sample",
     "send {max_tokens}.", ()),
    ("max_length num_ctx n_ctx max_model_len", SIZES, ()),
    ("n_predict num_predict", "send {max_tokens}.", (-1,)),
    ("min_tokens min_new_tokens min_length", "an answer ends where the model ends it.", (0,)),
    ("ignore_eos", "an answer ends where the model ends it.", (False,)),
    ("truncate", "a prompt that is too long is refused.", (False, True)),
    ("shift", "an answer ends where the context does.", (False, True)),
    ("truncate_prompt_tokens", "a prompt that is too long is refused.", ()),
    ("n_keep", "a prompt that is too long is refused.", (0, -1)),
    ("num_keep", "a prompt that is too long is refused.", (0, -1, 4)),
    ("n_discard", NOT_DONE, (0,)),
    ("t_max_predict_ms", "send {max_tokens}.", (0, -1)),
    # Forms
    ("guided_json structural_tag schema response_schema response_format response_model "
     "structured_outputs guidance",
     "send {json}.", ()),
    ("guided_regex regex", "send {regex}.", ()),
    ("guided_choice", "send {choice}.", ()),
    ("guided_grammar", NO_GRAMMAR, ()),
    ("guided_decoding_backend", LOADING, (ANY,)),
    ("guided_whitespace_pattern", NOT_DONE, ()),
    ("grammar ebnf", NO_GRAMMAR, ("",)),
    ("json_schema", "send {json}.", ({},)),
    ("format", "send {json}.", ("",)),
    # Images
    ("max_dynamic_patch max_num max_patches max_tiles", "send {max_tiles}.", ()),
    ("min_dynamic_patch", "the model's own number is used; {max_tiles} is the most.", (1,)),
    ("max_pixels min_pixels", "send {max_tiles}: an image becomes tiles of 448 pixels a side.", ()),
    ("mm_processor_kwargs", "send {max_tiles}.", ({},)),
    ("media_io_kwargs", NOT_DONE, ({},)),
    ("images image_data", ROUND_OFF, ([],)),
    ("image image_url", ROUND_OFF, ()),
    ("files", "send {file} for each.", ([],)),
    ("file_url", "files are not fetched; send {file}, with the bytes in it.", ("",)),
    ("video", "send frames of it, {image} for each.", ()),
    ("fps num_frames", "send frames of the video, {image} for each.", ()),
    # How tokens are chosen
    ("do_sample", "send {temperature}; without one the likeliest token is taken.", (False,)),
    ("repeat_penalty repetition_penalty", "send {repetition_penalty}.", (1,)),
    ("repeat_last_n", "{repetition_penalty} weighs all tokens.", (64, -1, 0)),
    ("penalize_nl penalize_newline", NOT_DONE, (False, True)),
    ("random_seed seeds", "send {seed}.", ()),
    ("stop_sequences stop_strings stop_words", "send {stop}.", ([],)),
    ("stop_token_ids", "send {stop}, as texts.", ([],)),
    ("stop_regex", "send {stop}, as texts.", ()),
    ("bad_words", "'logit_bias' of -100 forbids a token.", ([],)),
    ("allowed_token_ids", "send {choice}.", ()),
    ("temperature temp", "send {temperature}.", ()),
    ("top_a epsilon_cutoff eta_cutoff mirostat mirostat_mode dynatemp_range xtc_probability "
     "dry_multiplier",
     NO_SAMPLER, (0,)),
    ("tfs tfs_z typical_p typical", NO_SAMPLER, (1,)),
    ("top_n_sigma", NO_SAMPLER, (-1, 0)),
    ("mirostat_tau mirostat_eta dynatemp_exponent xtc_threshold dry_base dry_allowed_length "
     "dry_penalty_last_n dry_sequence_breakers",
     NO_SAMPLER, (ANY,)),
    ("min_keep", NO_SAMPLER, (0, 1)),
    ("samplers", "the order is fixed: penalties, temperature, top_k, top_p, min_p.", ([],)),
    ("no_repeat_ngram_size", "send {repetition_penalty}.", (0,)),
    ("length_penalty num_beams", NO_BEAMS, (1,)),
    ("early_stopping use_beam_search", NO_BEAMS, (False,)),
    ("best_of num_return_sequences", "send 'n' for several answers.", (1,)),
    ("watermark", NOT_DONE, (False,)),
    # What comes back
    ("skip_special_tokens", "control tokens are never part of an answer.", (True,)),
    ("spaces_between_special_tokens", NOT_DONE, (True, False)),
    ("include_stop_str_in_output", "a stop text is not part of an answer.", (False,)),
    ("return_full_text echo", "only what is new comes back.", (False,)),
    ("details", "send 'logprobs'.", (False,)),
    ("decoder_input_details post_sampling_probs return_tokens return_token_ids "
     "return_tokens_as_token_ids return_hidden_states return_progress",
     NOT_DONE, (False,)),
    ("prompt_logprobs", "only tokens of the answer have them: send 'logprobs'.", (0,)),
    ("n_probs top_n_tokens", "send 'logprobs' and 'top_logprobs'.", (0,)),
    ("timings_per_token", "the end of an answer has 'timings'.", (False,)),
    ("separate_reasoning include_reasoning", NO_REASONING, (True, False)),
    ("reasoning_format", NO_REASONING, ("none", "auto", "deepseek")),
    ("reasoning", NO_REASONING, ({},)),
    ("reasoning_content", NO_REASONING, ("",)),
    ("enable_thinking think", NO_REASONING, (False,)),
    ("thinking", NO_REASONING, (False, {}, {"type": "disabled"}, "")),
    ("thinking_budget", NO_REASONING, (0,)),
    # Prompts
    ("add_generation_prompt", "an answer follows the last message.", (True,)),
    ("continue_final_message", "an answer is begun anew.", (False,)),
    ("add_special_tokens", OWN_TEMPLATE, (True, False)),
    ("chat_template template", OWN_TEMPLATE, ("",)),
    ("chat_template_kwargs", OWN_TEMPLATE, ({}, {"enable_thinking": False})),
    ("documents", "put them into a message.", ([],)),
    ("system system_prompt instructions", "send {system}.", ("",)),
    ("prompt", "send {messages}.", ("",)),
    ("messages input inputs contents query", "send {messages}.", ()),
    ("history", "send {messages}.", ([],)),
    ("cache_control", "what was read is kept and found again unasked.", (ANY,)),
    ("cache_prompt", "what was read is kept and found again unasked.", (True,)),
    ("id_slot slot_id", "there are no slots to choose from.", (-1,)),
    ("session_id", "nothing is stored; send the conversation.", (-1, "")),
    ("interactive_mode", "nothing is stored; send the conversation.", (False,)),
    ("priority", "whoever comes first is answered first.", (0,)),
    ("lora", "adapters are merged into a model first.", ([],)),
    ("lora_path lora_request adapter_id", "adapters are merged into a model first.", ()),
    ("keep_alive", "it is for Ollama's API, /api/chat.", (-1,)),
    ("options sampling_params parameters",
     "they are fields of the body itself, such as {temperature}.", ({},)),
    ("generationConfig", "they are fields of the body itself, such as {temperature}.", ()),
    ("extra_body", "what is in it belongs into the body itself.", ({},)),
    ("extra_headers extra_query", CLIENTS_OWN, ({},)),
    ("timeout request_timeout max_retries num_retries api_base base_url", CLIENTS_OWN, ()),
    ("api_key", "it is sent as the header Authorization: Bearer KEY.", ()),
    ("anthropic_version", NOT_DONE, ()),
    ("rope_frequency_base", LOADING, (0,)),
    ("rope_frequency_scale", LOADING, (0, 1)),
    ("num_gqa", LOADING, (ANY,)),
    ("num_gpu num_thread", LOADING, ()),
)  # fmt: skip
"""Fields of others: their names, what to do instead (with `Words` in braces), and values that ask
for nothing."""
FIELDS: Final = {name: (advice, idle) for names, advice, idle in _FIELDS for name in names.split()}

PART_FIELDS: Final = (
    *("max_dynamic_patch", "min_dynamic_patch", "max_num", "max_patches", "max_tiles"),
    *("max_pixels", "min_pixels", "fps", "num_frames", "cache_control", "file_url"),
)
"""Those of `FIELDS` that stand in parts of messages too."""

_PARTS: Final = (
    ("video_url video input_video", "send frames of the video, {image} for each."),
    ("frame", "send {image} for each frame."),
    ("input_audio audio_url audio", "this server does not hear; send what was said as {text}."),
    ("image image_url input_image image_pil image_embeds", "send {image}."),
    ("image_file", "nothing is stored here; send {image}."),
    ("text input_text output_text refusal", "send {text}."),
    ("file input_file document pdf", "send {file}."),
    ("tool_use tool_call tool_result function_call function_call_output computer_call_output",
     "this server does not call tools."),
    ("thinking reasoning redacted_thinking", NO_REASONING),
    ("item_reference", "nothing is stored; send the message itself."),
)  # fmt: skip
"""Types of parts of a message that others know, or this API by another name."""
PARTS: Final = {name: advice for names, advice in _PARTS for name in names.split()}

MEANS_NOTHING: Final = (None, False, [], {}, "", "none", "auto", "default")


def is_idle(name: str, value: object) -> bool:
    """Whether a field that the API here does not have asks for nothing."""
    _, idle = FIELDS.get(name, ("", ()))
    return value is None or any(one is ANY or _same(one, value) for one in idle)


def asks_for_nothing(value: object) -> bool:
    """Whether this is what clients send for a feature that they do not use."""
    if isinstance(value, dict) and value:
        return all(asks_for_nothing(inner) for inner in value.values())
    return any(_same(nothing, value) for nothing in MEANS_NOTHING)


def _same(one: object, other: object) -> bool:
    """Equal, and both or neither of them a truth value: 0 is not false."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def advice_for_field(name: str, words: Words) -> str | None:
    """What to send instead of this field; None for one that nobody has."""
    return FIELDS[name][0].format(**words) if name in FIELDS else None


def advice_for_part(kind: str, words: Words) -> str | None:
    """What to send instead of a part of this type."""
    return PARTS[kind].format(**words) if kind in PARTS else None

"""The chat template that goes into a GGUF file, for the programs that follow it.

ivl itself has its own templates (`ivl.prompt.template`). A checkpoint's own is passed on; where it
has none, as in official repositories of the InternLM2 sizes, one is made that writes what ivl does.
"""

from __future__ import annotations

import json
from pathlib import Path

from ivl.errors import CheckpointError
from ivl.lfs_pointer import refuse_lfs_pointer
from ivl.prompt.added_tokens import read_json
from ivl.prompt.template import Template


def find_chat_template(directory: Path, template: Template) -> str:
    """The Jinja template of the tokenizer in `directory`; where there is none, `jinja` of ours.

    CheckpointError for files that are damaged.
    """
    path = directory / "chat_template.jinja"
    if path.exists():
        refuse_lfs_pointer(path)
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from None
    for name in ("chat_template.json", "tokenizer_config.json"):
        if not (directory / name).exists():
            continue
        found = read_json(directory / name).get("chat_template")
        if isinstance(found, list):  # several, by name
            named = {entry.get("name"): entry.get("template") for entry in found if entry}
            found = named.get("default")
        if isinstance(found, str) and found:
            return found
    return jinja(template)


def jinja(template: Template) -> str:
    """A template of ours in Jinja: turns as ChatML, and the system message where none is given."""
    system, after = json.dumps(template.default_system, ensure_ascii=False), template.after_turn
    end = json.dumps(f"<|im_end|>{after}", ensure_ascii=False)
    return (
        "{% if not messages or messages[0]['role'] != 'system' %}"
        f"{{{{ '<|im_start|>system\\n' + {system} + {end} }}}}"
        "{% endif %}"
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
        f"{end} }}}}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )

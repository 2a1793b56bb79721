"""Which chat template a GGUF text file asks for.

Its own is a Jinja program, and programs that come with a checkpoint are never run. What is read
from it is whether it frames turns as ChatML does, and the system message that it begins with.

Source: `tokenizer.chat_template` in docs/gguf.md of https://github.com/ggml-org/ggml.
"""

from __future__ import annotations

import re

from ivl.checkpoint.gguf_keys import Keys
from ivl.errors import UnsupportedError
from ivl.prompt.template import IM_END, IM_START, IMG_CONTEXT

_SYSTEM = re.compile(
    re.escape(f"{IM_START}system")
    # The end of a string behind the opening: the message is one that is given at run time.
    + r"(?:\\n|\n)(?:(?P<given>['\"]|\{\{)|(?P<text>(?:\\['\"n]|[^{}'\"\\])*)"
    + re.escape(IM_END)
    + r"|(?P<other>))"
)
_ESCAPES = {"\\n": "\n", "\\'": "'", '\\"': '"'}


def read_template(keys: Keys, *, has_projector: bool) -> tuple[str, str | None]:
    """The template's name, and the model's own system message where it is not the template's.

    A model of this family has InternVL's. UnsupportedError for a text model that talks otherwise
    than in ChatML, or whose system message cannot be made out.
    """
    tokens = keys.file.metadata.get("tokenizer.ggml.tokens")
    is_family = has_projector or (isinstance(tokens, list) and IMG_CONTEXT in tokens)
    own = keys.text("tokenizer.chat_template", "")
    if "ivl.template" in keys.file.metadata or is_family or not own:
        return keys.text("ivl.template", "internvl2_5" if is_family else "chatml"), None
    if IM_START not in own:
        raise UnsupportedError(
            f"{keys.file.path} asks for a chat template that is not ChatML.",
            f"ivl runs models whose turns are framed by {IM_START} and {IM_END}.",
        )
    found = list(_SYSTEM.finditer(own))
    texts = {match["text"] for match in found if match["text"] is not None}
    if len(texts) > 1 or any(match["other"] is not None for match in found):
        raise UnsupportedError(
            f"{keys.file.path} has a chat template whose system message cannot be made out.",
            "ivl never runs a checkpoint's own template; take another model.",
        )
    return "chatml", _unescaped(texts.pop()) if texts else None


def _unescaped(text: str) -> str:
    return re.sub(r"\\['\"n]", lambda match: _ESCAPES[match[0]], text)

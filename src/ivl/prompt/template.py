"""Conversations as InternVL writes them, in typed segments.

A prompt is a tuple of segments: control tokens, plain text, and the places of images. Only this
module makes control tokens, so whatever a person types stays text, `<|im_end|>` and
`<IMG_CONTEXT>` included. Joined into a string, a prompt is that of the official code
(`internvl_chat/internvl/conversation.py`, `InternVLChatModel.chat`), and each text segment is
what its tokenizer would see between two control tokens.

A checkpoint's own Jinja template is passed on to GGUF files, for the programs that follow it; where
it has none, as in official repositories of the InternLM2 sizes, one of ours is written as Jinja.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from ivl.config import read_optional
from ivl.errors import CheckpointError, RequestError, UnsupportedError
from ivl.refused import refuse_lfs_pointer
from ivl.spelling import nearest

IM_START: Final = "<|im_start|>"
IM_END: Final = "<|im_end|>"
IMG_START: Final = "<img>"
IMG_END: Final = "</img>"
IMG_CONTEXT: Final = "<IMG_CONTEXT>"

SYSTEM_SEPARATOR: Final = "\n\n"

Role: TypeAlias = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """The place of the next image in a message (`<image>` in the official code)."""


IMAGE: Final = ImageSlot()
Part: TypeAlias = str | ImageSlot


@dataclass(frozen=True, slots=True)
class Message:
    """What one side says. Images fill the slots of a conversation in their order."""

    role: Role
    content: str | Sequence[Part]

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise RequestError(
                f"a message has the role {self.role!r}", f"use one of {', '.join(get_args(Role))}"
            )
        content = self.content
        if not isinstance(content, (str, Sequence)) or isinstance(content, bytes):
            raise RequestError(
                f"the content of a message is a {type(content).__name__}",
                "give a text, or a list of texts and image slots (`ivl.IMAGE`)",
            )
        for part in self.parts:
            if not isinstance(part, (str, ImageSlot)):
                raise RequestError(
                    f"a message holds a {type(part).__name__}",
                    "use texts and image slots (`ivl.IMAGE`)",
                )
            if isinstance(part, str):
                _check_unicode(part)
        if self.role != "user" and self.num_images:
            raise RequestError(
                f"a message of the role {self.role} shows an image",
                "only messages of the user can show images",
            )

    @property
    def parts(self) -> tuple[Part, ...]:
        """The content as texts and image slots."""
        return (self.content,) if isinstance(self.content, str) else tuple(self.content)

    @property
    def num_images(self) -> int:
        """How many image slots the message has."""
        return sum(isinstance(part, ImageSlot) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Control:
    """One control token, by name."""

    name: str


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text, to be tokenized in one piece and without control tokens."""

    text: str


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """`num_tokens` times `<IMG_CONTEXT>`, to be replaced by the features of one image."""

    num_tokens: int


Segment: TypeAlias = Control | Text | ImageTokens
Prompt: TypeAlias = tuple[Segment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """How a family of models writes a conversation; all of them frame turns as ChatML does.

    `default_system` None: without a system message there is no system turn.
    """

    name: str
    default_system: str | None
    after_turn: str  # text between `<|im_end|>` and the next turn
    stop_control: tuple[str, ...] = (IM_END,)  # an answer ends with one of these


_TEMPLATES: Final = {
    template.name: template
    for template in (
        Template(
            name="internvl2_5",
            default_system=(
                "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、"
                "清华大学及多家合作单位联合开发的多模态大语言模型。"
            ),
            after_turn="\n",
        ),
        Template(
            name="internlm2-chat",
            default_system=(
                "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，"
                "英文名叫InternVL, 是一个有用无害的人工智能助手。"
            ),
            after_turn="",
        ),
        # Text models of other makers; their own system message comes with the model.
        Template(name="chatml", default_system=None, after_turn="\n"),
    )
}
TEMPLATE_NAMES: Final = tuple(_TEMPLATES)


def get_template(name: str, system: str | None = None) -> Template:
    """The template of that name, which a checkpoint's config calls `template`.

    `system` takes the place of its default system message. Raises UnsupportedError for a template
    that no InternVL 2.5 uses.
    """
    if name in _TEMPLATES:
        found = _TEMPLATES[name]
        return found if system is None else replace(found, default_system=system)
    hint = f"known are {', '.join(TEMPLATE_NAMES)}"
    if near := nearest(name, TEMPLATE_NAMES):
        hint += f"; did you mean {near}?"
    raise UnsupportedError(f"the chat template {name!r} is not known", hint)


def user_message(
    question: str,
    num_images: int = 0,
    *,
    num_earlier_images: int = 0,
) -> Message:
    """A question with its images before it, placed and named as in the official examples.

    One image has no name. Several are "Image-1: ", "Image-2: ", and images that a later turn adds
    are counted on from `num_earlier_images`.
    """
    if num_images < 0 or num_earlier_images < 0:
        raise RequestError("the number of images is negative", "give 0 or more")
    parts: list[Part] = []
    for number in range(num_earlier_images + 1, num_earlier_images + num_images + 1):
        if num_images > 1 or num_earlier_images > 0:
            parts.append(f"Image-{number}: ")
        parts.extend((IMAGE, "\n"))
    return Message("user", (*parts, question))


def render(
    messages: Sequence[Message],
    *,
    template: Template | str = "internvl2_5",
    system: str | None = None,
    tiles_per_image: Sequence[int] = (),
    tokens_per_tile: int = 256,
    add_generation_prompt: bool = True,
) -> Prompt:
    """The prompt of a whole conversation.

    messages: turns in their order, those of the system among them. System messages that follow one
        another are joined, by an empty line; one at the beginning takes the place of the model's.
    system: the system message, if `messages` has none. None is the template's own, which may be
        none at all. An empty one leaves an empty system turn, as in the official code.
    tiles_per_image: tiles of every image (its thumbnail included), in the order of the slots.
    add_generation_prompt: end with the opening of the assistant's turn. The last message must
        then not be the assistant's.

    The prompt up to the last question, the ids of the answer as they were generated, and
    `render_next` make the same string; use those where ids must stay as they are in a cache.
    One difference from the official code: a turn with an empty text is closed like any other
    (there it would run into the next one).
    Raises RequestError for turns that do not fit, or images that do not match the slots.
    """
    template = get_template(template) if isinstance(template, str) else template
    turns = _joined_systems(messages)
    if turns and turns[0].role == "system":
        if system is not None:
            raise RequestError("there are two system messages", "give only one")
        system = "".join(part for part in turns.pop(0).parts if isinstance(part, str))
    if system is None:
        system = template.default_system
    _check_turns(turns, add_generation_prompt)
    images = _images(turns, tiles_per_image, tokens_per_tile)
    segments: list[Segment] = []
    first = [] if system is None else [Message("system", system)]
    for turn in (*first, *turns):
        segments.extend((*_turn(turn, images), *_turn_end(template)))
    if add_generation_prompt:
        segments.extend(_opening("assistant"))
    return join(segments)


def render_next(
    message: Message,
    *,
    template: Template | str = "internvl2_5",
    tiles_per_image: Sequence[int] = (),
    tokens_per_tile: int = 256,
) -> Prompt:
    """What follows an answer that is in the cache: its end, the next question, the opening.

    The answer's own stop token is part of this prompt and must not be in the cache as well.
    tiles_per_image: tiles of the images of this message alone. Errors as in `render`.
    """
    template = get_template(template) if isinstance(template, str) else template
    _check_turns([message], add_generation_prompt=True)
    images = _images([message], tiles_per_image, tokens_per_tile)
    end = _turn_end(template)
    return join(end, _turn(message, images), end, _opening("assistant"))


def join(*prompts: Iterable[Segment]) -> Prompt:
    """One prompt from several: neighbouring texts become one, empty texts go."""
    joined: list[Segment] = []
    for prompt in prompts:
        for segment in prompt:
            last = joined[-1] if joined else None
            if isinstance(segment, Text) and isinstance(last, Text):
                joined[-1] = Text(last.text + segment.text)
            elif segment != Text(""):
                joined.append(segment)
    return tuple(joined)


def prompt_string(prompt: Iterable[Segment], *, image_context: str = IMG_CONTEXT) -> str:
    """The prompt as the official code writes it; for display and comparison, not for tokenizing."""
    pieces: list[str] = []
    for segment in prompt:
        match segment:
            case Control(name):
                pieces.append(name)
            case Text(text):
                pieces.append(text)
            case ImageTokens(num_tokens=num_tokens):
                pieces.append(image_context * num_tokens)
    return "".join(pieces)


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if "\udc80" <= text[error.start] <= "\udcff":  # as Python has bytes that are no text
            raise RequestError(
                f"a text has bytes that are not UTF-8, the first at character {error.start}",
                "set the terminal and the locale (LANG) to UTF-8",
            ) from None
        raise RequestError(
            f"a text is not valid Unicode at character {error.start}",
            "send characters outside the basic plane whole, not as halves of a surrogate pair",
        ) from None


def _joined_systems(messages: Iterable[Message]) -> list[Message]:
    """The messages, with one system message in the place of several that are neighbours."""
    turns: list[Message] = []
    for message in messages:
        if turns and message.role == turns[-1].role == "system":
            texts = (*turns.pop().parts, SYSTEM_SEPARATOR, *message.parts)
            message = Message("system", texts)
        turns.append(message)
    return turns


def _check_turns(turns: Sequence[Message], add_generation_prompt: bool) -> None:
    if add_generation_prompt and turns and turns[-1].role == "assistant":
        raise RequestError(
            "the last message is the assistant's", "end with a user message to get an answer"
        )
    if not any(turn.role == "user" for turn in turns):
        raise RequestError("there is no message to answer", "give at least one user message")


def _images(
    turns: Sequence[Message],
    tiles_per_image: Sequence[int],
    tokens_per_tile: int,
) -> Iterator[ImageTokens]:
    """The images' segments in order, once it is known that they fit the slots."""
    num_slots = sum(turn.num_images for turn in turns)
    if num_slots != len(tiles_per_image):
        raise RequestError(
            f"the messages show {num_slots} images, but {len(tiles_per_image)} are given",
            "show every image exactly once",
        )
    if any(num_tiles * tokens_per_tile < 1 for num_tiles in tiles_per_image):
        raise RequestError("an image has no tokens", "every image has at least one tile")
    return iter([ImageTokens(num_tiles * tokens_per_tile) for num_tiles in tiles_per_image])


def _opening(role: Role) -> Prompt:
    return (Control(IM_START), Text(f"{role}\n"))


def _turn_end(template: Template) -> Prompt:
    return (Control(IM_END), Text(template.after_turn))


def _turn(message: Message, images: Iterator[ImageTokens]) -> Iterator[Segment]:
    """A turn up to its end; takes as many of the images as it has slots."""
    yield from _opening(message.role)
    for part in message.parts:
        if isinstance(part, str):
            yield Text(part)
        else:
            yield from (Control(IMG_START), next(images), Control(IMG_END))


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
        found = read_optional(directory / name).get("chat_template")
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

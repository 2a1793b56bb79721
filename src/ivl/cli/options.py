"""Options that several commands take, each declared once, in groups.

A command takes a group by naming it as a parameter and wearing `with_options`:

    @with_options
    def command(images: list[str], choice: ModelChoice, sampling: Sampling) -> None: ...

On the command line the fields of a group are options; in the function it is one object.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, cast, get_type_hints

from typer import Argument, Option

from ivl.engine.options import (
    DEFAULT_DRAFT_TOKENS,
    DEFAULT_VISION_BATCH,
    GenerationKeywords,
    GenerationOptions,
)
from ivl.errors import ConfigError, RequestError
from ivl.paths import local_path

Device = Annotated[
    str | None,
    Option(metavar="DEVICE", help="cpu, cuda, cuda:1 or mps; by default the best there is."),
]
Dtype = Annotated[
    str | None,
    Option(
        metavar="TYPE",
        help="bfloat16, float16 or float32; by default what suits the device.",
    ),
]
Revision = Annotated[
    str | None, Option(metavar="REVISION", help="Branch, tag or commit of a model on a hub.")
]
Offline = Annotated[bool, Option("--offline", help="Use only what has been downloaded already.")]
Threads = Annotated[
    int | None, Option(metavar="N", help="Processor threads; by default one for each core.")
]


def _named(text: str) -> Path:
    """An empty name would be the present directory: it is a variable that is not set."""
    if not text:
        raise ConfigError("OUT is empty.", "Is the variable that it comes from set?")
    return Path(text)


Out = Annotated[Path, Argument(metavar="OUT", hidden=True, parser=_named)]
Mmproj = Annotated[
    Path | None,
    Option(
        metavar="FILE",
        help="The projector that goes with a GGUF file; by default the one beside it.",
    ),
]


Vision = Annotated[
    str,
    Option(
        metavar="TYPE",
        help="Arithmetic of the vision tower: auto, torch, float16 or bfloat16 (on a CPU), fp8 (on "
        "a GPU), or int8, which is the fastest and less accurate.",
    ),
]
KV = Annotated[
    str,
    Option(
        "--kv",
        metavar="TYPE",
        help="The cache of keys and values: auto, 32bit, 16bit, or 8bit, which takes half the "
        "memory of 16bit.",
    ),
]


def _schema(name: str) -> dict[str, object]:
    """The JSON schema in a file; RequestError when there is none."""
    try:
        schema = json.loads(local_path(name).read_bytes())
    except OSError as error:
        raise RequestError(
            f"The schema {name} cannot be read: {error.strerror}.", "Check the spelling."
        ) from None
    except ValueError as error:
        raise RequestError(f"The schema {name} is not JSON: {error}.") from None
    if not isinstance(schema, dict):
        raise RequestError(
            f"The schema {name} is not a JSON object.", 'Give one such as {"type": "object"}.'
        )
    return schema


SchemaFile = Annotated[
    dict[str, object] | None,
    Option(
        "--schema",
        metavar="FILE",
        parser=_schema,
        help="A JSON schema; the answer is JSON that follows it.",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """Which model, and how it is loaded."""

    model: Annotated[
        str,
        Option(
            "--model",
            "-m",
            envvar="IVL_MODEL",
            metavar="MODEL",
            help="demo, a size (1b to 78b), a directory, a GGUF file, or a hub id owner/name, "
            "with :TYPE to choose among the GGUF files there.",
        ),
    ] = "demo"
    mmproj: Mmproj = None
    device: Annotated[
        str | None,
        Option(
            metavar="DEVICE",
            help="cpu, cuda, cuda:1 or mps; by default the best there is. cuda:0,cuda:1 shares the "
            "model among GPUs.",
        ),
    ] = None
    gpu_layers: Annotated[
        int | None,
        Option(
            metavar="N",
            help="Put at most N of the decoder's layers on GPUs, the others on the processor.",
        ),
    ] = None
    vision_offload: Annotated[
        bool,
        Option(
            "--vision-offload",
            help="Keep the vision tower in main memory, and stream it to the GPU for each page.",
        ),
    ] = False
    dtype: Dtype = None
    context: Annotated[
        int | None,
        Option(metavar="TOKENS", help="Room for questions and answers; by default 8192 tokens."),
    ] = None
    vision_batch: Annotated[
        int, Option(metavar="TILES", help="Tiles encoded at once; fewer take less memory.")
    ] = DEFAULT_VISION_BATCH
    vision: Vision = "auto"
    kv: KV = "auto"
    threads: Threads = None
    revision: Revision = None
    offline: Offline = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the tokens of an answer are chosen; None leaves the engine's default."""

    max_tokens: Annotated[
        int | None,
        Option(metavar="N", help="Longest answer; by default until the context is full."),
    ] = None
    temperature: Annotated[
        float | None,
        Option(metavar="T", help="0, the default, always takes the likeliest token."),
    ] = None
    top_k: Annotated[
        int | None, Option(metavar="K", help="Choose among the K likeliest tokens.")
    ] = None
    top_p: Annotated[
        float | None,
        Option(metavar="P", help="Choose among the likeliest tokens that add up to P."),
    ] = None
    min_p: Annotated[
        float | None,
        Option(metavar="P", help="Drop tokens less likely than P times the likeliest."),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        Option(metavar="X", help="Above 1, tokens of question and answer become less likely."),
    ] = None
    presence_penalty: Annotated[
        float | None,
        Option(metavar="X", help="Above 0, tokens of the answer become less likely."),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        Option(metavar="X", help="The same, growing with how often they occurred."),
    ] = None
    stop: Annotated[
        list[str] | None,
        Option(metavar="TEXT", help="End the answer before this text; may be repeated."),
    ] = None
    seed: Annotated[int | None, Option(metavar="N", help="Makes sampling repeatable.")] = None

    def given(self) -> GenerationKeywords:
        """By name, as `Model.ask` takes them: those that were given."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return cast("GenerationKeywords", given)

    def options(self) -> GenerationOptions:
        """The checked options; RequestError for a value that means nothing."""
        try:
            return GenerationOptions.of(self.given())
        except RequestError as error:
            hint = error.hint or "`ivl ask --help` says what the options mean."
            raise RequestError(error.message, hint) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """Guessing tokens ahead, which changes no answer."""

    draft: Annotated[
        str | None,
        Option(
            metavar="MODEL",
            help="A smaller model of the same vocabulary that guesses tokens ahead, or lookup: "
            "guesses from the text so far. Answers stay the same.",
        ),
    ] = None
    draft_tokens: Annotated[int, Option(metavar="N", help="Tokens that are guessed at once.")] = (
        DEFAULT_DRAFT_TOKENS
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PageChoice:
    """Which pages of documents, and how many at once."""

    pages: Annotated[
        str | None,
        Option(
            metavar="PAGES",
            help="Only these of every file: 1-4,7,-1 are the first four, the seventh, the last.",
        ),
    ] = None
    passwords: Annotated[
        str | None,
        Option(
            "--password-file",
            metavar="FILE",
            help="A file with passwords of PDFs, one a line; each is tried.",
        ),
    ] = None
    jobs: Annotated[
        int | None,
        Option(
            metavar="N",
            help="Pages read at once; by default as many as the memory holds, at most 16.",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunChoice:
    """What a run over documents does with what is there already, and whether it runs at all."""

    force: Annotated[
        bool,
        Option(
            "--force",
            help="Replace files that no run of ivl has written, and those that were changed since.",
        ),
    ] = False
    retry_failed: Annotated[
        bool, Option("--retry-failed", help="Only try the pages again that failed.")
    ] = False
    dry_run: Annotated[
        bool, Option("--dry-run", help="Only say how many pages there are, and what they take.")
    ] = False
    price: Annotated[
        float | None,
        Option(metavar="X", help="With --dry-run: what an hour of this machine costs."),
    ] = None

    def check(self, out: str | None) -> None:
        """ConfigError for options that mean nothing together, or without files to write."""
        if self.price is not None and not (self.dry_run and self.price >= 0):
            raise ConfigError("--price is what an hour costs.", "Use it with --dry-run.")
        for name, given in (("--retry-failed", self.retry_failed), ("--force", self.force)):
            if given and out is None:
                raise ConfigError(f"{name} is for runs that write files.", "Add --out.")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """What an answer must be, and what is told of it."""

    schema: SchemaFile = None
    logprobs: Annotated[
        int | None,
        Option(
            metavar="N",
            help="With --json: the probability of each token of the answer, and of the N likeliest "
            "in its place.",
        ),
    ] = None

    def check(self, json: bool) -> None:
        """ConfigError where nobody would see what is asked for."""
        if self.logprobs is not None and not json:
            raise ConfigError("--logprobs is printed as JSON only.", "Add --json.")


MaxTiles = Annotated[
    int | None,
    Option(
        metavar="N",
        help="Tiles that the images of a question share; more read finer print. "
        "By default the model's own number.",
    ),
]
MaxPixels = Annotated[int, Option(metavar="N", help="Largest image that is opened, in pixels.")]
System = Annotated[
    str | None, Option(metavar="TEXT", help="System message instead of the model's own.")
]
Json = Annotated[bool, Option("--json", help="Print JSON, for programs, when all is done.")]
Quiet = Annotated[bool, Option("--quiet", "-q", help="No progress and no notes on stderr.")]
Times = Annotated[bool, Option("--timings", help="Say on stderr how long everything took.")]


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Replaces every parameter that is a group, a dataclass, by the fields of that group."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, type] = {
        name: kind for name, kind in hints.items() if isinstance(kind, type) and is_dataclass(kind)
    }

    @functools.wraps(function)
    def command(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        function(**given)

    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in groups:
            parameters += _parameters(groups[parameter.name])
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
    # typer reads both, and would follow `__wrapped__` back to the groups.
    command.__dict__["__signature__"] = inspect.Signature(
        [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    )
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    del command.__dict__["__wrapped__"]
    return command


def _parameters(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]

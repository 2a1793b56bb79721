"""Ends an answer at a stop string, which may lie across the borders of tokens."""

from __future__ import annotations


class StopText:
    """Passes text on as soon as it cannot be the beginning of a stop string any more.

    The answer is also stripped of white space on both ends, as the official code strips it; white
    space is therefore held back until something follows it.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.stop = stop
        self.text = ""
        """What has been passed on: the answer so far."""
        self.stopped = False
        self._held = ""

    @property
    def num_held(self) -> int:
        """Characters that are held back."""
        return len(self._held)

    def push(self, text: str) -> str:
        """Takes new text; returns what may be shown. After a stop string nothing more comes."""
        if self.stopped:
            return ""
        held = self._held + text
        if not self.text:
            held = held.lstrip()
        kept = len(held) - self._possible_beginning(held)
        end = self._find(held)
        # One that begins earlier and is not decided yet comes first.
        if end is not None and end <= kept:
            return self._stop(held, end)
        shown = held[:kept].rstrip()
        self._held = held[len(shown) :]
        return self._pass(shown)

    def finish(self) -> str:
        """The answer has ended: what was held back, without the white space at its end."""
        held, self._held = self._held, ""
        if self.stopped:
            return ""
        end = self._find(held)
        return self._pass(held.rstrip()) if end is None else self._stop(held, end)

    def _find(self, text: str) -> int | None:
        """Where the first stop string begins."""
        return min((at for s in self.stop if (at := text.find(s)) >= 0), default=None)

    def _stop(self, held: str, end: int) -> str:
        self.stopped = True
        self._held = ""
        return self._pass(held[:end].rstrip())

    def _pass(self, text: str) -> str:
        self.text += text
        return text

    def _possible_beginning(self, text: str) -> int:
        """The length of the longest end of `text` that begins a stop string."""
        longest = max((len(s) for s in self.stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self.stop):
                return length
        return 0

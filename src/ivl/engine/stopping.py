"""Ends an answer at a stop string, which may lie across the borders of tokens."""

from __future__ import annotations


class StopText:
    """Passes text on as soon as it cannot be the beginning of a stop string any more.

    The answer is also stripped of white space on both ends, as the official code strips it; white
    space is therefore held back until something follows it. Stop strings are looked for before
    that: a line break that the answer begins with is one.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.stop = stop
        self.text = ""
        """What has been passed on: the answer so far."""
        self.stopped = False
        self.num_settled = 0
        """Characters of what was pushed that are decided: passed on, or white space in front. After
        a stop string: those before it."""
        self._held = ""
        self._beginnings = {s[:end] for s in stop for end in range(1, len(s))}
        self._longest = max((len(s) for s in stop), default=1) - 1

    def push(self, text: str) -> str:
        """Takes new text; returns what may be shown. After a stop string nothing more comes."""
        if self.stopped:
            return ""
        held = self._held + text
        if not self.stop:
            return self._pass(held, len(held.rstrip()))
        kept = len(held) - self._possible_beginning(held)
        end = self._find(held)
        # One that begins earlier and is not decided yet comes first.
        if end is not None and end <= kept:
            return self._stop(held, end)
        return self._pass(held, len(held[:kept].rstrip()))

    def finish(self) -> str:
        """The answer has ended: what was held back, without the white space at its end."""
        if self.stopped:
            return ""
        held, end = self._held, self._find(self._held)
        if end is not None:
            return self._stop(held, end)
        shown = self._pass(held, len(held.rstrip()))
        self.num_settled += len(self._held)
        self._held = ""
        return shown

    def _find(self, text: str) -> int | None:
        """Where the first stop string begins."""
        return min((at for s in self.stop if (at := text.find(s)) >= 0), default=None)

    def _stop(self, held: str, end: int) -> str:
        shown = self._pass(held, len(held[:end].rstrip()))
        self.num_settled += end - (len(held) - len(self._held))
        self.stopped = True
        self._held = ""
        return shown

    def _pass(self, held: str, end: int) -> str:
        """Shows what is held up to `end`, but for white space at the beginning of the answer."""
        shown, self._held = held[:end], held[end:]
        self.num_settled += end
        if not self.text:
            shown = shown.lstrip()
        self.text += shown
        return shown

    def _possible_beginning(self, text: str) -> int:
        """The length of the longest end of `text` that begins a stop string."""
        for length in range(min(self._longest, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                return length
        return 0

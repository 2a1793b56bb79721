"""What a check has found so far, for people line by line, or for programs as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ivl.cli.terminal import Status, print_json

if TYPE_CHECKING:
    import torch


class Findings:
    """What was found so far: printed line by line for people, or at the end as JSON."""

    def __init__(self, *, model: str, in_json: bool, status: Status) -> None:
        self.record: dict[str, Any] = {"model": model}
        self.in_json, self.status, self.ok = in_json, status, False

    def add(self, name: str, text: str) -> None:
        self.status.clear()
        if not self.in_json:
            print(f"{name:<15} {text}", flush=True)

    def finish(self) -> None:
        self.status.clear()
        if self.in_json:
            print_json({**self.record, "ok": self.ok})

    def note_machine(self, device: torch.device, dtype: torch.dtype) -> None:
        """Where and in which type it was computed."""
        self.record |= {"device": device.type, "dtype": dtype_name(dtype)}


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")

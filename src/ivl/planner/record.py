"""A plan as JSON. The schema is documented in docs/plan.md; `schema` changes with its meaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ivl.family import num_parameters
from ivl.footprint.placement import VISION
from ivl.footprint.tensors import bytes_by_type
from ivl.planner.machine import Machine
from ivl.planner.plan import Plan
from ivl.planner.speed import Estimate
from ivl.planner.verdict import Judgement

SCHEMA = 1


def plan_record(plan: Plan, verdict: Judgement) -> dict[str, Any]:
    """Everything that is known, bytes and seconds unrounded."""
    subject, setting, work = plan.subject, plan.setting, plan.setting.work
    decoder = [t for t in plan.tensors if t.part == "decoder"]
    seeing = [t for t in plan.tensors if t.part != "decoder"]
    machine = plan.machine
    return {
        "schema": SCHEMA,
        "model": {
            "name": subject.name,
            "on_disk": subject.is_on_disk,
            "parameters": num_parameters(subject.config),
            "type": None if subject.is_on_disk else setting.type,
            "vision": None if subject.is_on_disk or not seeing else setting.vision,
            "decoder_file_bytes": sum(t.file_bytes for t in decoder),
            "vision_file_bytes": sum(t.file_bytes for t in seeing),
            "decoder_bytes_by_format": bytes_by_type(decoder),
            "vision_bytes_by_format": bytes_by_type(seeing),
        },
        "work": {
            "backend": setting.backend.name,
            "context": work.context,
            "kv": work.kv,
            "parallel": work.parallel,
            "images": len(work.tiles),
            "tiles": list(work.tiles),
            "max_tiles": work.max_tiles,
            "vision_batch": work.vision_batch,
            "image_tokens": work.image_tokens(subject.config),
            "prompt_tokens": plan.prompt_tokens,
        },
        "memory": {
            "decoder_bytes": sum(plan.parts.layers) + plan.parts.embeddings + plan.parts.head,
            "vision_bytes": plan.parts.vision,
            "projector_bytes": plan.parts.projector,
            "kv_bytes": plan.parts.kv,
            "kv_bytes_per_token": plan.parts.kv // (work.context * work.parallel),
            "vision_activation_bytes": plan.parts.vision_activations,
            "prefill_activation_bytes": plan.parts.prefill_activations,
            "total_bytes": plan.total_bytes,
        },
        "asked": asked_record(machine),
        "devices": _devices(plan),
        "speed": {
            name: estimate_record(estimate)
            for name, estimate in (
                ("tokens_per_s", plan.speed.tokens_per_s),
                ("encode_s", plan.speed.encode_s),
                ("first_token_s", plan.speed.first_token_s),
            )
        },
        "price": None
        if machine.usd_per_hour is None
        else {"usd_per_hour": machine.usd_per_hour, "source": machine.price_note},
        "verdict": asdict(verdict),
    }


def asked_record(machine: Machine) -> list[dict[str, Any]]:
    """What each `--device` was taken for; empty for this machine."""
    return [
        {
            "text": meaning.text,
            "device": meaning.device.name,
            "count": meaning.count,
            "note": meaning.note,
        }
        for meaning in machine.asked
    ]


def _devices(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "name": share.device.name,
            "memory_bytes": share.device.memory_bytes,
            "used_by_others_bytes": share.used_by_others,
            "reserved_bytes": share.reserved_bytes,
            "capacity_bytes": share.capacity_bytes,
            "items": dict(share.items),
            "total_bytes": share.total_bytes,
            "left_bytes": share.left_bytes,
            "first_layer": share.first_layer if share.num_layers else None,
            "layers": share.num_layers,
            "has_tower": VISION in share.items,
            "bandwidth_bytes_per_s": share.device.bandwidth,
            "source": share.device.source,
            "note": share.note,
        }
        for share in plan.placement.shares
    ]


def estimate_record(estimate: Estimate) -> dict[str, Any]:
    value = estimate.value
    return {
        "low": value.low if value else None,
        "likely": value.likely if value else None,
        "high": value.high if value else None,
        "confidence": estimate.confidence,
        "source": estimate.source,
    }


def overview_record(rows: Sequence[Plan]) -> dict[str, Any]:
    """The table of sizes and types: one line each."""
    return {
        "schema": SCHEMA,
        "asked": asked_record(rows[0].machine) if rows else [],
        "rows": [
            {
                "model": plan.subject.name,
                "type": plan.setting.type,
                "vision": plan.setting.vision,
                "backend": plan.setting.backend.name,
                "total_bytes": plan.total_bytes,
                "fits": plan.fits,
                "layers_on_processor": plan.placement.num_offloaded,
                "tokens_per_s": estimate_record(plan.speed.tokens_per_s),
                "first_token_s": estimate_record(plan.speed.first_token_s),
            }
            for plan in rows
        ],
    }

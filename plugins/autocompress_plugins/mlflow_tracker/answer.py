"""The answer of a search for a person, as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autocompress import Budget, Quality, SearchResult, StudyContext


def note(study: StudyContext, result: SearchResult, champion: str = "") -> str:
    """Begins with the answer; then the figures, the reasons, and which file it is.

    Args:
        champion: `NAME/VERSION` in the model registry, if the file is there.
    """
    quality = study.quality
    reasons = "".join(f"- {reason}\n" for reason in result.reasons)
    facts = f"{limits(result.budget)}. {study.device}, {study.versions['runtime']}."
    file = f"`{result.best.artifact.path}`, SHA-256 `{result.best.artifact.sha256}`"
    if champion:
        file += f", `models:/{champion.rpartition('/')[0]}@champion` (version {champion.rpartition('/')[2]})"
    parts = [_answer(result, quality), _table(result, quality), _examples(result, quality), reasons, facts, file]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def limits(budget: Budget) -> str:
    """`Budget: size_ratio ≤ 0.3`."""
    found = ", ".join(f"`{name}` ≤ {limit:g}" for name, limit in budget.limits().items())
    return f"Budget: {found or 'none'}"


def _answer(result: SearchResult, quality: Quality) -> str:
    file = _gain(result, quality)
    return {
        "feasible": f"**Ship `best/model.onnx`: {file}.**",
        "unproven": f"**Ship `best/model.onnx`: {file}**, though the report set cannot show that the accuracy limit is met.",
        "infeasible": f"**Nothing fits the budget.** The nearest is {file}.",
        "not_worth_it": "**Ship the FP32 file**: nothing that was tried is better.",
        "interrupted": f"**Interrupted.** The best so far is {file}.",
    }[result.status]


def _gain(result: SearchResult, quality: Quality) -> str:
    """`2.43x faster, 3.70x smaller than FP32, accuracy 0.5 points lower`."""
    measured = result.best.measurement
    ratios = [_times(measured.latency_ratio, "faster", "slower"), _times(measured.size_ratio, "smaller", "larger")]
    return f"{', '.join(filter(None, ratios))} than FP32, {quality.metric} {quality.change(result.drop)}"


def _times(ratio: float | None, below: str, above: str) -> str:
    """`2.43x faster` for a ratio of 0.41."""
    if not ratio:
        return ""
    return f"{1 / ratio:.2f}x {below}" if ratio <= 1 else f"{ratio:.2f}x {above}"


def _table(result: SearchResult, quality: Quality) -> str:
    """FP32 beside the best file."""
    base, best = result.baseline.measurement, result.best.measurement
    rows = [("", "FP32", "best", "change"), ("---", "---:", "---:", "---:")]
    if base.accuracy is not None and best.accuracy is not None:
        change = quality.change(result.drop, 2)
        rows.append((quality.metric, quality.value(base.accuracy, 2), quality.value(best.accuracy, 2), change))
    if base.size_bytes is not None and best.size_bytes is not None:
        change = _times(best.size_ratio, "smaller", "larger")
        rows.append(("size", f"{base.size_bytes:,} bytes", f"{best.size_bytes:,} bytes", change))
    if base.latency_ms is not None and best.latency_ms is not None:
        change = _times(best.latency_ratio, "faster", "slower")
        rows.append(("latency", f"{base.latency_ms:.3f} ms", f"{best.latency_ms:.3f} ms", change))
    if base.memory_bytes and best.memory_bytes:
        change = _times(best.memory_bytes / base.memory_bytes, "less", "more")
        rows.append(("memory", f"{base.memory_bytes:,} bytes", f"{best.memory_bytes:,} bytes", change))
    if base.load_ms and best.load_ms:
        rows.append(
            (
                "load",
                f"{base.load_ms:.1f} ms",
                f"{best.load_ms:.1f} ms",
                _times(best.load_ms / base.load_ms, "faster", "slower"),
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _examples(result: SearchResult, quality: Quality) -> str:
    """What the figures of quality rest on."""
    drop = quality.difference(*result.drop_ci, digits=2)
    return f"On {result.best.measurement.images} report examples the drop is {drop} (95 % interval)."

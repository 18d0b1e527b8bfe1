"""The answer of a search in one sentence, and what its status means."""

from __future__ import annotations

from autocompress.quality import Quality
from autocompress.record import SearchResult, Status

EXPLAINED: dict[Status, str] = {
    "feasible": "within the budget: latencies with their whole intervals, accuracy shown on data that the search never saw",
    "unproven": "within the budget as far as it was measured, but an interval reaches beyond a limit",
    "infeasible": "nothing that was tried fits the budget; the file that misses it by least is kept",
    "not_worth_it": "nothing that was tried is better than FP32 for this goal",
    "interrupted": "the search was stopped before its end: this is the best that it had found",
}


def answer(result: SearchResult) -> str:
    """What to ship, how much faster and smaller, at what loss, under which budget."""
    if result.best_trial is None:
        return NOTHING[result.status]
    gain = gains(result)
    sentences: dict[Status, str] = {
        "feasible": f"Ship best/model.onnx: {gain}",
        "unproven": f"best/model.onnx is {gain}, but it is not sure that it is within the budget",
        "infeasible": f"Nothing fits the budget; the nearest file is {gain}",
        "not_worth_it": "Ship the FP32 file: nothing that was tried is better",
        "interrupted": f"Interrupted; the best so far is {gain}",
    }
    return f"{sentences[result.status]} ({budget_words(result)})."


NOTHING: dict[Status, str] = {
    "feasible": "Ship the FP32 file: it is within the budget, and nothing beats it.",
    "unproven": "Ship the FP32 file: nothing else is within the budget for sure.",
    "infeasible": "Nothing fits the budget, FP32 neither.",
    "not_worth_it": "Ship the FP32 file: nothing that was tried is better.",
    "interrupted": "Interrupted before anything within the budget was found.",
}


def gains(result: SearchResult) -> str:
    """`2.43x faster and 3.70x smaller than FP32, accuracy 0.5 points lower`."""
    figures = result.best.measurement
    ratios = [times(figures.latency_ratio, "faster", "slower"), times(figures.size_ratio, "smaller", "larger")]
    return f"{' and '.join(filter(None, ratios))} than FP32, {result.quality.metric} {result.quality.change(result.drop)}"


def times(ratio: float | None, below: str, above: str) -> str:
    """`2.43x faster` for a latency ratio of 0.41, `1.65x slower` for 1.65; empty: it is not known."""
    if not ratio:
        return ""
    return f"{1 / ratio:.2f}x {below}" if ratio <= 1 else f"{ratio:.2f}x {above}"


LIMITS = {
    "size_bytes": ("file", "{:,.0f} bytes"),
    "size_ratio": ("file", "{:.3g} of FP32's bytes"),
    "latency_ms": ("latency", "{:g} ms"),
    "latency_ratio": ("latency", "{:.3g} of FP32's"),
    "memory_bytes": ("memory", "{:,.0f} bytes"),
    "load_ms": ("load time", "{:g} ms"),
}


def budget_words(result: SearchResult) -> str:
    """`budget: accuracy at most 1.0 points lower, file at most 0.5 of FP32's bytes`."""
    limits = [_limit(name, value, result.quality) for name, value in result.budget.limits().items()]
    return f"budget: {', '.join(limits)}" if limits else "no budget was set"


def _limit(name: str, value: float, quality: Quality) -> str:
    if name == "accuracy_drop":
        return f"{quality.metric} at most {quality.difference(value)} lower"
    what, words = LIMITS[name]
    return f"{what} at most {words.format(value)}"

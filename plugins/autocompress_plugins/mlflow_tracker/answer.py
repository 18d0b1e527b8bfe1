"""The answer of a search for a person, as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autocompress import answer, comparison

if TYPE_CHECKING:
    from autocompress import Budget, SearchResult, StudyContext


def note(study: StudyContext, result: SearchResult, champion: str = "") -> str:
    """Begins with the answer; then the figures, the reasons, and which file it is.

    Args:
        champion: `NAME/VERSION` in the model registry, if the file is there.
    """
    reasons = "".join(f"- {reason}\n" for reason in result.reasons)
    facts = f"{limits(result.budget)}. {study.device}, {study.versions['runtime']}."
    file = f"`{result.best.artifact.path}`, SHA-256 `{result.best.artifact.sha256}`"
    if champion:
        file += f", `models:/{champion.rpartition('/')[0]}@champion` (version {champion.rpartition('/')[2]})"
    parts = [f"**{answer(result)}**", _table(result), _examples(result), reasons, facts, file]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def limits(budget: Budget) -> str:
    """`Budget: size_ratio ≤ 0.3`."""
    found = ", ".join(f"`{name}` ≤ {limit:g}" for name, limit in budget.limits().items())
    return f"Budget: {found or 'none'}"


def _table(result: SearchResult) -> str:
    """FP32 beside the best file."""
    rows = [("", "FP32", "best", "change"), ("---", "---:", "---:", "---:"), *comparison(result)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _examples(result: SearchResult) -> str:
    """What the figures of quality rest on."""
    drop = result.quality.difference(*result.drop_ci, digits=2)
    return f"On {result.best.measurement.images} report examples the drop is {drop} (95 % interval)."

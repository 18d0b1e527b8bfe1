"""Would the tests notice? Changes one thing in a module, runs its tests, and lists the changes that no test minds.

    python -m tests.mutation policy budget           # of `SUBJECTS`; all of them without names
    python -m tests.mutation lowering --sample 50    # changes for each of its modules together, drawn with a fixed seed

No file is touched: a changed module is compiled from memory in a forked process, which has everything else imported already.
Prints each survivor and writes benchmarks/results/mutation.json. Takes as long as the tests, times the changes.
"""

from __future__ import annotations

import argparse
import ast
import importlib.machinery
import importlib.util
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).parents[1]

SUBJECTS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "policy": (["policy"], ["--noconftest", "tests/test_policy.py"]),
    "budget": (["budget"], ["--noconftest", "tests/test_budget.py"]),
    "lowering": (
        [f"building.{name}" for name in ("lowering", "layer_lowering", "grid_lowering", "weight_codes", "onnx_edit")],
        ["tests/building/test_lowering.py", "tests/building", "tests/network/test_sequences.py"],
    ),
    "searching": (
        [f"searching.{name}" for name in ("conclusion", "ending", "finalists", "history", "loop", "selection", "start")],
        ["tests/searching"],
    ),
}
"""Name to modules and the tests that are theirs."""

HEAVY = ("numpy", "yaml", "torch", "pytest")
"""Imported once, before the first change: nothing of ours, or a change would not be seen, and nothing that starts threads."""

SECONDS = 240.0
"""A change whose tests take longer is noticed: something does not end."""

COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        code: of the changed module.
        where: line and what was changed.
    """

    module: str
    code: CodeType
    where: str


def mutants(module: str) -> Iterator[Mutant]:
    """Every change of a module; annotations, docstrings, messages of errors and what only types see stay."""
    path = ROOT / "autocompress" / f"{module.replace('.', '/')}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in list(_executed(tree)):
        for before, after, undo in _changes(node):
            code = compile(ast.fix_missing_locations(deepcopy(tree)), str(path), "exec")
            undo()
            yield Mutant(f"autocompress.{module}", code, f"{module}:{node.lineno}: {before} -> {after}")


def _executed(node: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Statements and expressions of which tests could see a change."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import):
                continue
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.expr | ast.stmt):
                yield child
            yield from _executed(child)


def _changes(node: ast.AST) -> Iterator[tuple[str, str, object]]:
    """What the node is and becomes; it is changed while the caller looks, who then undoes it."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield _changed(node, "operand", ast.UnaryOp(ast.Not(), node.operand))
    elif isinstance(node, ast.Compare):
        yield from _each(node, "ops", COMPARISONS)
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield _changed(node, "op", OPERATORS[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield _changed(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.If | ast.IfExp):
        yield _changed(node, "test", ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        yield _changed(node, "value", not node.value if isinstance(node.value, bool) else node.value + 1)
    elif (isinstance(node, ast.Return) and not isinstance(node.value, ast.Constant | None)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield _changed(node, "value", ast.Constant(None))
    elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("min", "max"):
        yield _changed(node, "func", ast.Name("max" if node.func.id == "min" else "min", ast.Load()))  # type: ignore[attr-defined]


def _each(node: ast.Compare, field: str, table: dict[type, type]) -> Iterator[tuple[str, str, object]]:
    for place, operator in enumerate(node.ops):
        others = [*node.ops]
        others[place] = table[type(operator)]()
        yield _changed(node, field, others)


def _changed(node: ast.AST, field: str, value: object) -> tuple[str, str, object]:
    before, old = _words(node), getattr(node, field)
    setattr(node, field, value)
    return before, _words(node), lambda: setattr(node, field, old)


def _words(node: ast.AST) -> str:
    return ast.unparse(ast.fix_missing_locations(node)).partition("\n")[0][:100]


class Changed(MetaPathFinder, Loader):
    """Gives a module another code."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """Of the changed module only."""
        if name != self._mutant.module:
            return None
        return importlib.util.spec_from_loader(name, self, origin=self._mutant.code.co_filename)

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed code."""
        module.__file__ = self._mutant.code.co_filename
        exec(self._mutant.code, module.__dict__)


def outcome(mutant: Mutant | None, tests: Sequence[str]) -> str:
    """`killed`, `survived` or `timeout`; None: as it is, which must survive."""
    process = os.fork()
    if not process:
        _run(mutant, tests)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.02)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return "timeout"


def _run(mutant: Mutant | None, tests: Sequence[str]) -> None:
    """In the forked process, which ends here."""
    import pytest

    os.setpgid(0, 0)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    if mutant is not None:
        sys.meta_path.insert(0, Changed(mutant))
    options = ["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", "not slow and not benchmark and not timing"]
    status = 1
    try:
        status = int(pytest.main([*options, *tests]))
    finally:
        os._exit(status)


def score(subject: str, sample: int | None) -> dict[str, object]:
    """Runs a subject's changes, or a sample of them."""
    modules, tests = SUBJECTS[subject]
    found = [mutant for module in modules for mutant in mutants(module)]
    drawn = found if sample is None or sample >= len(found) else random.Random(0).sample(found, sample)
    if (unchanged := outcome(None, tests)) != "survived":
        raise SystemExit(f"{subject}: its tests do not pass as it is ({unchanged})")
    ends = {"killed": 0, "timeout": 0, "survived": 0}
    survivors = []
    for number, mutant in enumerate(drawn, 1):
        end = outcome(mutant, tests)
        ends[end] += 1
        if end == "survived":
            survivors.append(mutant.where)
        sys.stdout.write(f"{subject} {number}/{len(drawn)} {end}: {mutant.where}\n")
        sys.stdout.flush()
    caught = 1 - ends["survived"] / len(drawn)
    return {"changes": len(found), "sampled": len(drawn), **ends, "score": round(caught, 3), "survivors": sorted(survivors)}


def main() -> None:
    """Prints and publishes the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", choices=[*SUBJECTS, []], help="default: all")
    parser.add_argument("--sample", type=int, help="changes of each subject; default: all")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
    for heavy in HEAVY:
        importlib.import_module(heavy)
    results = {subject: score(subject, arguments.sample) for subject in arguments.subjects or SUBJECTS}
    sys.stdout.write(json.dumps(results, indent=2) + "\n")
    from benchmarks.workbench import RESULTS, publish

    known = RESULTS / "mutation.json"
    before = json.loads(known.read_text(encoding="utf-8"))["rows"] if known.exists() else {}
    publish("mutation", before | results)


if __name__ == "__main__":
    main()

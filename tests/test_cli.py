"""The command line, as Hydra users expect it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import onnx
import pytest
from command import SMALL, command, environment, run
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from autocompress.artifact import sha256_of
from autocompress.cli import JOBS, VERBS, main


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Call = Callable[..., Done]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], own_signals: None
) -> Iterator[Call]:
    """The command line in this process: as good as a process of its own where nothing is measured, and much faster."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def called(*arguments: str, **changes: str) -> Done:
        for name, value in changes.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["autocompress"])
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        printed = capfd.readouterr()
        return Done(int(ended.value.code or 0), printed.out, printed.err)

    yield called
    GlobalHydra.instance().clear()


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one search was run, with MLflow."""
    folder = tmp_path_factory.mktemp("searched")
    done = run(folder, "search", *SMALL, "objective=size", "search.trials=3", "hydra.run.dir=out")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_search_leaves_the_answer_in_its_folder(searched: Path) -> None:
    result = json.loads((searched / "out/result.json").read_text())
    assert result["status"] in {"feasible", "unproven"}
    assert result["trials"]["complete"] == 3
    assert sha256_of(searched / "out/best/model.onnx") == result["best"]["sha256"]
    assert (searched / "out/.hydra/overrides.yaml").is_file()


def test_the_same_command_resumes(searched: Path) -> None:
    before = json.loads((searched / "out/result.json").read_text())
    done = run(searched, "search", *SMALL, "objective=size", "search.trials=3", "hydra.run.dir=out")
    after = json.loads((searched / "out/result.json").read_text())
    assert done.returncode == 0, done.stderr
    assert "t0003" not in done.stderr
    assert after["best"]["sha256"] == before["best"]["sha256"]


def test_apply_builds_the_same_bytes_from_policy_and_state(searched: Path) -> None:
    done = run(searched, "apply", *SMALL, "policy=out/best/policy.yaml", "hydra.run.dir=applied")
    assert done.returncode == 0, done.stderr
    assert "the same bytes" in done.stdout
    assert sha256_of(searched / "applied/model.onnx") == sha256_of(searched / "out/best/model.onnx")


def test_apply_refuses_a_policy_for_another_model(searched: Path) -> None:
    other = [override.replace("small_net:small_net", "conftest:TinyNet") for override in SMALL]
    done = run(searched, "apply", *other, "policy=out/best/policy.yaml", "hydra.run.dir=other")
    assert done.returncode == 2
    assert "found for the model" in done.stderr.splitlines()[-1]


def test_evaluate_measures_any_file(searched: Path) -> None:
    done = run(searched, "evaluate", *SMALL, "artifact=out/best/model.onnx", "hydra.run.dir=evaluated")
    assert done.returncode == 0, done.stderr
    figures = json.loads((searched / "evaluated/evaluation.json").read_text())
    found, baseline = figures["best"], figures["baseline"]
    assert all(file[name] > 0 for file in (found, baseline) for name in ("memory_bytes", "load_ms", "latency_ratio"))
    assert (found["energy_joules"] is None) == bool(found["energy_reason"])
    searched_for = json.loads((searched / "out/result.json").read_text())
    same = ("accuracy", "accuracy_ci", "size_bytes", "size_ratio", "sha256")
    assert [found[name] for name in same] == [searched_for["best"][name] for name in same]
    assert [baseline[name] for name in same] == [searched_for["baseline"][name] for name in same]
    assert (figures["drop"], figures["drop_p"]) == (searched_for["drop"], searched_for["drop_p"])


def test_plugins_lists_components_with_distribution_and_problems(call: Call, tmp_path: Path) -> None:
    done = call("plugins", AUTOCOMPRESS_DISABLED_PLUGINS="sparse")
    assert done.returncode == 0
    assert "quantizer  int8             autocompress 0.1.0  bits=8 per_channel=true" in done.stdout
    assert "Not in use: sparse of autocompress 0.1.0: disabled by AUTOCOMPRESS_DISABLED_PLUGINS" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_help_lists_groups_and_their_options(call: Call) -> None:
    done = call("search", "--help")
    assert done.returncode == 0
    places = [done.stdout.index(f"\n{part}") for part in ("examples\n  autocompress search +", "groups (", "options (")]
    assert places == sorted(places)
    assert "quantizer: estimated, gptq, int4, int8, mean_rounding" in done.stdout
    assert "experiment: cifar10_efficientnet_lite0, cifar10_resnet20, digits," in done.stdout


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_the_overview_shows_examples_and_every_verb(call: Call, arguments: tuple[str, ...]) -> None:
    done = call(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"\n  {verb} " in done.stdout for verb in VERBS)
    assert done.stdout.index("autocompress search +experiment=digits") < done.stdout.index("\n  worker ")


def test_help_of_a_verb(call: Call) -> None:
    done = call("help", "doctor")
    assert done.returncode == 0
    assert "examples:\n  autocompress doctor" in done.stdout


@pytest.mark.parametrize("verb", JOBS)
def test_every_verb_has_examples(verb: str) -> None:
    """What the test of `search` shows on the screen, in the files of the others."""
    config = OmegaConf.load(Path(str(files("autocompress.conf") / f"{verb}.yaml")))
    examples = config.hydra.help.header.partition("\nexamples\n")[2]
    assert f"  autocompress {verb}" in examples


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["serach"], ["-sc", "install=bash"]])
def test_what_needs_no_torch_does_not_load_it(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom autocompress.cli import main\n"
        f"sys.argv = ['autocompress', *{arguments!r}]\n"
        "try:\n    main()\nfinally:\n    assert not {'torch', 'onnx', 'optuna', 'mlflow', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "Error" not in done.stderr


def test_a_reader_that_has_seen_enough_is_no_mistake() -> None:
    line = f"set -o pipefail; {sys.executable} -m autocompress plugins | head -1"
    done = subprocess.run(["bash", "-c", line], env=environment(), capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode in (0, 141), "141 where the reader is gone before all is written"


@pytest.mark.slow
def test_an_answer_that_does_not_fit_the_budget_is_an_answer(tmp_path: Path) -> None:
    limits = ("budget.size_ratio=0.001", "objective=size", "search.trials=1", "tracking=[]", "hydra.run.dir=out")
    done = run(tmp_path, "search", *SMALL, *limits)
    assert done.returncode == 0, done.stderr
    assert "status: infeasible" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_cfg_job_prints_the_composed_settings(call: Call) -> None:
    done = call("search", "--cfg", "job", "quantizer=[int4]", "budget.size_ratio=0.2")
    assert "size_ratio: 0.2" in done.stdout
    assert "int4:" in done.stdout
    assert "int8:" not in done.stdout


def test_multirun_runs_a_job_for_each_value(tmp_path: Path) -> None:
    sweep = ("hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.num}", "tracking=[]", "search.trials=1")
    done = run(tmp_path, "search", "-m", *SMALL, *sweep, "objective=size,latency")
    assert done.returncode == 0, done.stderr
    objectives = [json.loads((tmp_path / f"sweep/{job}/result.json").read_text())["objective"] for job in (0, 1)]
    assert objectives == ["size", "latency"]


def test_multirun_in_processes_of_joblib(tmp_path: Path) -> None:
    """One of the searches fails: the other runs all the same, and it is told as by a single search."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="hydra-joblib-launcher is not installed")
    sweep = ("hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.num}", "tracking=[]", "search.trials=1")
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    done = run(tmp_path, "search", "-m", *SMALL, *sweep, *joblib, "objective=nonsense,size")
    assert done.returncode == 2, done.stderr
    assert "\nautocompress: objective='nonsense': expected one of" in done.stderr
    lines = [line for line in done.stderr.splitlines() if "objective=size" in line]
    assert all(line.startswith("#1 ") for line in lines)
    assert any(re.match(r"#1 .*objective=size.*: \[1/1\] t0000 ", line) for line in lines), done.stderr
    assert json.loads((tmp_path / "sweep/1/result.json").read_text())["objective"] == "size"


@pytest.mark.parametrize("flag", ["--config-dir={}", "hydra.searchpath=[file://{}]"])
def test_the_users_own_config_folder_joins(call: Call, tmp_path: Path, flag: str) -> None:
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/own.yaml").write_text("# @package _global_\nobjective: size\n")
    done = call("search", flag.format(tmp_path / "mine"), "+experiment=own", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "objective: size" in done.stdout


@pytest.mark.parametrize(("line", "expected"), [("observer=m", "observer=minmax"), ("search.tri", "search.trials=")])
def test_tab_completion_knows_verbs_groups_and_keys(call: Call, line: str, expected: str) -> None:
    typed = f"autocompress search {line}"
    done = call("-sc", "query=bash", COMP_LINE=typed, COMP_POINT=str(len(typed)))
    assert expected in done.stdout.split(), done.stderr


def test_completion_can_be_installed(call: Call) -> None:
    assert "complete -o nospace" in call("-sc", "install=bash").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["frobnicate"],
            f"unknown verb 'frobnicate'; expected one of {', '.join(VERBS)}",
        ),
        (["serach"], "; did you mean 'search'?"),
        (["search", "+experiment=digit"], "; did you mean 'digits'?"),
        (["search", "+experimnt=digits"], "unknown config key 'experimnt'; did you mean '+experiment'?"),
        (["search", "experiment=digits"], "experiment has no default to override: write +experiment=NAME"),
        (["search", "quantizer.int8.bit=3"], "unknown config key 'quantizer.int8.bit'; did you mean 'quantizer.int8.bits'?"),
        (
            ["search", "+budget.acuracy_drop=1"],
            "unknown config key 'budget.acuracy_drop'; did you mean 'budget.accuracy_drop'?",
        ),
        (["search", "digits"], "'digits' is no option; expected KEY=VALUE"),
        (["search", "quantizer=[int8"], "an argument cannot be read: no viable alternative at input '[int8'; close brackets"),
        (["search", "quantizer.gptq.bits=[3]"], "which is not in use: choose it with quantizer=gptq"),
        (["search", "budget=3"], "budget=3: budget has options of its own: budget.size_bytes, budget.size_ratio, "),
        (
            ["search", "++search=${objective}"],
            "search=accuracy: search has options of its own: search.trials, search.timeout, ",
        ),
        (["search", "++search.seeds=${objective}"], "search.seeds: expected a list, for example [VALUE,VALUE]"),
        (["search", "+quantizer.gptq.bits=3"], "quantizer.gptq.bits: expected a list, for example [VALUE,VALUE]"),
        (["search", "+quantizer.gptq.steps=3"], "quantizer.gptq: no option 'steps'; options: "),
        (
            ["search", "++quantizer.int8=${objective}"],
            "quantizer.int8=accuracy: expected a mapping; options: bits, group_size, ",
        ),
        (["search", "search.trials=abc"], "search.trials=abc: Value 'abc' of type 'str' could not be converted to Integer"),
        (["search", "metric=acc"], "Did you mean 'accuracy'?"),
        (["evaluate", "artifact=/etc/hostname"], "artifact=/etc/hostname: expected an ONNX file; this is something else"),
        (["-sc", "install=bsh"], "did you mean 'bash'?"),
        (
            ["search", "quantizer=[int9]"],
            "quantizer 'int9' is not registered; available: estimated, gptq, int4, int8, mean_rounding. Did you mean 'int8'?",
        ),
        (["search", "search.trails=1"], "unknown config key 'search.trails'; did you mean 'search.trials'?"),
        (["search", "budget.size_ratio=-1"], "budget.size_ratio=-1.0: expected a number above zero"),
        (["search", "budget.size_ratio=abc"], "Value 'abc' of type 'str' could not be converted to Float"),
        (["search", "objective=fast"], "objective='fast': expected one of accuracy, latency, size, pareto"),
        (["apply"], "no value for policy: set it on the command line"),
        (["apply", "policy=absent.yaml"], "policy absent.yaml: no such file"),
        (["evaluate", "artifact=absent.onnx"], "artifact=absent.onnx: no such file"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(call: Call, arguments: list[str], words: str) -> None:
    done = call(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_that_cannot_be_written_is_no_mistake_in_the_input(call: Call) -> None:
    done = call("search", "hydra.run.dir=/sys/autocompress")
    assert done.returncode == 1
    assert done.stderr.startswith("autocompress: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_file_that_is_no_model_is_one_line(searched: Path) -> None:
    (searched / "broken.onnx").write_bytes(b"not a model")
    done = run(searched, "evaluate", *SMALL, "artifact=broken.onnx", "hydra.run.dir=broken")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_delivered_file_is_a_valid_model_without_paths(searched: Path) -> None:
    path = searched / "out/best/model.onnx"
    onnx.checker.check_model(onnx.load(path))
    assert str(Path(__file__).parent.parent).encode() not in path.read_bytes()


def test_mlflow_ui_command_that_is_printed_starts(searched: Path) -> None:
    """The README's command, taken from what the search printed; the server answers and is stopped."""
    import time
    import urllib.error
    import urllib.request

    where = ["--host", "127.0.0.1", "--port", "5917", "--workers", "1"]
    arguments = ["ui", "--backend-store-uri", f"sqlite:///{searched / 'mlflow/mlflow.db'}", *where]
    process = subprocess.Popen(
        [*command([])[:2], "mlflow", *arguments], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(120):
            try:
                assert urllib.request.urlopen("http://127.0.0.1:5917/health", timeout=1).status == 200
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        else:
            pytest.fail("mlflow ui did not answer within a minute")
    finally:
        process.terminate()
        process.wait(30)


def test_help_is_loaded_once(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until what is installed changes, or the file is damaged."""
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    first = call("search", "--help", **cache)
    assert "quantizer: estimated, gptq, int4, int8" in first.stdout
    (kept,) = (tmp_path / "cache").rglob("search.json")
    with monkeypatch.context() as patch:
        patch.setattr("autocompress.cli._done", None)
        assert call("search", "--help", **cache).stdout == call("search", "-h", **cache).stdout == first.stdout
    with monkeypatch.context() as patch:
        patch.setattr("autocompress.cli._done", lambda *_: 3)
        patch.setenv("AUTOCOMPRESS_DISABLED_PLUGINS", "gptq")
        assert call("search", "--help", **cache).returncode == 3
    kept.write_text("no JSON", encoding="utf-8")
    assert call("search", "--help", **cache).stdout == first.stdout
    (tmp_path / "new-1.0.dist-info").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("autocompress.cli._done", lambda *_: 3)
        assert call("search", "--help", **cache).returncode == 3


def test_help_that_is_kept_needs_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom autocompress.cli import main\nfrom autocompress.commands.help_cache import print_help\n"
        "print_help('search', lambda: print('kept') or 0)\n"
        "sys.argv = ['autocompress', 'search', '--help']\n"
        "try:\n    main()\nfinally:\n    assert not {'torch', 'onnx', 'optuna', 'mlflow', 'hydra'} & set(sys.modules)"
    )
    arguments = {"cwd": tmp_path, "env": {**environment(), "XDG_CACHE_HOME": str(tmp_path)}}
    done = subprocess.run([sys.executable, "-P", "-c", script], **arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "kept\nkept\n")

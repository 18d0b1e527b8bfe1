"""A real OpenSSH server on loopback: what is measured there is what is measured here, whatever happens to the connection."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from autocompress_plugins.onnxruntime_cpu import OnnxRuntime
from autocompress_plugins.ssh import Ssh, client

from autocompress import LayerPolicy, Policy, Target, Task, load_registry, search
from autocompress.artifact import sha256_of
from autocompress.building.candidate import Candidate
from autocompress.config import compose_settings
from autocompress.errors import ConfigError, RuntimeCrashError, UnknownComponentError, UnreachableError
from autocompress.measuring.device import Device, TimingSettings, open_device
from autocompress.reporting.report import table
from autocompress.testing import TargetContract
from autocompress.verbs import evaluate_artifact
from benchmarks.loopback import Loopback, open_loopback, why_missing

if TYPE_CHECKING:
    from tests.conftest import Tiny

BRIEFLY = TimingSettings(seconds=0.01, precision=1.0)
SECOND = TimingSettings(seconds=1.0, precision=0.0)
INT8 = LayerPolicy("int8", 8)


class TestSsh(TargetContract):
    @pytest.fixture
    def target(self) -> Target:
        return Ssh("board", settings={"providers": ["CPUExecutionProvider"]})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    if why := why_missing():
        pytest.skip(why)
    with open_loopback(tmp_path_factory.mktemp("sshd")) as opened:
        yield opened


def make_target(server: Loopback, **changes: Any) -> Ssh:
    settings = compose_settings(server.overrides(), load_registry())
    assert isinstance(settings.components.target, Ssh)
    return replace(settings.components.target, **changes)


@contextmanager
def opened(server: Loopback, patience: float = 20.0, **changes: Any) -> Iterator[Device]:
    with open_device(make_target(server, **changes), threads=1, patience=patience) as device:
        yield device


@pytest.fixture
def board(server: Loopback) -> Iterator[Device]:
    with opened(server) as device:
        yield device


def cached(server: Loopback) -> list[str]:
    return sorted(path.name for path in (server.folder / "cache").iterdir())


def processes(*words: str) -> list[int]:
    """Processes whose command line has all these words."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words) and not line.startswith("ssh"):
            found.append(int(folder.name))
    return found


def runners(server: Loopback) -> list[int]:
    """The Python processes behind the server that measure."""
    session = sha256_of(OnnxRuntime().session_file)
    return [process for process in processes(str(server.folder / "cache"), session) if not is_shell(process)]


def is_shell(process: int) -> bool:
    return Path(f"/proc/{process}/comm").read_text().strip() in ("sh", "dash", "bash")


# --- the same as here ---


def test_measures_the_same_as_here(
    tiny: Tiny, board: Device, device: Device, calibration_file: Path, build_tiny: Callable[[Policy], Candidate]
) -> None:
    path = build_tiny(Policy(dict.fromkeys(tiny.graph.layers, INT8))).artifact.path
    assert board.describe() == device.describe()
    assert board.integer_nodes(path, calibration_file) == device.integer_nodes(path, calibration_file)
    here, there = (each.outputs(path, calibration_file, 3, 40, 8) for each in (device, board))
    np.testing.assert_allclose(there, here, rtol=1e-5, atol=1e-5)
    timed = board.latencies(tiny.graph.path, [path, tiny.graph.path], calibration_file, BRIEFLY)
    assert [latency.device for latency in timed] == [device.describe()["device"]] * 2
    assert all(latency.median_ms > 0 for latency in timed)


def test_errors_of_the_runtime_are_told_as_here(board: Device, calibration_file: Path, tmp_path: Path) -> None:
    (tmp_path / "corrupt.onnx").write_bytes(b"not a model")
    with pytest.raises(RuntimeCrashError, match=r"^target ssh: outputs: .*"):
        board.outputs(tmp_path / "corrupt.onnx", calibration_file, 0, 1, 1)


def test_evaluate_works_alone_and_tells_the_difference_to_this_machine(tiny: Tiny, server: Loopback, tmp_path: Path) -> None:
    settings = compose_settings([*server.overrides(), "tracking=[]", "timing.seconds=0.01"], tiny.registry)
    figures = evaluate_artifact(tiny.task, tiny.graph, tiny.graph.path, replace(settings, folder=tmp_path))
    best, baseline = figures["best"], figures["baseline"]
    assert isinstance(best, dict) and isinstance(baseline, dict)
    assert best["accuracy"] == figures["accuracy_host"] == baseline["accuracy"]


# --- files ---


def test_a_file_is_sent_once_and_again_when_it_was_damaged(tiny: Tiny, server: Loopback, calibration_file: Path) -> None:
    stored = server.folder / "cache" / f"{tiny.graph.digest}.onnx"
    inodes = []
    for damage in (False, False, True):
        if damage:
            stored.write_bytes(b"damaged")
        with opened(server) as device:
            device.outputs(tiny.graph.path, calibration_file, 0, 2, 2)
        assert stored.read_bytes() == tiny.graph.path.read_bytes()
        inodes.append(stored.stat().st_ino)
    assert inodes[0] == inodes[1] != inodes[2]


def test_only_what_is_still_here_stays_there(tiny: Tiny, server: Loopback, calibration_file: Path, tmp_path: Path) -> None:
    old = server.folder / "cache" / "old.onnx"
    old.parent.mkdir(exist_ok=True)
    old.write_bytes(b"")
    os.utime(old, (time.time() - 8 * 24 * 3600,) * 2)
    with opened(server) as device:
        names = []
        for number in range(3):
            path = tmp_path / f"t{number}.onnx"
            path.write_bytes(tiny.graph.path.read_bytes() + b"\x72\x00" * number)  # an empty field more is the same model
            device.outputs(path, calibration_file, 0, 2, 2)
            names.append(f"{sha256_of(path)}.onnx")
            path.unlink()
        assert set(names) & set(cached(server)) == {names[-1]}
    assert f"{sha256_of(calibration_file)}.npy" in cached(server)
    assert "old.onnx" not in cached(server)
    assert not [name for name in cached(server) if name.startswith("tmp")], "results are brought, not left"


def test_a_file_that_arrives_otherwise_is_not_used(
    tiny: Tiny, server: Loopback, calibration_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "0" * 64
    monkeypatch.setattr(client.SshTransport, "_name", lambda self, path: wrong + path.suffix)
    message = rf"arrived with SHA-256 [0-9a-f]{{12}}, expected {wrong[:12]}; tried again for 0 s"
    with opened(server, patience=0) as device, pytest.raises(UnreachableError, match=message):
        device.outputs(tiny.graph.path, calibration_file, 0, 2, 2)
    assert not [name for name in cached(server) if name.startswith(wrong)]


def test_a_result_that_arrives_otherwise_is_not_used(
    tiny: Tiny, server: Loopback, calibration_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = client.SshTransport._read
    monkeypatch.setattr(client.SshTransport, "_read", lambda self, size: read(self, size)[:-1] + b"?")
    with opened(server, patience=0) as device, pytest.raises(UnreachableError, match="a result did not arrive whole"):
        device.outputs(tiny.graph.path, calibration_file, 0, 2, 2)


def test_no_path_is_read_by_a_shell(tiny: Tiny, server: Loopback, calibration_file: Path) -> None:
    folder = server.folder / 'it\'s; touch $(echo ran) "`echo ran`" \\ *'
    with opened(server, folder=str(folder)) as device:
        device.outputs(tiny.graph.path, calibration_file, 0, 2, 2)
    assert (folder / f"{tiny.graph.digest}.onnx").is_file()
    assert not list(server.folder.rglob("ran"))


def test_files_that_cannot_be_stored_end_the_search(tiny: Tiny, server: Loopback, calibration_file: Path) -> None:
    message = r"^target ssh: board: .*nowhere"
    with opened(server, folder="/proc/nowhere") as device, pytest.raises(UnreachableError, match=message):
        device.outputs(tiny.graph.path, calibration_file, 0, 2, 2)


# --- whom it talks to ---


@pytest.mark.parametrize(
    "host",
    [
        *("-oProxyCommand=touch ran", "--", "", "a b", "pi@-board", "-l@board", "'board'"),
        *('a"b', "a;b", "$(ran)", "a\nb", "ssh://a", "a@b@c", "board\n"),
    ],
)
def test_a_host_that_could_be_an_option_or_a_command_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=r"^target\.ssh\.host="):
        Ssh(host)


@pytest.mark.parametrize("host", ["board", "pi@board", "pi@192.168.0.7", "fe80::1", "_x.y-z_1@board.local"])
def test_plain_hosts_are_taken(host: str) -> None:
    assert Ssh(host).host == host


@pytest.mark.parametrize("name", ["python", "folder"])
def test_a_path_there_is_no_option(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^target\.ssh\.{name}='-c'"):
        Ssh("board", **{name: "-c"})


def test_neither_keys_nor_screen_are_forwarded(server: Loopback, tmp_path: Path) -> None:
    """Also where the user's own configuration forwards everything."""
    config = (server.folder / "ssh_config").read_text()
    forwarding = "Host *\n  ForwardAgent yes\n  ForwardX11 yes\n  RemoteForward 9999 localhost:22\n"
    (tmp_path / "ssh_config").write_text(config + forwarding)
    transport = client.SshTransport("board", sys.executable, str(tmp_path / "there"), str(tmp_path / "ssh_config"))
    found = subprocess.run(
        transport._client("-G", "--", "board"), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {"forwardagent no", "forwardx11 no", "clearallforwardings yes", "batchmode yes"} <= set(found)
    assert "stricthostkeychecking true" in found


def refusal(server: Loopback, folder: Path, **files: str) -> str:
    """What is said when the client has other files than the server's own."""
    for path in server.folder.iterdir():
        if path.name in ("user_key", "known_hosts", "ssh_config"):
            shutil.copy(path, folder / path.name)
    config = (folder / "ssh_config").read_text().replace(str(server.folder), str(folder))
    (folder / "ssh_config").write_text(config + files.pop("more", ""))
    for name, content in files.items():
        (folder / name).write_text(content)
    start = time.monotonic()
    with opened(server, config=str(folder / "ssh_config")) as device, pytest.raises(UnreachableError) as error:
        device.describe()
    assert time.monotonic() - start < 5, "trying again cannot help"
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_wrong_host_key_is_refused(server: Loopback, tmp_path: Path) -> None:
    host, kind, _ = (server.folder / "known_hosts").read_text().split()[:3]
    other = (server.folder / "user_key.pub").read_text().split()[1]
    said = refusal(server, tmp_path, known_hosts=f"{host} {kind} {other}\n")
    assert said.startswith("target ssh: board: its host key is not the one in known_hosts")


def test_an_unknown_host_is_refused(server: Loopback, tmp_path: Path) -> None:
    assert "board: its host key is not in known_hosts; connect once by hand" in refusal(server, tmp_path, known_hosts="")
    assert (tmp_path / "known_hosts").read_text() == "", "nothing was learned"


def test_a_login_without_a_key_is_refused_and_asks_for_no_password(server: Loopback, tmp_path: Path) -> None:
    shutil.copy(server.folder / "host_key", tmp_path / "other_key")
    config = (server.folder / "ssh_config").read_text().replace("user_key", "other_key")
    said = refusal(server, tmp_path, ssh_config=config.replace(str(server.folder), str(tmp_path)))
    assert "it refuses the login; expected a key that works without a password (" in said


def test_nobody_there_is_told_at_once(server: Loopback, tmp_path: Path) -> None:
    config = (server.folder / "ssh_config").read_text()
    port = next(line.split()[1] for line in config.splitlines() if "Port" in line)
    assert "Connection refused" in refusal(server, tmp_path, ssh_config=config.replace(f"Port {port}", "Port 1"))


def test_no_python_there_is_told(server: Loopback) -> None:
    with opened(server, python="no_such_python") as device, pytest.raises(UnreachableError, match="no_such_python"):
        device.describe()


def test_no_client_here_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no command `ssh`"):
        Ssh("board").transport()


# --- the runtime ---


def test_the_runtime_and_its_settings_are_those_of_another_target() -> None:
    options = "{CPUExecutionProvider: {use_arena: 0}}"
    given = ["target.ssh.host=b", f"+target.ssh.settings.provider_options={options}", "target.ssh.threads=3"]
    target = compose_settings(["target=ssh", *given], load_registry()).components.target
    inner = OnnxRuntime(3, provider_options={"CPUExecutionProvider": {"use_arena": 0}})
    assert (target.threads, target.options()) == (3, inner.options())
    assert target.capabilities() == inner.capabilities()
    assert target.session_file == inner.session_file


def test_a_runtime_that_does_not_exist_or_is_elsewhere_itself_is_refused() -> None:
    with pytest.raises(UnknownComponentError, match="target 'onnxrumtime' is not registered"):
        Ssh("b", "onnxrumtime").options()
    with pytest.raises(ConfigError, match=r"target\.onnxruntime: no option 'provider'"):
        Ssh("b", settings={"provider": []}).options()
    with pytest.raises(ConfigError, match=r"target\.ssh\.runtime=ssh: expected a target that runs on the machine itself"):
        Ssh("b", "ssh", settings={"host": "c"}).options()


def test_a_host_must_be_given() -> None:
    with pytest.raises(ConfigError, match=r"no value for target\.ssh\.host"):
        compose_settings(["target=ssh"], load_registry())


# --- what goes wrong ---


def test_a_connection_that_is_lost_while_timing_is_made_again(
    tiny: Tiny, server: Loopback, board: Device, calibration_file: Path
) -> None:
    board.describe()
    before = runners(server)
    timer = threading.Timer(0.5, server.drop)
    timer.start()
    start = time.monotonic()
    found = board.latency(tiny.graph.path, tiny.graph.path, calibration_file, SECOND)
    timer.join()
    assert found.ratio == pytest.approx(1, abs=0.5)
    assert time.monotonic() - start > 1.4, "it was timed again in full"
    assert before and not set(before) & set(runners(server)), "what nobody waits for any more has ended"


def test_a_first_connection_that_is_lost_before_an_answer_is_made_again(server: Loopback, board: Device) -> None:
    def cut_at_the_first_command() -> None:
        while not processes(str(server.folder / "cache")):
            time.sleep(0.001)
        server.drop()

    cutter = threading.Thread(target=cut_at_the_first_command)
    cutter.start()
    assert board.describe()
    cutter.join()


def test_a_client_that_is_killed_is_started_again(tiny: Tiny, board: Device, calibration_file: Path) -> None:
    expected = board.describe()
    assert board._process is not None
    os.kill(board._process.pid, signal.SIGKILL)
    assert board.describe() == expected


def test_a_crash_of_the_runtime_is_no_loss_of_the_connection(server: Loopback, board: Device) -> None:
    expected = board.describe()
    for process in runners(server):
        os.kill(process, signal.SIGKILL)
    with pytest.raises(RuntimeCrashError, match=r"process ended \(status 137\) while asked to describe"):
        board.describe()
    assert board.describe() == expected


def test_a_machine_that_stays_away_ends_the_search(tiny: Tiny, calibration_file: Path, tmp_path: Path) -> None:
    if why := why_missing():
        pytest.skip(why)
    with open_loopback(tmp_path) as server:
        device = Device(make_target(server), threads=1, patience=1.0)
        device.describe()
    with pytest.raises(UnreachableError, match=r"tried again for 1 s \(trial\.reconnect_seconds\); the same command resumes$"):
        device.outputs(tiny.graph.path, calibration_file, 0, 2, 2)
    device.close()


@contextmanager
def dropping(server: Loopback, times: int) -> Iterator[Callable[[], int]]:
    """Cuts all connections at random moments until it did so many times; yields how often it could."""
    over, chance, cut = threading.Event(), random.Random(0), list[int]()

    def work() -> None:
        while len(cut) < times and not over.wait(chance.uniform(0.3, 1.0)):
            cut.extend([1] if server.drop() else [])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield lambda: len(cut)
    finally:
        over.set()
        thread.join()


def test_no_trial_is_lost_or_doubled_when_connections_drop(tiny_task: Task, server: Loopback, tmp_path: Path) -> None:
    few = ["search.start=none", "sampler=random", "search.finalists=1", "space.include=[head,outer.0]", "recover=[]"]
    quick = ["tracking=[]", "timing.seconds=0.05", "timing.precision=1", "space.ops=false"]
    with dropping(server, 2) as cut:
        result = search(tiny_task, trials=4, output_dir=tmp_path, overrides=[*server.overrides(), *few, *quick])
    assert cut() == 2
    assert [record.state for record in result.records if record.kind != "repeated"] == ["complete"] * 4
    assert [record.number for record in result.records] == list(range(len(result.records)))
    assert len({record.policy.digest for record in result.records}) == 4
    assert result.host_accuracy == pytest.approx(result.best.measurement.accuracy, abs=0.005)
    assert "on the machine that searched, the same file has accuracy" in table(result)


def test_nothing_is_left_running(server: Loopback) -> None:
    with opened(server) as device:
        device.describe()
        assert runners(server)
    end = time.monotonic() + 5
    while server.connections() or runners(server):
        assert time.monotonic() < end
        time.sleep(0.05)

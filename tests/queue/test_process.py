"""The command `tokenmill worker` as a process: how it starts, ends, idles, and what it says when it cannot run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.queue.harness import Bench, worker_process
from tests.support.waiting import wait_until

COMMAND = [sys.executable, "-c", "from tokenmill_worker.cli import worker; worker()"]


def run(*arguments: str, environment: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=(environment or {}) | {"PATH": os.defpath},
    )


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, from the kernel's books."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_sigterm_drains_and_exits_0(bench: Bench) -> None:
    with worker_process(bench) as child:
        wait_until(bench.workers, description="the worker is there", timeout=30.0)
        bench.submit("q-1", max_tokens=20)
        bench.wait_tokens(1)
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=20) == 0
    result = bench.result("q-1")
    assert result.terminal is not None
    assert result.terminal.type == "done"
    assert bench.is_at_rest()


def test_a_second_ctrl_c_exits_at_once(bench: Bench) -> None:
    with worker_process(bench) as child:
        wait_until(bench.workers, description="the worker is there", timeout=30.0)
        bench.submit("q-1", max_tokens=4000)
        bench.wait_tokens(1)
        child.send_signal(signal.SIGINT)
        bench.wait_tokens(20)  # the first one drains: the request goes on
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=5) == 130


def test_a_burst_exits_0_when_the_queue_is_empty(bench: Bench) -> None:
    bench.submit("q-1")
    run_ = run("--model", "echo", "--redis", bench.url, "--queue", bench.keys.queue, "--burst")
    assert (run_.returncode, run_.stdout) == (0, "")
    assert "ready: model echo" in run_.stderr
    assert "hello" not in run_.stderr, "prompts must not be logged"
    assert bench.terminal("q-1").type == "done"


def test_the_echo_model_loads_no_torch(bench: Bench) -> None:
    code = (
        "import sys; from tokenmill_worker.cli import worker\n"
        "try: worker()\n"
        "finally: print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'transformers'}))"
    )
    arguments = ["--model", "echo", "--redis", bench.url, "--queue", bench.keys.queue, "--burst"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n"


def test_an_embedded_server_is_started_when_asked_for() -> None:
    done = run("--model", "echo", "--redis", "embedded", "--burst")
    assert (done.returncode, "ready: model echo" in done.stderr) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "echo", "--redis", "redis://127.0.0.1:1/0"], 1, "redis://127.0.0.1:1/0"),
        (["--model", "echo", "--redis", "http://localhost"], 1, "redis://"),
        (["--model", "echo?wrong=1"], 1, "echo?wrong=1"),
        (["--model", "echo", "--quantization", "int8"], 2, "--quantization"),
        (["--model", "echo", "--quantization", "w8a8"], 1, "leave it out"),
        (["--model", "echo", "--max-num-seqs", "0"], 2, "--max-num-seqs"),
        (["--config", "no-such-file.toml"], 2, "no-such-file.toml"),
        (["--no-such-flag"], 2, "--no-such-flag"),
    ],
)
def test_what_cannot_work_is_said_in_a_line_without_a_traceback(arguments: list[str], code: int, message: str) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_with_nothing_to_do_uses_less_than_two_percent_of_a_core(bench: Bench) -> None:
    with worker_process(bench) as child:
        wait_until(bench.workers, description="the worker is there", timeout=30.0)
        bench.submit("q-1")
        bench.wait_result("q-1")
        start_s, used_s = time.monotonic(), cpu_seconds(child.pid)
        wait_until(lambda: time.monotonic() - start_s > 4.0, description="four idle seconds pass")
        share = (cpu_seconds(child.pid) - used_s) / (time.monotonic() - start_s)
    assert share < 0.02

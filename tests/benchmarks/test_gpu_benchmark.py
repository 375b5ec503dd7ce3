"""The GPU benchmark and its checks, all of it, on tiny shapes: the first call on a device must not die of a typo."""

import json
from pathlib import Path

import pytest
import torch
from tokenmill_worker.engine import SamplingParams

from benchmarks.gpu import shapes
from benchmarks.gpu.__main__ import main
from tests.gpu.checks import Subject, complaints, generated, greedy, tokens


def test_the_benchmark_runs_as_a_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = ["--parts", "decode", "latency", "steps"]
    main(["--device", "cpu", "--shapes", "tiny", "--set", "num_threads=1", "--out", str(tmp_path), *parts])
    (file,) = tmp_path.iterdir()
    figures = json.loads(file.read_text())
    assert figures["failed"] == {}
    assert list(figures["roofline_fraction"]) == [
        "8b_batch1_ctx12",
        "8b_batch3_ctx20",
        "qwen_batch2_ctx12",
        "smollm2_batch2_ctx12",
    ]
    assert set(figures["latency"]) == {"1_in_flight", "2_in_flight"}
    assert figures["smollm2_steps_per_s_2_rows"] > 0
    assert capsys.readouterr().out.splitlines()[-1] == file.read_text().strip()


@pytest.mark.slow  # transformers' continuous batching takes half a minute to start and stop
def test_the_rivals_do_the_same_work(tmp_path: Path) -> None:
    main(["--device", "cpu", "--shapes", "tiny", "--parts", "job", "--out", str(tmp_path)])
    (file,) = tmp_path.iterdir()
    job = json.loads(file.read_text())["job"]
    assert job["ours"] > 0
    assert job["transformers_static_generate"] > 0
    assert job["transformers_continuous_batching"] > 0


@pytest.mark.parametrize("name", ["qwen", "smollm2"])
def test_the_checks_of_tests_gpu_pass_on_a_cpu(name: str) -> None:
    subject = Subject(shapes.tiny(), name, torch.device("cpu"))
    outputs = subject.engine(max_model_len=256, overlap=True).generate(subject.prompts((5, 33)), greedy(9))
    model = subject.model()
    assert complaints(model, outputs) == []
    assert [out.token_ids for out in outputs] == [generated(model, out.prompt_token_ids, 9) for out in outputs]


def test_the_checks_of_tests_gpu_see_a_wrong_token() -> None:
    subject = Subject(shapes.tiny(), "smollm2", torch.device("cpu"))
    params = SamplingParams(temperature=5.0, max_tokens=9, ignore_eos=True)
    outputs = subject.engine(max_model_len=256).generate(subject.prompts((5, 33)), params)
    assert len(complaints(subject.model(), outputs)) == 2
    assert [len(choices[0]) for choices in tokens(outputs)] == [9, 9]

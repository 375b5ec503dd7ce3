"""Compiles what the Triton backend would launch on an H200, without a GPU, and prints one JSON line for each kernel.

    python -m tests.engine.models.compile_kernels CACHE_DIR [CASE ...]

The interpreter forgives what a compiler does not: types, shapes, shared memory. Triton carries its own assembler, so
all but the launch happens here: a driver that only names the device takes the real one's place. Run in a process of its
own, because TRITON_INTERPRET decides at import which kind of kernel there is.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenmill_worker.engine.attention import AttentionSpec

from tests.engine.models.test_attention import Shape, make_case

H200_SHARED_BYTES = 227 * 1024
ROWS = [(64, 1), (200, 40)]  # decoding and a chunk


class Variant(NamedTuple):
    shape: Shape
    dtype: torch.dtype = torch.bfloat16
    spec: AttentionSpec = AttentionSpec(0.1)
    has_rope: bool = False


def with_sinks(shape: Shape) -> AttentionSpec:
    return AttentionSpec(0.1, window=128, softcap=30.0, sinks=torch.zeros(shape.heads, dtype=torch.bfloat16))


CASES = {
    "llama 8b": Variant(Shape(32, 8, 128, 128), has_rope=True),
    "smollm2": Variant(Shape(9, 3, 64, 64), has_rope=True),
    "gemma": Variant(Shape(16, 8, 256, 256), spec=AttentionSpec(0.1, window=1024, softcap=50.0)),
    "gpt-oss": Variant(Shape(64, 8, 64, 64), spec=with_sinks(Shape(64, 8, 64, 64))),
    "deepseek": Variant(Shape(16, 16, 192, 128)),
    "one head each": Variant(Shape(32, 32, 96, 96), has_rope=True),
    "80": Variant(Shape(32, 8, 80, 80), has_rope=True),
    "one kv head": Variant(Shape(16, 1, 128, 128)),
    "float16": Variant(Shape(32, 8, 128, 128), torch.float16),
    "float32": Variant(Shape(32, 8, 128, 128), torch.float32, has_rope=True),
    "small float32": Variant(Shape(4, 2, 16, 16), torch.float32),
    "narrow values": Variant(Shape(4, 2, 24, 8)),
    "wide float32": Variant(Shape(16, 8, 256, 256), torch.float32),
}


class NoDevice:
    """What triton asks a driver before it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def compiled(variant: Variant) -> Iterator[tuple[str, Any]]:
    """(kernel's name, what the compiler made) for each launch of one step, whole and then with split keys."""
    from tokenmill_worker.engine.attention.triton.backend import TritonBackend
    from tokenmill_worker.engine.attention.triton.device import Device
    from triton.runtime import driver, jit

    made: list[tuple[str, Any]] = []
    run = jit.JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        del warmup
        made.append((self.__name__, run(self, *args, grid=grid, warmup=True, **options)))

    driver.set_active(NoDevice())
    jit.JITFunction.run = compile_only
    case = make_case(ROWS, variant.shape, variant.dtype)
    for num_processors in (1, 132):
        backend = TritonBackend(has_flash=False, device=Device(num_processors, H200_SHARED_BYTES))
        with torch.inference_mode():
            if variant.has_rope:
                qkv = torch.cat([part.flatten(1) for part in (case.query, case.key, case.value)], 1)
                angles = torch.ones(len(qkv), variant.shape.key_dim, dtype=variant.dtype)
                heads = variant.shape.heads
                backend.rope_attend(qkv, angles, angles, case.pages, case.step, variant.spec, heads)
            else:
                backend.attend(case.query, case.key, case.value, case.pages, case.step, variant.spec)
    jit.JITFunction.run = run
    return iter(made)


def description(name: str, kernel: Any) -> dict[str, object]:
    ptx = kernel.asm["ptx"]
    return {
        "kernel": name,
        "target": re.findall(r"\.target (\w+)", ptx)[0],
        "shared_bytes": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "products": "wgmma" if "wgmma.mma" in ptx else "mma" if "mma.sync" in ptx else "none",
        **_resources(kernel.asm["cubin"]),
    }


def _resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of its stack: what did not fit into them."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = dict(re.findall(r"(REG|STACK):(\d+)", said))
    return {"registers": int(found["REG"]), "stack_bytes": int(found["STACK"])}


def main(cache_dir: str, *names: str) -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_CACHE_DIR"] = cache_dir
    for name in names or CASES:
        for kernel, made in compiled(CASES[name]):
            sys.stdout.write(json.dumps({"case": name, **description(kernel, made)}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

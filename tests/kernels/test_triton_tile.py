import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from marginlab.kernels import pointwise, tiles
from marginlab.kernels.margin_settings import MarginSettings
from marginlab.kernels.tiles import Columns, Rows
from marginlab.margins import NoMargin

ROOT = Path(__file__).parents[2]


def in_a_process_of_its_own(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.parametrize(
    "interpreted", ["1", "0"], ids=["interpreted on the CPU", "compiled on the GPU"]
)
def test_the_laws(interpreted, tmp_path):
    """Triton reads TRITON_INTERPRET once, when it is loaded."""
    pytest.importorskip("triton")
    if interpreted == "0" and not torch.cuda.is_available():
        pytest.skip("there is no GPU to run compiled kernels on")
    laws = str(Path(__file__).with_name("triton_laws.py"))
    run = in_a_process_of_its_own(
        "-m",
        "pytest",
        "-q",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        laws,
        TRITON_INTERPRET=interpreted,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) > 50


def test_a_cpu_never_loads_triton():
    code = (
        "import sys, torch; from marginlab.losses import MarginSoftmax\n"
        "MarginSoftmax(2, 2)(torch.eye(2), torch.arange(2)); print('triton' in sys.modules)"
    )
    run = in_a_process_of_its_own("-c", code)
    assert run.stdout.strip() == "False", run.stderr


def problem(device="cpu", K=1, kind=torch.float32, exclude=None, hardness=None, **settings):
    weight, row = (
        torch.ones(3, K, 2, device=device, dtype=kind),
        torch.ones(1, device=device, dtype=kind),
    )
    wide = torch.promote_types(kind, torch.float32)
    return Columns(weight, MarginSettings(NoMargin(), **settings), wide), Rows(
        torch.ones(1, 2, device=device), row.long(), exclude, row, hardness
    )


def test_only_the_plain_case_is_triton_s():
    assert pointwise.plain(*problem())
    assert pointwise.plain(*problem(kind=torch.bfloat16))
    others = (
        {"K": 2},
        {"kind": torch.float64},
        {"label_smoothing": 0.1},
        {"interclass_filter": 0.4},
        {"exclude": torch.zeros(1, 1, dtype=torch.long)},
        {"hardness": torch.zeros(())},
    )
    for other in others:
        assert not pointwise.plain(*problem(**other)), other


@pytest.mark.parametrize("runs", [True, False])
def test_triton_is_chosen_on_cuda_where_it_runs(runs, monkeypatch):
    triton_tile = pytest.importorskip("marginlab.kernels.triton_tile", exc_type=ImportError)
    monkeypatch.setattr(triton_tile, "runs", lambda device: runs)
    monkeypatch.setattr(pointwise, "_compiled", lambda: (max, min))
    eager, fused = (
        (tiles.forward_tile, tiles.backward_tile),
        (triton_tile.forward_tile, triton_tile.backward_tile),
    )
    assert pointwise.pointwise(*problem()) == eager
    with FakeTensorMode():  # tensors that say they are on a GPU
        assert pointwise.pointwise(*problem("cuda")) == (fused if runs else eager)
        assert pointwise.pointwise(*problem("cuda", K=2)) == eager
        assert pointwise.pointwise(*problem("cuda", compiled=True)) == (max, min)


def test_where_triton_does_not_run_is_said_once(recwarn):
    triton_tile = pytest.importorskip("marginlab.kernels.triton_tile", exc_type=ImportError)
    triton_tile.runs.cache_clear()
    with pytest.warns(UserWarning, match=r"do not run on cpu .* needs a C compiler"):
        assert not triton_tile.runs(torch.device("cpu"))
    assert not triton_tile.runs(torch.device("cpu"))
    assert len(recwarn) == 0


INTEGERS = {"stride", "start", "B", "T", "blocks"}
CASES = [
    *(("_sums", aligned, lifted, "fp32") for aligned in (True, False) for lifted in (True, False)),
    *(
        ("_gradient", aligned, lifted, out)
        for aligned in (True, False)
        for lifted in (True, False)
        for out in ("fp32", "bf16", "fp16")
    ),
    ("_merge", False, False, "fp32"),
]


@pytest.mark.parametrize(("name", "aligned", "lifted", "out"), CASES)
def test_they_compile_for_hopper_without_spills(name, aligned, lifted, out, tmp_path, monkeypatch):
    """For sm_90, by the assembler that comes with Triton: the registers hold a whole block, and
    aligned rows are loaded by 16 bytes.
    """
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from marginlab.kernels import triton_tile

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(triton_tile, name)
    sizes = (
        {"ROWS": triton_tile.MERGED, "BLOCKS": triton_tile.BLOCKS}
        if name == "_merge"
        else {"ROWS": triton_tile.ROWS, "COLUMNS": triton_tile.COLUMNS}
    )
    constants = sizes if name == "_merge" else sizes | {"LIFT": lifted}
    kinds = (
        {"target": "*i64", "grad": f"*{out}"}
        | dict.fromkeys(INTEGERS, "i32")
        | dict.fromkeys(constants, "constexpr")
    )
    signature = {argument: kinds.get(argument, "*fp32") for argument in kernel.arg_names}
    divisible = [
        argument
        for argument, kind in signature.items()
        if kind[0] == "*" or (aligned and argument in {"stride", "T"})
    ]
    attributes = {
        (kernel.arg_names.index(argument),): [["tt.divisibility", 16]] for argument in divisible
    }
    source = ASTSource(kernel, signature, constants, attributes)
    options = {} if name == "_merge" else {"num_warps": triton_tile.WARPS}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    assert compiled.asm["cubin"][:4] == b"\x7fELF"
    usage = subprocess.run(
        [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", binary],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    registers, stack, local = (
        int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("REG", "STACK", "LOCAL")
    )
    assert stack == local == 0
    assert registers <= 128  # 2 programs of 256 threads on a multiprocessor's 65,536 registers
    if aligned:
        ptx = compiled.asm["ptx"]
        each = triton_tile.ROWS * triton_tile.COLUMNS // (32 * triton_tile.WARPS) // 4
        assert len(re.findall(r"ld\.global\.v4\.b32", ptx)) >= each
        if name == "_gradient":
            assert "st.global.v4.b32" in ptx

"""What every Triton kernel becomes for an A100 and an H100, read from the compiled binaries:

    python -m args_fast.bench.compile_report > docs/compile_report.md

Needs Triton and no GPU. Nothing is run, so nothing in it is a time.
"""

import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context

from args_fast.bench.resources import CASES, MACHINES, Kernel, compile_case

PREAMBLE = """# What the Triton kernels compile to

Read from the binary or computed from it, not run: no GPU had a part in this, and nothing in it is a
time. Written by `python -m args_fast.bench.compile_report` with Triton {triton}; the cases are in
`bench/resources.py`, and what must hold for them is asserted in `tests/kernels/test_compiled.py`.

- registers: per thread, of 255. spilled: bytes per thread in local memory.
- shared: bytes of shared memory per program.
- fit: programs that one multiprocessor has room for, by registers, shared memory and threads.
  occupancy: their warps, of 64. limit: what there is no more of. Computed.
- loads: instructions that load from global memory, by bytes per thread; those that copy to shared
  memory without passing registers (LDGSTS) as "copies".
- mma: tensor core instructions (HMMA, HGMMA).
"""
HEADER = """
| case | kernel | warps | stages | registers | spilled | shared | fit | occupancy | limit | loads | copies | mma |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- | --- | ---: |
"""  # noqa: E501


def main() -> None:
    wanted = [(number, arch) for arch in MACHINES for number in range(len(CASES))]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        compiled = dict(zip(wanted, pool.map(_compile, *zip(*wanted, strict=True)), strict=True))
    out = sys.stdout.write
    out(PREAMBLE.format(triton=version("triton")))
    for arch, machine in MACHINES.items():
        for op in dict.fromkeys(case.op for case in CASES):
            out(f"\n## {op}, sm_{arch} ({machine.name})\n{HEADER}")
            for number, case in enumerate(CASES):
                if case.op == op:
                    for kernel in compiled[number, arch]:
                        out(_row(case.name, kernel))


def _compile(number: int, arch: int) -> list[Kernel]:
    warnings.simplefilter("ignore")
    return compile_case(CASES[number], arch)


def _row(case: str, kernel: Kernel) -> str:
    cells = (
        case,
        f"`{kernel.name}`",
        kernel.warps,
        kernel.stages,
        kernel.registers,
        kernel.spilled,
        kernel.shared_memory,
        kernel.programs_per_multiprocessor,
        f"{kernel.occupancy:.0%}",
        kernel.limit,
        _widths(kernel.loads),
        _widths(kernel.copies),
        kernel.tensor_cores,
    )
    return f"| {' | '.join(map(str, cells))} |\n"


def _widths(counts: dict[int, int]) -> str:
    return ", ".join(f"{n} of {width}" for width, n in sorted(counts.items(), reverse=True))


if __name__ == "__main__":
    main()

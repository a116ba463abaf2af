"""What the compiler made of the kernels: weights on the stack instead of in registers halve their speed."""

import re
import shutil
import subprocess

import pytest

from torch_separable.runtime.native.library import library_path

KEPT = re.compile(r"\tvmov\w+ +%([yz]mm)\d+,[-\w]*\(%r[sb]p\)$")
MULTIPLY_ADD = re.compile(r"\tvfmadd\w+ .*%([yz]mm)\d+$")
ON_THE_STACK = re.compile(r"\(%r[sb]p\)")


@pytest.mark.parametrize("register", ["ymm", "zmm"])
def test_kernels_multiply_from_registers(register: str) -> None:
    objdump, library = shutil.which("objdump"), library_path()
    if objdump is None or library is None:
        pytest.skip("there is no objdump, or no library")
    command = [objdump, "--disassemble", "--no-show-raw-insn", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "x86-64" not in text[:500]:
        pytest.skip("not built for x86-64")
    found = [line for line in text.splitlines() if (m := MULTIPLY_ADD.search(line)) and m[1] == register]
    spilled = [line for line in found if ON_THE_STACK.search(line)]
    # Those that are left are of filters of rare shapes and of bfloat16 where it has no instructions of its own.
    assert len(found) > 1000
    assert len(spilled) < 0.03 * len(found), f"{len(spilled)} of {len(found)} multiply-adds read the stack"
    if register == "ymm":
        return  # of half as many registers, what is put on the stack tells nothing
    # Nor are sums kept there from the beginning to the end: only before calls of functions, in rare branches.
    kept = [line for line in text.splitlines() if (m := KEPT.search(line)) and m[1] == register]
    assert len(kept) < 0.5 * len(found), f"{len(kept)} vectors are put on the stack, beside {len(found)} multiply-adds"

"""README.md says where each attack is tested: what it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
ROW = re.compile(r"\| (\d+) \| .+ \| (.+) \|")


def test_every_attack_that_is_tested_here_has_tests_and_every_file_exists() -> None:
    rows = {
        match[1]: match[2]
        for line in (HERE / "README.md").read_text(encoding="utf-8").splitlines()
        if (match := ROW.fullmatch(line))
    }
    assert [int(number) for number in rows] == list(range(1, 55))
    tested = {
        str(int(match[1]))
        for path in HERE.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (match := re.match(r"test_(\d+)_", node.name))
    }
    assert {number for number, where in rows.items() if where.startswith("here:")} <= tested
    assert {str(number) for number in range(24, 38)} <= tested
    for where in rows.values():
        folder = HERE
        for name in re.findall(r"`([\w/]+\.py)`", where):
            folder = (HERE.parent / name).parent if "/" in name else folder
            is_there = (folder / Path(name).name).exists() or (HERE.parent / name).exists()
            assert is_there, name

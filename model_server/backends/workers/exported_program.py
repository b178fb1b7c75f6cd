"""ExportedPrograms: what may be in the file, and what it says of its tensors.

``torch.export.load`` trusts a file: beside the graph it takes pickles of any object, compiled
libraries, operators by any name that PyTorch's module leads to, and expressions that are evaluated
as Python. So a file is read through first, by the reader that loads it, and refused unless it holds
a graph of PyTorch's own operators and tensors.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model_server.backends.base import Signature, TensorSpec
from model_server.errors import ModelError

__all__ = ["FILE", "Described", "check", "described", "load"]

FILE = "model.pt2"
_OLDEST = (2, 10)
"""Before it, PyTorch's restricted unpickler has holes (CVE-2025-32434, CVE-2026-24747)."""
_RECORD = re.compile(
    r"data/(weights/weight_\d+|constants/tensor_\d+|(weights|constants)/model_\w+_config\.json"
    r"|sample_inputs/model\.pt)|models/model\.json|archive_format|archive_version|byteorder"
    r"|\.data/(version|serialization_id)|extra/.*"
)
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims)\.\w+(\.\w+)?|torch\.sym_\w+|math\.\w+"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|map_impl|associative_scan"
    r"|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|lt|le|eq|ne|ge|gt"
    r"|and_|or_|xor|not_|lshift|rshift|getitem)"
)
_FILES = re.compile(r"torch\.ops\.aten\.(from_file|save)\b.*")
_WORD = re.compile(r"-?[\w.]*", re.ASCII)
_TEXTS = {"as_string", "as_strings", "torch_version", "guards_code"}
_UNREAD = {"metadata"}
_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict"}
_EXPRESSIONS = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.UnaryOp, ast.BinOp,
    ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip


def load(path: Path) -> Any:
    """Load a file that ``check`` has found in order.

    Raises:
        ModelError: It is not, or this PyTorch is too old.
    """
    import torch  # type: ignore[import-not-found, unused-ignore]

    if torch.__version__ < _OLDEST:
        raise ModelError(
            f"{path} needs PyTorch {_OLDEST[0]}.{_OLDEST[1]} or newer, this is {torch.__version__}"
        )
    check(path)
    return torch.export.load(str(path))


def check(path: Path) -> None:
    """Refuse a file with anything but a graph of PyTorch's own operators and tensors.

    Raises:
        ModelError: It has, or is no such file.
    """
    from torch.export.pt2_archive import (  # type: ignore[import-not-found, unused-ignore]
        PT2ArchiveReader,
    )

    try:
        with zipfile.ZipFile(path) as archive:
            # How older versions are told; they are read in another way.
            old = "version" in archive.namelist()
        with PT2ArchiveReader(str(path)) as reader:
            records = reader.get_file_names()
            graph = json.loads(reader.read_bytes("models/model.json"))
    except (RuntimeError, ValueError, zipfile.BadZipFile) as exc:
        reason = (str(exc).splitlines() or [""])[0]
        raise ModelError(
            f"{path} is not an ExportedProgram, as torch.export.save writes it: {reason}"
        ) from exc
    if old:
        raise ModelError(f"{path} was written by PyTorch 2.7 or older: export it anew")
    for record in records:
        if not _RECORD.fullmatch(record):
            raise _refused(path, f"the file {record}")
    for key, text in _texts(graph):
        if (what := _mistake(key, text)) is not None:
            raise _refused(path, what)


def _refused(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path} holds {what}: only a graph of PyTorch's own operators and plain tensors is loaded"
    )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a JSON document with the key that it stands under; keys are texts too."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield "", name
            if name not in _UNREAD:
                yield from _texts(below, name)
    elif isinstance(value, list):
        for below in value:
            yield from _texts(below, key)
    elif isinstance(value, str):
        yield key, value


def _mistake(key: str, text: str) -> str | None:
    """Name what is not allowed there, if it is not."""
    if key in ("target", "as_operator"):
        allowed = _OPERATOR.fullmatch(text) and not _FILES.fullmatch(text)
        return None if allowed else f"the operator {text}"
    if key == "expr_str":
        return None if _is_arithmetic(text) else f"the expression {text!r}"
    if key in ("in_spec", "out_spec"):
        return None if not text or _is_plain(json.loads(text)[1]) else f"the container {text}"
    return None if key in _TEXTS or _WORD.fullmatch(text) else f"{key or 'the name'} {text!r}"


def _is_arithmetic(text: str) -> bool:
    """Whether an expression has only numbers, names, operators and SymPy's classes."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, _EXPRESSIONS):
            return False
        if isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and node.func.id[0].isupper()
        ):
            return False
        if isinstance(node, ast.Name) and node.id.startswith("_"):
            return False
        if isinstance(node, ast.Constant) and not (
            isinstance(node.value, int | float) or re.fullmatch(r"[a-z]\w*", str(node.value))
        ):
            return False
    return True


def _is_plain(spec: Any) -> bool:
    if not isinstance(spec, dict) or spec.get("type") not in _CONTAINERS:
        return False
    return all(_is_plain(child) for child in spec["children_spec"])


class Described(NamedTuple):
    """What a program says of its tensors.

    Attributes:
        signature: By the names of its function's arguments, and of its results if they are a dict.
        positional: How many inputs are positional arguments.
        keywords: The names of the others.
        bfloat16: Which inputs are of that type: NumPy has none, so they travel as float32.
    """

    signature: Signature
    positional: int
    keywords: tuple[str, ...]
    bfloat16: tuple[bool, ...]


def described(program: Any) -> Described:
    """Return what a loaded program says of its tensors.

    Raises:
        ModelError: An input or output is no tensor, or one in a container.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    spec, results = program.call_spec.in_spec, program.call_spec.out_spec
    names = tuple(program.graph_signature.user_inputs)
    if spec.num_leaves != sum(child.num_children for child in spec.children()):
        raise ModelError("it takes tensors in containers: give it one argument for each tensor")
    if results.num_leaves != max(1, results.num_children):
        raise ModelError("it gives tensors in containers of containers")
    outputs = tuple(program.graph_signature.user_outputs)
    said = results.context if results.type is dict else None
    named = said or [f"OUTPUT__{n}" for n in range(len(outputs))]  # as Triton calls them
    inputs = [_spec(str(name), nodes.get(name)) for name in names]
    arguments, keywords = spec.children()
    return Described(
        Signature(
            tuple(inputs),
            tuple(_spec(str(n), nodes.get(o)) for n, o in zip(named, outputs, strict=True)),
        ),
        arguments.num_children,
        tuple(keywords.context or ()),
        tuple(_type_name(nodes[name].meta["val"]) == "bfloat16" for name in names),
    )


def _type_name(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.")


def _spec(name: str, node: Any) -> TensorSpec:
    value: Any = None if node is None else node.meta.get("val")
    if not hasattr(value, "dtype"):
        raise ModelError(f"{name} is no tensor: export a function of tensors alone")
    kind = _type_name(value)
    try:
        dtype = np.dtype("float32" if kind == "bfloat16" else kind)
    except TypeError as exc:
        raise ModelError(f"{name} is {kind}, which cannot be sent") from exc
    sizes = tuple(size if type(size) is int else None for size in value.shape)
    return TensorSpec(name, dtype, sizes)

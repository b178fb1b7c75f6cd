"""PyTorch's models: TorchScript as ``model.pt``, an ExportedProgram as ``model.pt2``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_server import repository, signature_file
from model_server.backends.base import PREDICT_SIGNATURE, Arrays, Signature, TensorSpec
from model_server.backends.workers import exported_program
from model_server.backends.workers.serving import serve
from model_server.errors import InvalidRows, ModelError

_FLOAT = np.dtype(np.float32)
_REFUSALS = (RuntimeError, IndexError, ValueError, AssertionError)
"""What PyTorch raises for values that a model cannot take; it has no exception for them alone."""


class PyTorchModel:
    """The function of one file."""

    def __init__(self, folder: Path, threads: int) -> None:
        """Load it.

        Args:
            folder: The version's.
            threads: Of one call.
        """
        # No file's contents come to Python's own unpickler, whatever PyTorch's code asks for.
        os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        try:
            import torch  # type: ignore[import-not-found, unused-ignore]
        except ImportError as exc:
            raise ModelError(
                "a PyTorch model needs PyTorch: make setup EXTRA=torch, or name an interpreter "
                f"that has it and NumPy as model_python ({exc})"
            ) from exc
        self._torch: Any = torch
        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        given = signature_file.read(folder)
        if (folder / exported_program.FILE).is_file():
            signature = self._load_exported(folder, given)
        else:
            signature = self._load_script(folder, given)
        self._signature = signature
        self.signatures: Mapping[str, Signature] = {PREDICT_SIGNATURE: signature}

    def _load_exported(self, folder: Path, given: Signature | None) -> Signature:
        program = exported_program.load(repository.file_in(folder, exported_program.FILE))
        found = exported_program.described(program)
        self._bfloat16 = found.bfloat16
        self._positional = found.positional
        self._keywords = found.keywords
        self._function: Any = program.module(check_guards=False)  # guards are Python code
        if given is None:
            return found.signature
        for side in ("inputs", "outputs"):
            if len(getattr(given, side)) != len(getattr(found.signature, side)):
                raise ModelError(
                    f"{signature_file.SIGNATURE_FILE} names {len(getattr(given, side))} {side}, "
                    f"the model has {len(getattr(found.signature, side))}"
                )
        return given

    def _load_script(self, folder: Path, given: Signature | None) -> Signature:
        path = repository.file_in(folder, "model.pt")
        try:
            self._function = self._torch.jit.load(str(path), map_location="cpu").eval()
        except RuntimeError as exc:
            raise ModelError(
                f"{path} is not TorchScript, as torch.jit.save writes it: {_reason(exc)}"
            ) from exc
        signature = given or _of_columns(folder)
        self._positional = len(signature.inputs)
        self._keywords = ()
        self._bfloat16 = (False,) * self._positional
        return signature

    def run(self, signature_name: str, inputs: Arrays, wanted: Sequence[str]) -> Arrays:
        """See ``backends.base.Model``."""
        values = [
            self._tensor(inputs[spec.name], bfloat16)
            for spec, bfloat16 in zip(self._signature.inputs, self._bfloat16, strict=True)
        ]
        named = dict(zip(self._keywords, values[self._positional :], strict=False))
        try:
            with self._torch.inference_mode():
                result = self._function(*values[: self._positional], **named)
        except _REFUSALS as exc:
            raise InvalidRows(f"the model cannot take these values: {_reason(exc)}") from exc
        outputs = self._named(result)
        specs = {spec.name: spec for spec in self._signature.outputs}
        return {name: _array(specs[name], outputs[name], self._torch) for name in wanted}

    def _tensor(self, array: Any, bfloat16: bool) -> Any:
        tensor = self._torch.tensor(array)  # a copy: a model may write to its input
        return tensor.to(self._torch.bfloat16) if bfloat16 else tensor

    def _named(self, result: Any) -> Mapping[str, Any]:
        names = [spec.name for spec in self._signature.outputs]
        if isinstance(result, dict):
            if missing := set(names) - result.keys():
                raise ModelError(f"it gives {sorted(result)} and not {sorted(missing)}")
            return result
        values = result if isinstance(result, tuple | list) else [result]
        if len(values) != len(names):
            raise ModelError(f"it gives {len(values)} outputs, the signature has {len(names)}")
        return dict(zip(names, values, strict=True))


def _of_columns(folder: Path) -> Signature:
    """The signature of a table's model: it takes its columns and gives a score per row."""
    if not (folder / repository.FEATURES_FILE).is_file():
        raise ModelError(
            "TorchScript does not say its tensors: write them to "
            f"{folder / signature_file.SIGNATURE_FILE}, as "
            '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 5]}], "outputs": […]}, '
            f"or the columns to {repository.FEATURES_FILE}"
        )
    columns = len(repository.load_features(folder).features)
    return Signature(
        (TensorSpec("INPUT__0", _FLOAT, (None, columns)),), (TensorSpec("OUTPUT__0", _FLOAT, None),)
    )


def _array(spec: TensorSpec, tensor: Any, torch: Any) -> Any:
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    array = tensor.numpy()
    if array.dtype != spec.dtype:
        raise ModelError(f"output {spec.name} is {array.dtype}, the signature says {spec.dtype}")
    return array


def _reason(exc: Exception) -> str:
    """The line that says what is wrong: TorchScript's comes after its own traceback."""
    lines = str(exc).strip().splitlines() or [type(exc).__name__]
    return lines[-1] if "TorchScript" in lines[0] else lines[0]


if __name__ == "__main__":
    serve(PyTorchModel, sys.argv[1:])

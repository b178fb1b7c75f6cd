"""The loops over trees, and their translation to machine code by Numba.

They take bare pointers, return nothing and refer to nothing outside, so that the code needs neither
Numba nor Python nor a linker at run time: ``native`` maps it into memory as it is. Indices are
unsigned: LLVM then need not extend signs. Run as a module it writes the code to stdout.
"""

from __future__ import annotations

import struct
import sys
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numba import cfunc, types

from model_server.backends.trees.code_file import HEAD

__all__ = ["compile_code"]

Pointer = Any

_U32 = np.uint32
_U64 = np.uint64

_BLOCK_ROWS = _U64(64)
_FOLLOWS, _LEAVES = 2, 1


def add_leaves(
    features: Pointer,
    thresholds: Pointer,
    missing_right: Pointer,
    leaves: Pointer,
    base_margin: float,
    trees: int,
    inner: int,
    rows: Pointer,
    row_count: int,
    columns: int,
    any_missing: int,
    node: Pointer,
    margins: Pointer,
) -> None:
    """Write each row's sum of leaves; see ``forest.Forest`` for the arrays.

    A block of rows goes down one tree together, level by level: the tree stays in the first-level
    cache, and as the rows do not wait for each other the processor's pipeline stays full.

    Args:
        features: And what follows: the forest's arrays, uint32, float32, uint8, float32.
        thresholds: See above.
        missing_right: See above.
        leaves: See above.
        base_margin: What the leaves are added to.
        trees: How many.
        inner: Inner nodes of each.
        rows: float32 (row_count, columns).
        row_count: How many.
        columns: How many.
        any_missing: 0 if no value is NaN: half the time.
        node: Scratch, uint32 (64,); zeros, and left so.
        margins: float32 (row_count,), written.
    """
    one = _U64(1)
    for n in range(row_count):
        margins[n] = base_margin
    begin = _U64(0)
    while begin < row_count:
        size = min(_BLOCK_ROWS, row_count - begin)
        tree_at, leaf_at = _U64(0), _U64(0) - inner
        for _tree in range(trees):
            width = one
            while width <= inner:
                row_at = begin * columns
                if any_missing != 0:
                    for n in range(size):
                        k = _U64(node[n])
                        at = tree_at + k
                        value = rows[row_at + features[at]]
                        right = (value >= thresholds[at]) | (
                            (value != value) & (missing_right[at] != 0)
                        )
                        node[n] = _U32(k + k + one + _U64(right))
                        row_at += columns
                else:
                    for n in range(size):
                        k = _U64(node[n])
                        at = tree_at + k
                        right = rows[row_at + features[at]] >= thresholds[at]
                        node[n] = _U32(k + k + one + _U64(right))
                        row_at += columns
                width += width
            for n in range(size):
                margins[begin + n] += leaves[leaf_at + node[n]]
                node[n] = _U32(0)  # in no loop of its own, which would become a call of memset
            tree_at += inner
            leaf_at += inner + one
        begin += _BLOCK_ROWS


def add_contributions(
    roots: Pointer,
    columns: Pointer,
    values: Pointer,
    missing_right: Pointer,
    children: Pointer,
    earlier: Pointer,
    steps: Pointer,
    weights: Pointer,
    trees: int,
    rows: Pointer,
    row_count: int,
    row_columns: int,
    product: Pointer,
    state: Pointer,
    found: Pointer,
) -> None:
    """Add each column's contribution for each row; see ``contributions.Paths`` for the arrays.

    Args:
        roots: And what follows: the paths' arrays, int32, int32, float32, uint8, int32, int32,
            float32.
        columns: See above.
        values: See above.
        missing_right: See above.
        children: See above.
        earlier: See above.
        steps: See above.
        weights: The quadrature's, float64 (4,).
        trees: How many.
        rows: float32 (row_count, row_columns).
        row_count: How many.
        row_columns: How many.
        product: Scratch, float64 (nodes of the largest tree, 4).
        state: Scratch, int32 (nodes of the largest tree,).
        found: float64 (row_count, row_columns), added to.
    """
    for tree in range(trees):
        begin, end = np.int64(roots[tree]), np.int64(roots[tree + 1])
        for n in range(row_count):
            row_at = n * row_columns
            for q in range(4):
                product[q] = weights[q]
            state[0] = _FOLLOWS
            for node in range(begin, end):
                column, at = columns[node], (node - begin) * 4
                if column < 0:
                    for q in range(4):
                        product[at + q] *= values[node]
                    continue
                value = rows[row_at + column]
                right = (value >= values[node]) | ((value != value) & (missing_right[node] != 0))
                for side in range(2):
                    child = children[2 * node + side]
                    here = 0
                    if state[earlier[child] - begin] == _FOLLOWS:
                        here = _FOLLOWS if side == right else _LEAVES
                    state[child - begin] = here
                    below, step = (child - begin) * 4, child * 24 + here * 8
                    for q in range(4):
                        product[below + q] = product[at + q] * steps[step + q]
            # Back up: a node's product becomes the sum over the leaves below it.
            for node in range(end - 1, begin - 1, -1):
                column, at = columns[node], (node - begin) * 4
                if column < 0:
                    continue
                left, right_child = children[2 * node], children[2 * node + 1]
                left_at, right_at = (left - begin) * 4, (right_child - begin) * 4
                left_step = left * 24 + state[left - begin] * 8 + 4
                right_step = right_child * 24 + state[right_child - begin] * 8 + 4
                total = 0.0
                for q in range(4):
                    a, b = product[left_at + q], product[right_at + q]
                    total += a * steps[left_step + q] + b * steps[right_step + q]
                    product[at + q] = a + b
                found[row_at + column] += total


_f32, _f64 = types.CPointer(types.float32), types.CPointer(types.float64)
_u8, _u32, _i32 = (types.CPointer(kind) for kind in (types.uint8, types.uint32, types.int32))
_n, _count = types.int64, types.uint64
_SIGNATURES = {
    add_leaves: types.void(
        *(_u32, _f32, _u8, _f32, types.float32, _n, _count, _f32, _count, _count, _n, _u32, _f32)
    ),
    add_contributions: types.void(
        *(_i32, _i32, _f32, _u8, _i32, _i32, _f32, _f64, _n, _f32, _n, _n, _f64, _i32, _f64)
    ),
}


_SYMBOL = struct.Struct("<IBBHQQ")  # of ELF, 64 bits: at 0 where its name is, at 4 its value


def compile_code() -> bytes:
    """Translate the loops for this processor, for about three seconds.

    Returns:
        ``HEAD`` with the place of each loop, then the code, which may lie anywhere.

    Raises:
        ValueError: The compiler made code that cannot lie anywhere.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    whole = llvm.parse_assembly("")
    for function, signature in _SIGNATURES.items():
        # Additions may be reordered: else no two points of the quadrature could be summed at once.
        fast = {"reassoc", "contract", "nsz"} if function is add_contributions else False
        made = cfunc(signature, error_model="numpy", fastmath=fast)(function)
        module = llvm.parse_assembly(made.inspect_llvm())
        for defined in module.functions:
            if defined.name == made.native_name:
                defined.name = function.__name__
            elif not defined.is_declaration:
                defined.linkage = llvm.Linkage.internal
        whole.link_in(module)
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="pic",
        codemodel="small",
    )
    return _flat(machine.emit_object(whole))


def _flat(object_file: bytes) -> bytes:
    reference = llvm.ObjectFileRef.from_data(object_file)
    sections = {section.name(): bytes(section.data()) for section in reference.sections()}
    if b".rela.text" in sections:
        raise ValueError("the loops' machine code refers to something outside of it")
    names = sections[b".strtab"]
    places = {
        names[at : names.index(b"\0", at)].decode(): value
        for at, _, _, _, value, _ in _SYMBOL.iter_unpack(sections[b".symtab"])
    }
    begins = [HEAD.size + places[function.__name__] for function in _SIGNATURES]
    return HEAD.pack(*begins) + sections[b".text"]


if __name__ == "__main__":
    sys.stdout.buffer.write(compile_code())

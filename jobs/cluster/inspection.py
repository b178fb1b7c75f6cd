"""What a savepoint holds: state by operator, its size and its keys.

Flink itself reads the metadata; the keyed state is then read as Flink writes it in a savepoint, in
the one format of all state backends: for each key group, ``state number, (key, value)...``.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.cluster.savepoints import local
from jobs.flink_rest import JobError
from jobs.runner import prepare

_MAGIC_END = 0xFFFF
_MORE_FOLLOWS = 0x80
_KINDS = {
    "e": "histories of events",
    "l": "histories of labels",
    "j": "segments of the journal",
    "#": "places in the order of arrival",
    "@": "layouts",
}
"""Of a stage's map state, by the first letter of its keys; see ``udfs/features/states.py``."""


@dataclass
class OperatorState:
    """The state of one operator.

    Attributes:
        name: The operator's, or its id if Flink has kept no name.
        uid: As the job gave it; empty if Flink made one up.
        parallelism: That wrote it.
        size_bytes: Of keyed and other state.
        states: Names of its keyed states.
        keys: Entries of its keyed state by what they hold.
    """

    name: str
    uid: str
    parallelism: int
    size_bytes: int
    states: list[str] = field(default_factory=list)
    keys: Counter[str] = field(default_factory=Counter)


def inspect(savepoint: str) -> list[OperatorState]:
    """Read a savepoint of this machine; operators without state are left out.

    The first call in a process starts a JVM.

    Raises:
        JobError: it is not of this machine, or is none that Flink reads.
    """
    folder = local(savepoint)
    if not (folder / "_metadata").is_file():
        raise JobError(f"{folder} is no savepoint: it has no file _metadata")
    prepare()
    from py4j.protocol import Py4JJavaError
    from pyflink.java_gateway import get_gateway

    jvm = get_gateway().jvm
    try:
        metadata = _metadata(jvm, folder)
    except Py4JJavaError as exc:
        raise JobError(f"Flink cannot read {folder}: {exc.java_exception}") from exc
    operators = [_operator(jvm, state) for state in metadata.getOperatorStates()]
    return [operator for operator in operators if operator.size_bytes]


def _metadata(jvm: Any, folder: Path) -> Any:
    stream = jvm.java.io.DataInputStream(jvm.java.io.FileInputStream(str(folder / "_metadata")))
    loader = jvm.java.lang.Thread.currentThread().getContextClassLoader()
    checkpoints = jvm.org.apache.flink.runtime.checkpoint.Checkpoints
    return checkpoints.loadCheckpointMetadata(stream, loader, folder.as_uri())


def _operator(jvm: Any, state: Any) -> OperatorState:
    name, uid = (state.getOperatorName(), state.getOperatorUid())
    found = OperatorState(
        name=str(name.get()) if name.isPresent() else str(state.getOperatorID()),
        uid=str(uid.get()) if uid.isPresent() else "",
        parallelism=state.getParallelism(),
        size_bytes=state.getStateSize(),
    )
    for subtask in state.getStates().iterator():
        for handle in subtask.getManagedKeyedState().iterator():
            _read_keyed(jvm, handle, found)
    return found


def _read_keyed(jvm: Any, handle: Any, found: OperatorState) -> None:
    """Count the entries of one subtask's keyed state."""
    if not handle.getClass().getSimpleName().startswith("KeyGroupsSavepoint"):
        return  # a checkpoint's own format
    stream = handle.openInputStream()
    view = jvm.org.apache.flink.core.memory.DataInputViewStreamWrapper(stream)
    loader = jvm.java.lang.Thread.currentThread().getContextClassLoader()
    proxy = jvm.org.apache.flink.runtime.state.KeyedBackendSerializationProxy(loader)
    proxy.read(view)
    names = [str(snapshot.getName()) for snapshot in proxy.getStateMetaInfoSnapshots()]
    found.states = sorted({*found.states, *names})
    if proxy.isUsingKeyGroupCompression():
        return
    raw = _content(jvm, handle)
    groups = handle.getKeyGroupRange()
    for group in range(groups.getStartKeyGroup(), groups.getEndKeyGroup() + 1):
        offset = handle.getOffsetForKeyGroup(group)
        if offset:
            found.keys.update(_kind(names[n], key) for n, key in entries(raw, offset))


def _content(jvm: Any, handle: Any) -> bytes:
    path = handle.getDelegateStateHandle()
    held = path.asBytesIfInMemory()
    if held.isPresent():
        return bytes(held.get())
    return Path(str(path.getFilePath().getPath())).read_bytes()


def entries(raw: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """The state number and key of each entry of a key group.

    Args:
        raw: The file.
        at: Where the group begins.
    """
    (number,) = struct.unpack_from(">H", raw, at)
    at += 2
    while number != _MAGIC_END:
        (size,) = struct.unpack_from(">i", raw, at)
        key = raw[at + 4 : at + 4 + size]
        at += 4 + size
        (size,) = struct.unpack_from(">i", raw, at)
        at += 4 + size
        yield number, key
        if key[0] & _MORE_FOLLOWS:
            (number,) = struct.unpack_from(">H", raw, at)
            at += 2


def _kind(state: str, key: bytes) -> str:
    """What an entry holds.

    A history's key ends with the map's key, a Java string: its length plus one in as many bytes as
    that needs, then as many bytes a character. Its first letter is looked for from the bucket on.
    """
    if not state.startswith("histories-"):
        return state
    letter = _first_letter(key)
    return _KINDS.get(letter, state)


def _first_letter(key: bytes) -> str:
    """The first letter of the string that a key ends with; empty if there is none.

    Before it are the key group (1 byte), the bucket as a row of one INT, and the namespace.
    """
    for at in range(1, len(key) - 1):
        length, after = _varint(key, at)
        if length > 1 and _characters(key, after) == length - 1 and chr(key[after]) in _KINDS:
            return chr(key[after])
    return ""


def _varint(key: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(key):
        value |= (key[at] & 0x7F) << shift
        at += 1
        if not key[at - 1] & 0x80:
            break
        shift += 7
    return value, at


def _characters(key: bytes, at: int) -> int:
    """How many characters the rest of a key is, by Flink's variable length."""
    return sum(not byte & 0x80 for byte in key[at:])

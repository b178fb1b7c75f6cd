"""How the trees' machine code lies in its file: for who writes it and who maps it into memory."""

from __future__ import annotations

import struct

HEAD = struct.Struct("<2Q48x")
"""At which byte each loop begins; what follows is aligned as LLVM counts on."""

"""Reads machine code as nvdisasm prints it, and finds the path through a kernel that does the work."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

SECTION = re.compile(r"^\.text\.(\S+):$")
LABEL = re.compile(r"^([.$\w]+):$")
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@(\S+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
TENSOR = re.compile(r"(UTC)?[A-Z]G?MMA$")
FLOAT = {"FADD", "FMUL", "FFMA", "FADD2", "FMUL2", "FFMA2"}
FUSED = {"FFMA", "FFMA2"}
SPECIAL = {"MUFU", "I2F", "F2I", "F2F", "FRND", "POPC", "FLO"}
# What the pipe for integers and logic takes; it also takes comparisons and selections of floats.
LOGIC = {
    *("IADD3", "IADD", "VIADD", "IABS", "LEA", "LOP3", "SHF", "PRMT", "SEL", "FSEL", "ISETP", "FSETP", "PLOP3", "MOV"),
    *("IMNMX", "VIMNMX", "VIMNMX3", "FMNMX", "I2FP", "F2FP", "SGXT", "BMSK"),
}


class Instruction(NamedTuple):
    guarded: bool
    opcode: str
    arguments: str

    @property
    def base(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def width(self) -> int:
        """Bits that a load or store moves."""
        widths = {"256": 256, "128": 128, "64": 64, "U16": 16, "S16": 16, "U8": 8, "S8": 8}
        return next((widths[part] for part in self.opcode.split(".") if part in widths), 32)

    @property
    def loads(self) -> bool:
        return self.base in ("LDG", "LD", "LDGSTS")

    @property
    def stores(self) -> bool:
        return self.base in ("STG", "ST")

    @property
    def tensor(self) -> bool:
        return TENSOR.match(self.base) is not None

    @property
    def wide(self) -> bool:
        return (self.loads or self.stores) and self.width >= 128

    def kind(self) -> str:
        """Which pipe takes it, as far as NVIDIA tells."""
        if self.tensor:
            return "tensor"
        if self.base in FLOAT:
            return "float"
        if self.base in ("IMAD", "IDP"):
            return "multiply"
        if self.base in SPECIAL:
            return "special"
        return "logic" if self.base in LOGIC else "other"


class Function(NamedTuple):
    instructions: list[Instruction]
    labels: dict[str, int]  # label -> number of the instruction behind it

    def calls(self, instruction: Instruction) -> bool:
        """Whether it calls a subroutine, say a slow square root. CALL with a label of jumps only leaves a loop."""
        return instruction.base == "CALL" and not self.targets(instruction)

    def targets(self, instruction: Instruction) -> list[int]:
        if instruction.base not in ("BRA", "BRX", "JMP", "JMX", "CALL"):
            return []
        return [self.labels[name] for name in re.findall(r"\.L\w+", instruction.arguments) if name in self.labels]

    def following(self, number: int) -> list[int]:
        """Instructions that may come after one."""
        instruction = self.instructions[number]
        jumps = instruction.base in ("BRA", "JMP") and instruction.arguments.startswith("`(")
        leaves = jumps or instruction.base in ("EXIT", "RET", "BRX", "JMX")
        onward = [] if leaves and not instruction.guarded else [number + 1]
        return [other for other in self.targets(instruction) + onward if other < len(self.instructions)]

    def ends(self, number: int) -> bool:
        return self.instructions[number].base in ("EXIT", "RET")


class Work(NamedTuple):
    """What the path to choose has most of, first things first."""

    useful: int = 0
    usual: int = 0  # minus the subroutines called
    short: int = 0  # minus the instructions

    def plus(self, other: Work) -> Work:
        return Work(self.useful + other.useful, self.usual + other.usual, self.short + other.short)


def functions(listing: str) -> dict[str, Function]:
    found: dict[str, Function] = {}
    function = Function([], {})  # of what comes before the first
    for line in listing.splitlines():
        if section := SECTION.match(line):
            function = found[section[1]] = Function([], {})
        elif label := LABEL.match(line):
            function.labels[label[1]] = len(function.instructions)
        elif read := INSTRUCTION.match(line):
            function.instructions.append(Instruction(read[1] is not None, read[2], read[3]))
    return found


def _walk(function: Function) -> tuple[list[int], list[tuple[int, int]]]:
    """Instructions that can be reached, each before those that follow it, and the edges that close loops."""
    finished: list[int] = []
    back: list[tuple[int, int]] = []
    open_now, seen = {0}, {0}
    stack: list[tuple[int, Iterator[int]]] = [(0, iter(function.following(0)))]
    while stack:
        number, others = stack[-1]
        for other in others:
            if other in open_now:
                back.append((number, other))
            elif other not in seen:
                seen.add(other)
                open_now.add(other)
                stack.append((other, iter(function.following(other))))
                break
        else:
            stack.pop()
            open_now.remove(number)
            finished.append(number)
    return finished[::-1], back


class Turn(NamedTuple):
    path: list[Instruction]
    before: int  # instructions of a thread before its first turn


def main_path(function: Function) -> Turn:
    """The instructions of a thread's turn with one group of elements.

    Useful are 128-bit accesses to global memory and tensor-core instructions; in a kernel without, accesses of any
    width. Paths go once around a loop, from its header to the jump back to it; if no loop has anything useful, from the
    entry to an exit. Inner loops are passed through once. The path has the most that is useful; of those, the fewest
    calls of subroutines (the slow ways out of a division or a square root); of those, the fewest instructions.
    """
    order, back = _walk(function)
    reached = [function.instructions[number] for number in order]
    narrow = not any(instruction.wide or instruction.tensor for instruction in reached)
    work = {
        number: Work(
            instruction.wide or instruction.tensor or (narrow and (instruction.loads or instruction.stores)),
            -function.calls(instruction),
            -1,
        )
        for number, instruction in zip(order, reached, strict=True)
    }
    forward = {one: [other for other in function.following(one) if (one, other) not in back] for one in order}
    loops = [_best(forward, work, header, last) for last, header in back]
    whole = [_best(forward, work, 0, last) for last in order if function.ends(last)]
    _, path = max([one for one in loops if one[0].useful] or whole)
    _, before = _best(forward, work, 0, path[0])
    return Turn([function.instructions[number] for number in path], len(before) - 1)


def _best(forward: dict[int, list[int]], work: dict[int, Work], start: int, last: int) -> tuple[Work, list[int]]:
    """A path from ``start`` to ``last``; ``forward`` has instructions before those that follow them."""
    best = {start: work[start]}
    before: dict[int, int] = {}
    for number, others in forward.items():
        for other in others if number in best else ():
            total = best[number].plus(work[other])
            if other not in best or total > best[other]:
                best[other], before[other] = total, number
    path = [last]
    while path[-1] != start:
        path.append(before[path[-1]])
    return best[last], path[::-1]


def accesses(path: list[Instruction], stores: bool) -> dict[int, int]:
    """Loads or stores of global memory by their width in bits, the widest first."""
    counts = Counter(one.width for one in path if (one.stores if stores else one.loads))
    return dict(sorted(counts.items(), reverse=True))

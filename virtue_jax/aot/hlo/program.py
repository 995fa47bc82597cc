"""Reading an optimised HLO program: what runs, how often (loop trip counts included), on which arrays.

Only what the compiler prints is read (`compiled.as_text()`); `cost_analysis()` counts a loop's body once and kernels
not at all.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from virtue_jax.models.layers import branch_scope

ITEM_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "c64": 8, "c128": 16, "token": 0}
_DTYPE_BITS = re.compile(r"[a-z]+(\d+)")
_ARRAY = re.compile(r"([a-z]+[0-9a-z]*)\[([0-9,]*)\](\{[^}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(calls|to_apply|body|condition|true_computation|false_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_INTEGER = re.compile(r"-?\d+")
_TAKEN = re.compile(branch_scope(0, 0).replace("0", r"(\d+)"))
HBM = 0


@dataclass(frozen=True)
class Array:
    """One array of an instruction's result; space: 0 is HBM, others are on the chip."""

    dtype: str
    dims: tuple[int, ...]
    space: int = HBM

    @property
    def bytes(self) -> float:
        size = ITEM_BYTES.get(self.dtype)
        if size is None:
            match = _DTYPE_BITS.match(self.dtype)
            size = int(match[1]) / 8 if match else 0
        count = 1
        for dim in self.dims:
            count *= dim
        return count * size


@dataclass
class Instruction:
    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    argument: str  # the text between the parentheses: a constant's value, a parameter's number
    called: dict[str, str] = field(default_factory=dict)
    branches: tuple[str, ...] = ()


@dataclass
class Computation:
    name: str
    instructions: dict[str, Instruction]
    root: str


@dataclass(frozen=True)
class Program:
    computations: Mapping[str, Computation]
    entry: str
    frames: "Mapping[int, str]"  # stack_frame_id -> "file.py:line"

    def executed(self) -> Iterator[tuple[Instruction, Computation, float]]:
        """(instruction, its computation, times it runs in one run of the program); fusions whole, loops by their trips.

        A branch of a conditional counts by the share of turns that take it, which `models.layers.branch_scope` writes
        into its operations' names; without one, as if each ran.
        """
        yield from self._executed(self.computations[self.entry], 1.0)

    def _executed(self, computation: Computation, times: float):
        for instruction in computation.instructions.values():
            yield instruction, computation, times
            called = instruction.called
            if instruction.opcode == "while":
                inner = times * trip_count(self, instruction, computation)
                yield from self._executed(self.computations[called["body"]], inner)
            elif instruction.opcode in ("call", "async-start"):
                for name in called.values():
                    yield from self._executed(self.computations[name], times)
            elif instruction.opcode == "conditional":
                for name in (*called.values(), *instruction.branches):
                    branch = self.computations[name]
                    yield from self._executed(branch, times * _branch_share(branch))

    def source(self, instruction: Instruction) -> str:
        """Where in the program's source an instruction comes from: "file.py:line", or its operation's name."""
        frame = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        if frame and int(frame[1]) in self.frames:
            return self.frames[int(frame[1])]
        return operation(instruction)


def _branch_share(branch: Computation) -> float:
    for instruction in branch.instructions.values():
        match = _TAKEN.search(instruction.attributes)
        if match:
            return int(match[1]) / int(match[2])
    return 1.0


def operation(instruction: Instruction) -> str:
    """The `op_name` of an instruction's metadata: the path through the traced functions."""
    match = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return match[1] if match else ""


def read_program(text: str) -> Program:
    """A compiled program from its text, as XLA prints it.

    Raises:
        ValueError: no entry computation: not an HLO program.
    """
    computations, entry, lines, name = {}, None, [], None
    for line in text.splitlines():
        if name is None:
            header = _HEADER.match(line)
            if header:
                name, lines = header[2], []
                entry = name if header[1] else entry
        elif line == "}":
            computations[name] = _computation(name, lines)
            name = None
        elif line.startswith(" ") or not lines:
            lines.append(line)
        else:  # an attribute with line breaks in it
            lines[-1] += line
    if entry is None:
        raise ValueError("no ENTRY computation: expected the text of an optimised HLO program")
    return Program(computations, entry, _frames(text))


def _computation(name: str, lines: list[str]) -> Computation:
    instructions, root = {}, ""
    for line in lines:
        match = _LINE.match(line)
        if match:
            instruction = _instruction(match[2], match[3])
            instructions[instruction.name] = instruction
            root = instruction.name if match[1] or not root else root
    return Computation(name, instructions, root)


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opens = rest.index("(")
    closes = _closing(rest, opens)
    argument, attributes = rest[opens + 1 : closes], rest[closes + 1 :]
    branches = _BRANCHES.search(attributes)
    return Instruction(
        name=name,
        opcode=rest[:opens],
        arrays=tuple(_arrays(shape)),
        operands=tuple(_NAME.findall(argument)),
        attributes=attributes,
        argument=argument,
        called=dict(_CALLED.findall(attributes)),
        branches=tuple(_NAME.findall(branches[1])) if branches else (),
    )


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError(f"HLO: no closing parenthesis in {text[:80]!r}")


def _arrays(shape: str) -> Iterator[Array]:
    for dtype, dims, layout in _ARRAY.findall(shape):
        space = _SPACE.search(layout)
        yield Array(dtype, tuple(int(d) for d in dims.split(",") if d), int(space[1]) if space else HBM)


def trip_count(program: Program, loop: Instruction, computation: Computation) -> int:
    """How often a `while` runs, from its counter's start, step 1 and bound, or what the compiler says of it.

    Raises:
        ValueError: a loop whose condition is not counter < constant.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    condition = program.computations[loop.called["condition"]]
    root = condition.instructions[condition.root]
    inner = condition
    if root.opcode == "fusion":
        inner = program.computations[root.called["calls"]]
        root_in = inner.instructions[inner.root]
        bound = _constant(inner, root_in.operands[1], condition, root)
        counter = _parameter_source(inner, root_in.operands[0], condition, root)
        direction = root_in.attributes
    else:
        bound = _constant(condition, root.operands[1] if len(root.operands) > 1 else "", None, None)
        counter, direction = condition.instructions.get(root.operands[0]), root.attributes
    index = re.search(r"index=(\d+)", counter.attributes) if counter is not None else None
    if bound is None or index is None or "direction=LT" not in direction:
        raise ValueError(f"HLO: loop {loop.name}: condition {condition.name} is not counter < constant")
    return max(0, bound - _start(computation, loop, int(index[1])))


def _constant(inner: Computation, name: str, outer: Computation | None, fusion: Instruction | None) -> int | None:
    source = inner.instructions.get(name)
    if source is not None and source.opcode == "parameter" and fusion is not None:
        source = outer.instructions.get(fusion.operands[int(source.argument)])
    while source is not None and source.opcode in ("copy", "bitcast") and source.operands:
        source = (outer or inner).instructions.get(source.operands[0])
    value = _INTEGER.fullmatch(source.argument) if source is not None and source.opcode == "constant" else None
    return int(value[0]) if value else None


def _parameter_source(inner: Computation, name: str, outer: Computation, fusion: Instruction) -> Instruction | None:
    parameter = inner.instructions.get(name)
    if parameter is None or parameter.opcode != "parameter":
        return None
    return outer.instructions.get(fusion.operands[int(parameter.argument)])


def _start(computation: Computation, loop: Instruction, index: int) -> int:
    """The counter's first value: 0, unless the compiler peeled turns off, which shows in the tuple."""
    carried = computation.instructions.get(loop.operands[0])
    if carried is None or carried.opcode != "tuple" or index >= len(carried.operands):
        return 0
    return _constant(computation, carried.operands[index], None, None) or 0


def _frames(text: str) -> dict[int, str]:
    """{stack frame: "path:line"} of the tables that the program's text opens with."""
    files = dict(_table(text, "FileNames", r'^(\d+) "(.*)"$'))
    places = {
        number: f"{files.get(m[1], '?')}:{m[2]}"
        for number, rest in _table(text, "FileLocations", r"^(\d+) \{(.*)\}$")
        if (m := re.search(r"file_name_id=(\d+).* line=(\d+)", rest))
    }
    return {
        int(number): places[m[1]]
        for number, rest in _table(text, "StackFrames", r"^(\d+) \{(.*)\}$")
        if (m := re.search(r"file_location_id=(\d+)", rest)) and m[1] in places
    }


def _table(text: str, title: str, pattern: str) -> list[tuple[str, str]]:
    start = text.find(f"\n{title}\n")
    if start < 0:
        return []
    entries = []
    for line in text[start + len(title) + 2 :].splitlines():
        match = re.match(pattern, line)
        if not match:
            break
        entries.append((match[1], match[2]))
    return entries

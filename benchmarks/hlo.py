"""What a compiled program computes and moves, counted from its text (HLO).

XLA's own count has the body of a loop once, and does not tell the memory of a chip from
the memory on it (VMEM of a TPU), which many arrays never leave. Here a loop counts as
often as it turns, an array is as large as its tiles make it, and both memories have a
count of their own.

An instruction reads its operands and writes its results. A slice reads what it takes;
an update in place writes the new part only; what a fusion has inside moves nowhere.
What this file does not know raises an error; it is never counted as nothing.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

BITS = {"token": 0, "pred": 8, "bf16": 16, "c64": 64}
BITS |= {f"{kind}{bits}": bits for kind in "su" for bits in (2, 4, 8, 16, 32, 64)}
BITS |= {f"f{bits}": bits for bits in (16, 32, 64)}
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
INSTRUCTION = re.compile(r"^(ROOT )?%?([\w.\-]+) = (.+?) ([\w\-]+)\((.*)$")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
NO_MOVES = "parameter constant tuple get-tuple-element bitcast after-all".split()
NO_MOVES += "opt-barrier partition-id async-update".split()
NO_MOVES_OF_CALLS = ("AllocateBuffer", "ConcatBitcast")
SLICES = ("dynamic-slice", "slice", "gather")


class Counts(NamedTuple):
    """Of a program, or a part of it.

    Attributes:
        memory: bytes read from and written to the memory of the chip (HBM).
        on_chip: bytes read from and written to the memory on it.
        operations: additions and products of convolutions and matrix products.
    """

    memory: float = 0
    on_chip: float = 0
    operations: float = 0

    @property
    def bytes(self) -> float:
        """In both memories."""
        return self.memory + self.on_chip

    def times(self, count: float) -> "Counts":
        """Those of so many."""
        return Counts(*(count * number for number in self))


class Array(NamedTuple):
    """Shape of an array and its bytes, where it lies."""

    shape: tuple[int, ...]
    bytes: Counts


class Instruction(NamedTuple):
    """A line of a computation, ``%name = arrays op(operands), ...``.

    Attributes:
        name, op: as above.
        arrays: what it results in.
        operands: names of the instructions that it reads.
        text: the line.
        is_root: it is the result of its computation.
    """

    name: str
    op: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str
    is_root: bool

    @property
    def result(self) -> Counts:
        """Bytes of all arrays."""
        return total(array.bytes for array in self.arrays)

    def field(self, pattern: str) -> str:
        """The group of a pattern in its text."""
        match = re.search(pattern, self.text)
        if match is None:
            raise ValueError(f"no {pattern} in: {self.text[:300]}")
        return match[1]


Computation = dict[str, Instruction]


class Program(NamedTuple):
    """The computations of a compiled program, by name, and which one is run."""

    computations: dict[str, Computation]
    entry: str

    def called(self, instruction: Instruction, role: str) -> Computation:
        """The computation that an instruction calls as ``role=``."""
        return self.computations[instruction.field(rf"\b{role}=%?([\w.\-]+)")]

    def unfused(
        self, computation: Computation
    ) -> Iterator[tuple[Computation, Instruction]]:
        """Its instructions, those of fusions included, each with its computation."""
        for instruction in computation.values():
            if instruction.op == "fusion":
                yield from self.unfused(self.called(instruction, "calls"))
            else:
                yield computation, instruction


def count(text: str) -> Counts:
    """Counts of a program, ``jax.jit(fn).lower(...).compile().as_text()``.

    Raises:
        ValueError: the text is no program, or has something that is not known here.

    >>> import jax, jax.numpy as jnp
    >>> square = jax.jit(lambda x: x @ x).lower(jnp.ones((8, 8))).compile()
    >>> print(count(square.as_text()).operations)
    1024.0
    """
    program = parse(text)
    return of_computation(program, program.computations[program.entry])


# ----------------------------------------------------------------------- text


def parse(text: str) -> Program:
    """A program from its text."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = None if line.startswith(" ") else COMPUTATION.match(line.rstrip())
        if head:
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif current is not None and (match := INSTRUCTION.match(line.strip())):
            root, name, arrays, op, rest = match.groups()
            current[name] = Instruction(
                name,
                op,
                tuple(array(*parts) for parts in ARRAY.findall(arrays)),
                tuple(re.findall(r"%([\w.\-]+)", "".join(within_parentheses(rest)))),
                line.strip(),
                bool(root),
            )
    if not entry:
        raise ValueError("this text has no ENTRY: it is not that of a compiled program")
    return Program(computations, entry)


def within_parentheses(text: str) -> Iterator[str]:
    """The characters up to the parenthesis that closes one before the text.

    >>> "".join(within_parentheses("f32[8]{0:T(8)} %a, %b), x=(1)"))
    'f32[8]{0:T(8)} %a, %b'
    """
    depth = 1
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return
        yield character


def array(dtype: str, dims: str, layout: str) -> Array:
    """An array of this type, shape and layout, its tiles filled up.

    >>> array("f32", "8,100", "1,0:T(8,128)").bytes.memory  # 100 columns become 128
    4096.0
    >>> array("bf16", "4", "0:T(256)(2,1)S(1)").bytes.on_chip
    512.0
    """
    bits = 8 if dtype.startswith("f8") else BITS.get(dtype)
    if bits is None:
        raise ValueError(f"how many bits has the type {dtype}? Add it to BITS")
    shape = tuple(int(n) for n in dims.split(",") if n)
    order, _, tiling = layout.partition(":")
    tile = re.match(r"T\(([\d,]+)\)", tiling)
    with_tiles = list(shape)
    if tile and shape:
        minor_first = [int(axis) for axis in order.split(",")]
        lengths = [int(n) for n in tile[1].split(",")]
        for axis, length in zip(minor_first, reversed(lengths), strict=False):
            with_tiles[axis] = math.ceil(with_tiles[axis] / length) * length
    size = math.prod(with_tiles) * bits / 8
    return Array(shape, Counts(on_chip=size) if "S(" in tiling else Counts(size))


def turns(program: Program, loop: Instruction) -> int:
    """How often a loop turns: as stated, or the constant that its counter reaches."""
    trip_count = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text)
    if trip_count:
        return int(trip_count[1])
    condition = program.called(loop, "condition")
    texts = [one.text for _, one in program.unfused(condition)]
    numbers = {n for t in texts for n in re.findall(r"s32\[\]\S* constant\((\d+)\)", t)}
    directions = {d for t in texts for d in re.findall(r"direction=(\w+)", t)}
    if len(numbers) != 1 or directions != {"LT"}:
        raise ValueError(f"how often does this loop turn? {loop.text[:300]}")
    return int(numbers.pop())


# --------------------------------------------------------------------- counts


def total(counts: Iterable[Counts]) -> Counts:
    """Their sum.

    >>> total([Counts(1, 2), Counts(10, 0, 5)])
    Counts(memory=11, on_chip=2, operations=5)
    """
    return Counts(*map(sum, zip(Counts(), *counts, strict=True)))


def of_computation(program: Program, computation: Computation) -> Counts:
    """All that is computed and moved while it runs once."""
    return total(
        [of_instruction(program, computation, i) for i in computation.values()]
    )


def of_instruction(
    program: Program, computation: Computation, instruction: Instruction
) -> Counts:
    """What an instruction of a computation costs."""
    op = instruction.op
    if op in NO_MOVES or op.endswith("-done"):
        return Counts()
    if op == "custom-call":
        target = instruction.field(r'custom_call_target="([^"]*)"')
        if target in NO_MOVES_OF_CALLS:
            return Counts()
        if target == "tpu_custom_call":
            raise ValueError(f"a kernel has no count: {instruction.text[:300]}")
    if op == "while":
        body = of_computation(program, program.called(instruction, "body"))
        return body.times(turns(program, instruction))
    if op in ("call", "async-start"):
        role = "to_apply" if op == "call" else "calls"
        return of_computation(program, program.called(instruction, role))
    if op == "conditional":
        branches = [of_computation(program, b) for b in cases(program, instruction)]
        return max(branches, key=lambda counts: counts.bytes)
    if op == "fusion":
        fused = program.called(instruction, "calls")
        moves = of_fusion(fused, computation, instruction)
        operations = sum(operations_of(*place) for place in program.unfused(fused))
        return moves._replace(operations=operations)
    operands = [computation[name].result for name in instruction.operands]
    if op in ("copy-start", "slice-start"):
        return of_copy(operands[0], instruction)
    if op.endswith("-start") and op != "all-reduce-start":
        raise ValueError(f"what does {op} move? {instruction.text[:300]}")
    if op in SLICES:
        return instruction.result.times(2)
    if op == "dynamic-update-slice":
        return operands[1].times(2)
    moves = total([*operands, instruction.result])
    return moves._replace(operations=operations_of(computation, instruction))


def cases(program: Program, conditional: Instruction) -> list[Computation]:
    """The computations of which a conditional runs one."""
    pattern = r"(?:branch_computations=\{|(?:true|false)_computation=)([^}=]*)"
    words = " ".join(re.findall(pattern, conditional.text))
    names = re.findall(r"%([\w.\-]+)", words)
    if not names:
        raise ValueError(f"no branches in: {conditional.text[:300]}")
    return [program.computations[name] for name in names]


def of_copy(source: Counts, copy: Instruction) -> Counts:
    """An asynchronous copy, or slice: it reads and writes the smaller side of both.

    Its arrays are its operand, the copy and a flag.
    """
    memory, on_chip = copy.result.memory, copy.result.on_chip
    target = Counts(memory - source.memory, on_chip - source.on_chip)
    size = min(source.bytes, target.bytes)
    return total(
        [Counts(size) if s.memory else Counts(0, size) for s in (source, target)]
    )


def of_fusion(
    fused: Computation, computation: Computation, fusion: Instruction
) -> Counts:
    """What a fusion reads and writes; its computation says how much of each."""
    (root,) = (i for i in fused.values() if i.is_root)
    results = root.operands if root.op == "tuple" else (root.name,)
    if len(results) != len(fusion.arrays):  # a sort or a reduction of several arrays
        results = (root.name,) * len(fusion.arrays)
    updates = {}  # parameter -> the update in place that is a result
    writes = []
    for array_written, name in zip(fusion.arrays, results, strict=True):
        result = behind_bitcasts(fused, name)
        writes.append(array_written.bytes)
        if result.op == "dynamic-update-slice":
            target, part = (behind_bitcasts(fused, n) for n in result.operands[:2])
            if target.op == "parameter":
                updates[target.name] = result
                writes[-1] = like(array_written.bytes, part.result.bytes)
    parameters = {
        int(i.field(r"parameter\((\d+)\)")): i.name
        for i in fused.values()
        if i.op == "parameter"
    }
    reads = []
    for number, operand in enumerate(fusion.operands):
        whole = computation[operand].result
        readers = list(readers_of(fused, parameters[number]))
        if readers == [updates.get(parameters[number])]:
            continue
        if readers and all(reader.op in SLICES for reader in readers):
            slices = sum(reader.result.bytes for reader in readers)
            whole = like(whole, min(slices, whole.bytes))
        reads.append(whole)
    return total([*reads, *writes])


def like(whole: Counts, size: float) -> Counts:
    """So many bytes of an array, where it lies."""
    return whole.times(size / whole.bytes) if whole.bytes else Counts()


def behind_bitcasts(fused: Computation, name: str) -> Instruction:
    """What an instruction is, if it is a bitcast of another one."""
    instruction = fused[name]
    while instruction.op == "bitcast":
        instruction = fused[instruction.operands[0]]
    return instruction


def readers_of(fused: Computation, name: str) -> Iterator[Instruction]:
    """The instructions that read one, also through bitcasts."""
    for instruction in fused.values():
        if name in instruction.operands:
            if instruction.op == "bitcast":
                yield from readers_of(fused, instruction.name)
            else:
                yield instruction


# ----------------------------------------------------------------- operations


def operations_of(computation: Computation, instruction: Instruction) -> float:
    """An addition and a product for each pair of numbers that meet."""
    if instruction.op not in ("convolution", "dot"):
        return 0.0
    left, right = (
        computation[name].arrays[0].shape for name in instruction.operands[:2]
    )
    results = instruction.arrays[0].shape
    if instruction.op == "dot":
        axes = instruction.field(r"lhs_contracting_dims=\{([\d,]*)\}").split(",")
        terms = math.prod(left[int(axis)] for axis in axes if axis)
        return 2.0 * math.prod(results) * terms
    labels = instruction.field(r"dim_labels=(\w+->\w+)")
    of_left, of_right, of_results = re.split("_|->", labels)
    pairs = results[of_results.index("b")] * results[of_results.index("f")]
    pairs *= right[of_right.index("i")]
    for axis, window in enumerate(windows(instruction)):
        label = str(axis)
        length, places = left[of_left.index(label)], results[of_results.index(label)]
        pairs *= meetings(length, places, **window)
    return 2.0 * pairs


def windows(convolution: Instruction) -> list[dict[str, int]]:
    """Arguments of `meetings` for each axis of a convolution's window."""
    match = re.search(r"window=\{([^}]*)\}", convolution.text)
    fields = dict(part.split("=") for part in match[1].split()) if match else {}
    of_axes = {name: text.split("x") for name, text in fields.items()}
    names = {"size": "size", "stride": "stride", "pad": "pad"}
    names |= {"lhs_dilate": "input_dilation", "rhs_dilate": "window_dilation"}
    return [
        {
            name: int(of_axes[field][axis].partition("_")[0])
            for field, name in names.items()
            if field in of_axes
        }
        for axis in range(len(of_axes.get("size", ())))
    ]


def meetings(
    length: int,
    results: int,
    *,
    size: int,
    stride: int = 1,
    pad: int = 0,
    input_dilation: int = 1,
    window_dilation: int = 1,
) -> int:
    """How many numbers of a window meet one of the input, along an axis.

    Args:
        length, results: numbers of the input and of the output.
        size, window_dilation: numbers of the window, and places from one to the next.
        stride: places that the window moves.
        pad: places before the input.
        input_dilation: places from one number of the input to the next.

    >>> meetings(4, 4, size=3, pad=1)  # both ends have a zero
    10
    >>> meetings(8, 8, size=8, pad=7, stride=7, input_dilation=8)  # each meets one
    8
    """
    last = (length - 1) * input_dilation
    places = (
        result * stride + number * window_dilation - pad
        for result, number in itertools.product(range(results), range(size))
    )
    return sum(0 <= place <= last and place % input_dilation == 0 for place in places)

"""Counts of compiled programs: loops, memories, updates in place, operations."""

import doctest

import jax
import jax.numpy as jnp
import pytest

from benchmarks import hlo

LOOP = """HloModule example, entry_computation_layout={()->f32[]}

%body (state: (s32[], f32[8,100])) -> (s32[], f32[8,100]) {
  %state = (s32[], f32[8,100]{1,0:T(8,128)}) parameter(0)
  %turn = s32[] get-tuple-element(%state), index=0
  %x = f32[8,100]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %on_chip = f32[8,100]{1,0:T(8,128)S(1)} negate(%x)
  %y = f32[8,100]{1,0:T(8,128)} negate(%on_chip)
  ROOT %next = (s32[], f32[8,100]{1,0:T(8,128)}) tuple(%turn, %y)
}

%condition (state.1: (s32[], f32[8,100])) -> pred[] {
  %state.1 = (s32[], f32[8,100]{1,0:T(8,128)}) parameter(0)
  %turn.1 = s32[] get-tuple-element(%state.1), index=0
  %bound = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%turn.1, %bound), direction=LT
}

ENTRY %main (start: (s32[], f32[8,100])) -> (s32[], f32[8,100]) {
  %start = (s32[], f32[8,100]{1,0:T(8,128)}) parameter(0)
  ROOT %loop = (s32[], f32[8,100]{1,0:T(8,128)}) while(%start), condition=%condition, body=%body
}
"""  # noqa: E501

IN_PLACE = """HloModule example

%update (all: f32[4,128], row: f32[1,128], at: s32[]) -> f32[4,128] {
  %all = f32[4,128]{1,0} parameter(0)
  %row = f32[1,128]{1,0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %new = f32[4,128]{1,0} dynamic-update-slice(%all, %row, %at, %at)
}

ENTRY %main (a: f32[4,128], b: f32[8,128], i: s32[]) -> f32[4,128] {
  %a = f32[4,128]{1,0} parameter(0)
  %b = f32[8,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %part = f32[1,128]{1,0} dynamic-slice(%b, %i, %i), dynamic_slice_sizes={1,128}
  ROOT %c = f32[4,128]{1,0} fusion(%a, %part, %i), kind=kLoop, calls=%update
}
"""


def test_a_loop_counts_as_often_as_it_turns_and_memories_apart():
    counts, tiles = hlo.count(LOOP), 4 * 8 * 128
    assert counts == (5 * 2 * tiles, 5 * 2 * tiles, 0)


def test_slices_and_updates_in_place_move_their_part():
    # Read and write the part; read it again with two indices, write it in place.
    assert hlo.count(IN_PLACE).memory == 2 * 512 + (512 + 4) + 512


@pytest.mark.parametrize("unroll", [1, 3])
def test_operations_are_those_of_all_turns(unroll):
    def power(w, x):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=7, unroll=unroll)[0]

    shapes = jax.ShapeDtypeStruct((16, 16), "float32"), jnp.ones((4, 16))
    program = jax.jit(power).lower(*shapes).compile()
    assert hlo.count(program.as_text()).operations == 7 * 2 * 4 * 16 * 16


@pytest.mark.parametrize(
    "window",
    [
        {"size": 3},
        {"size": 3, "pad": (1, 1), "stride": 2},
        {"size": 2, "pad": (2, 0), "dilation": 3},
        {"size": 3, "pad": (0, 4), "spread": 2},
    ],
)
def test_operations_of_a_convolution_are_its_pairs(window):
    size, pad = window["size"], window.get("pad", (0, 0))
    names = {"stride": "stride", "dilation": "lhs_dilate", "spread": "rhs_dilate"}
    texts = [f"size={size}x1", f"pad={pad[0]}_{pad[1]}x0_0"]
    texts += [f"{names[n]}={window[n]}x1" for n in names if n in window]
    x, kernel = jnp.ones((2, 7, 1, 3)), jnp.ones((size, 1, 3, 8))
    outputs = jax.lax.conv_general_dilated(
        x,
        kernel,
        (window.get("stride", 1), 1),
        [pad, (0, 0)],
        lhs_dilation=(window.get("dilation", 1), 1),
        rhs_dilation=(window.get("spread", 1), 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    shape = ",".join(map(str, outputs.shape))
    text = (
        "ENTRY %main (x: f32[], k: f32[]) -> f32[] {\n"
        "  %x = f32[2,7,1,3]{3,2,1,0} parameter(0)\n"
        f"  %k = f32[{size},1,3,8]{{3,2,1,0}} parameter(1)\n"
        f"  ROOT %y = f32[{shape}]{{3,2,1,0}} convolution(%x, %k), "
        f"window={{{' '.join(texts)}}}, dim_labels=b01f_01io->b01f\n}}"
    )
    # Of ones, each pair adds 1 to the outputs.
    assert hlo.count(text).operations == 2 * outputs.sum()


def test_updates_in_place_of_several_arrays_move_their_parts():
    two = IN_PLACE.replace("ROOT %new", "%new").replace(
        "(%all, %row, %at, %at)\n",
        "(%all, %row, %at, %at)\n"
        "  ROOT %both = (f32[4,128]{1,0}, f32[1,128]{1,0}) tuple(%new, %row)\n",
    )
    two = two.replace(
        "c = f32[4,128]{1,0} fusion", "c = (f32[4,128], f32[1,128]) fusion"
    )
    # The part is also a result now.
    assert hlo.count(two).memory == hlo.count(IN_PLACE).memory + 512


def test_a_fusion_may_end_in_one_instruction_with_several_results():
    text = (
        "%sorted (a: f32[8], b: f32[8]) -> (f32[8], f32[8]) {\n"
        "  %a = f32[8]{0} parameter(0)\n  %b = f32[8]{0} parameter(1)\n"
        "  ROOT %s = (f32[8]{0}, f32[8]{0}) sort(%a, %b), dimensions={0}\n}\n\n"
        "ENTRY %main (x: f32[8], y: f32[8]) -> (f32[8], f32[8]) {\n"
        "  %x = f32[8]{0} parameter(0)\n  %y = f32[8]{0} parameter(1)\n"
        "  ROOT %f = (f32[8]{0}, f32[8]{0}) fusion(%x, %y), calls=%sorted\n}"
    )
    assert hlo.count(text) == (4 * 4 * 8, 0, 0)


def test_what_is_not_known_is_not_counted_as_nothing():
    for before, after, message in (
        ("constant(5)", "parameter(1)", "how often does this loop turn"),
        ("direction=LT", "direction=NE", "how often does this loop turn"),
        ("f32[8,100]", "f7[8,100]", "how many bits has the type f7"),
        ("negate(%x)", "all-gather-start(%x)", "what does all-gather-start move"),
        ("ENTRY ", "", "no ENTRY"),
        (
            "negate(%x)",
            'custom-call(%x), custom_call_target="tpu_custom_call"',
            "a kernel has no count",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            hlo.count(LOOP.replace(before, after))


def test_the_examples_of_the_counter_hold():
    assert doctest.testmod(hlo) == doctest.TestResults(failed=0, attempted=9)


def test_operands_may_be_written_with_their_types():
    typed = LOOP.replace("negate(%x)", "negate(f32[8,100]{1,0:T(8,128)} %x)")
    assert hlo.count(typed) == hlo.count(LOOP)

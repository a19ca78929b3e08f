"""Profiles of chips have sources, and a report names every violated property."""

import dataclasses
import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from networks import conv, relu, weights

import snnjax
from snnjax import deploy
from snnjax.deploy import Connection, Convolution, Layers, Limit, Output, SumPool
from snnjax.deploy.chips import cores, geometry
from snnjax.deploy.chips.cores import Core

SPECK, XYLO, LOIHI = deploy.speck(), deploy.xylo(), deploy.loihi2()
AKIDA, SPINNAKER = deploy.akida1(), deploy.spinnaker2()
CATALYST = deploy.catalyst_n1()
PROFILES = [SPECK, XYLO, LOIHI, AKIDA, SPINNAKER, CATALYST, deploy.loihi1()]
# A Speck with steps, whose potentials can be read: what is left are its limits.
STEPS = tuple(rule for rule in SPECK.rules if rule.name != "event_driven")
CLOCKED = dataclasses.replace(SPECK, rules=STEPS, readout="potential")
CORES = next(rule for rule in SPECK.rules if rule.name == "cores")
NO_ZEROS, ALIKE, ALIKE_2 = (((n, n), (n, n)) for n in range(3))
EIGHT_BITS = deploy.Arithmetic(
    weight_bits=8, input_bits=8, state_bits=16, overflow="saturate"
)
IF = snnjax.integrate_and_fire()


def ones(*shape, value=1):
    return np.full(shape, float(value))


def network(
    *,
    image=16,
    inputs=2,
    channels=4,
    kernel=3,
    stride=1,
    padding=1,
    groups=1,
    weight=1,
    threshold=3,
    bias=0,
    start=0,
    model=IF,
    leak=None,
    pool=2,
    overlap=0,
    copies=1,
    classes=3,
    steps=4,
    wait=0,
    code=None,
    arithmetic=EIGHT_BITS,
):
    """A convolution, a sum-pool and a dense layer; ``copies`` read the first spikes."""
    size = (image + 2 * padding - kernel) // stride + 1
    pooled = (size - pool) // (pool - overlap) + 1
    shape = (channels, size, size)
    window = (pool, pool)

    def population(name, source, shape):
        # Numbers for the neurons of the convolution: dense layers take the largest.
        arrays = [np.asarray(n, float) for n in (threshold, start, bias)]
        if len(shape) == 1:
            arrays = [np.max(array) for array in arrays]
        return deploy.Population(name, (source,), shape, model, *arrays, leak)

    nodes = [
        deploy.Input("input", (), (inputs, image, image), np.ones(())),
        Convolution(
            "conv",
            ("input",),
            ones(channels, inputs // groups, kernel, kernel, value=weight),
            None,
            (image, image),
            (stride, stride),
            ((padding, padding),) * 2,
            groups=groups,
        ),
        population("first", "conv", shape),
    ]
    for n in range(copies):
        rows = (channels, pooled, pooled)
        nodes += [
            SumPool(f"pool{n}", ("first",), window, (pool - overlap,) * 2),
            deploy.Flatten(f"flat{n}", (f"pool{n}",), rows),
            deploy.Dense(
                f"dense{n}", (f"flat{n}",), ones(classes, np.prod(rows)), None
            ),
            population(f"last{n}", f"dense{n}", (classes,)),
        ]
    last = tuple(f"last{n}" for n in range(copies))
    nodes.append(Output("output", last, (classes,), np.zeros(())))
    code = code or snnjax.codes.rate()
    return Layers(tuple(nodes), steps, wait, code, arithmetic)


def akida(**options):
    """What Akida 1.0 runs: T = 1, graded activations, weights of four bits."""
    graded = snnjax.integrate_and_fire(levels=(0, 15))
    options = dict(model=graded, steps=1, inputs=1, pool=16, weight=7) | options
    return network(**options)


def test_every_value_of_a_profile_has_a_source():
    for chip in [*PROFILES, AKIDA.first]:
        fields = {field.name for field in dataclasses.fields(chip)}
        for field in fields - {"name", "rules", "first", "sources"}:
            if getattr(chip, field) is not None:
                assert chip.source(field), (chip, field)
        rules = {rule.name for rule in chip.rules}
        for rule in rules:
            assert chip.source(rule), (chip, rule)
        named = [name for _, names in chip.sources for name in names.split()]
        assert len(named) == len({*named}), chip
        # The limits of Akida's first layer have the sources of all of its layers.
        if chip is not AKIDA.first:
            assert {*named} <= fields | rules, chip


def test_profiles_are_values():
    assert len({*PROFILES}) == len(PROFILES)
    assert deploy.speck() == SPECK and hash(deploy.speck()) == hash(SPECK)
    assert pickle.loads(pickle.dumps(AKIDA)) == AKIDA
    mine = deploy.Chip("mine", rules=(Limit("kernels", (5,)), Limit("kernels", (3,))))
    assert len(mine.rules) == 1  # the last one
    row = deploy.report(network(kernel=5, padding=2), mine)["first"]
    assert [f.problem for f in row.findings] == ["kernel 5, not 3"]
    assert deploy.report(network(), mine).grade == "bit for bit"
    assert "overflow" in SPECK.not_stated and "state_bits" not in SPECK.not_stated


def test_networks_that_a_chip_runs_whole():
    result = deploy.report(network(), CLOCKED)
    assert result.grade == "bit for bit"
    assert {row.verdict for row in result.rows} == {"fits"}
    assert len({row.core for row in result.rows[3:]}) == 3
    result = deploy.report(network(), SPECK)  # its spikes arrive one by one
    assert result.grade == "approximately"
    assert [row.name for row in result.rows if row.findings] == ["network", "output"]
    result = deploy.report(network(model=BOUNDED), CLOCKED)  # its bound can be set
    assert result.grade == "bit for bit"
    pixels = dataclasses.replace(EIGHT_BITS, input_bits=9)  # 0 to 255, and a sign
    t_1 = ({}, {"wait": 1}, {"code": snnjax.codes.radix()}, {"arithmetic": pixels})
    for options in t_1:
        assert deploy.report(akida(**options), AKIDA).grade == "bit for bit"
    assert deploy.report(network(arithmetic=None), CLOCKED).grade == "approximately"


LEAKY = {"model": snnjax.lif(leak=0.5), "leak": np.array(0.5)}
SIGNED, GRADED, ZERO, SILENT, BOUNDED = (
    snnjax.integrate_and_fire(**options)
    for options in (
        {"levels": (-1, 1)},
        {"levels": (0, 3)},
        {"reset": "zero"},
        {"levels": (-1, 1), "dead_zone": 2 / 3},
        {"lowest": -1.0},
    )
)
PER_CHANNEL = np.arange(1.0, 5)[:, None, None]
PER_NEURON = np.arange(4.0 * 256).reshape(4, 16, 16)
STARTS = {"start": PER_NEURON}
RADIX = snnjax.codes.radix()
WIDE, WRAP, TEN_BITS = (
    dataclasses.replace(EIGHT_BITS, **changes)
    for changes in ({"state_bits": 24}, {"overflow": "wrap"}, {"input_bits": 10})
)
# (options of the network, chip, row, field, verdict, words of the problem)
CASES = [
    ({"kernel": 17, "padding": 0, "image": 32}, SPECK, "first", "kernels", "no", "17"),
    ({"stride": 3}, SPECK, "first", "strides", "no", "3, not 1, 2, 4, 8"),
    ({"padding": 8}, SPECK, "first", "paddings", "no", "8, not 0 to 7"),
    ({"channels": 2000}, SPECK, "first", "channels", "no", "2000, at most 1024"),
    ({"image": 200}, SPECK, "first", "input_rows", "no", "200, not 1 to 128"),
    ({"image": 100}, SPECK, "first", "output_image", "no", "100, at most 64"),
    ({"copies": 3}, SPECK, "first", "destinations", "no", "3, at most 2"),
    ({"pool": 3}, SPECK, "last0", "pools", "no", "sum-pool 3x3"),
    ({"pool": 4, "overlap": 2}, SPECK, "last0", "pools", "no", "stride 2"),
    ({"channels": 1024, "image": 64}, SPECK, "first", "cores", "no", "no core has"),
    ({"model": SIGNED}, SPECK, "first", "levels", "no", "(-1, 1), not (0, n)"),
    (LEAKY, SPECK, "first", "leak", "no", "factor"),
    ({"model": SILENT}, SPECK, "first", "programmable", "no", "dead zone 0.667"),
    ({"bias": 1}, SPECK, "first", "event_driven", "approximately", "clock"),
    ({}, SPECK, "network", "event_driven", "approximately", "no steps"),
    ({}, SPECK, "output", "readout", "approximately", "not spikes"),
    ({"code": RADIX}, SPECK, "code", "programmable", "no", "thresholds"),
    ({"code": RADIX}, LOIHI, "code", "programmable", "approximately", "radix"),
    ({"code": RADIX}, CATALYST, "code", "programmable", "approximately", "radix"),
    ({"wait": 2}, SPECK, "code", "programmable", "no", "wait 2"),
    ({"wait": 2}, SPINNAKER, "code", "programmable", "approximately", "wait 2"),
    ({"arithmetic": None}, SPECK, "first", "weight_bits", "approximately", "floats"),
    ({"threshold": 1.5}, SPECK, "first", "weight_bits", "approximately", "floats"),
    ({"arithmetic": None}, XYLO, "input", "input_levels", "approximately", "0 to 15"),
    ({}, XYLO, "input", "input_levels", "approximately", "8 bits, not"),
    ({"weight": 128}, SPECK, "first", "weight_bits", "approximately", "9 bits, not 8"),
    ({"threshold": 2**15}, SPECK, "first", "threshold_bits", "approximately", "17"),
    ({"bias": -129}, SPECK, "first", "bias_bits", "approximately", "9 bits, not 8"),
    ({"start": 2**15}, SPECK, "first", "state_bits", "approximately", "17 bits"),
    ({"arithmetic": WIDE}, SPECK, "first", "state_bits", "approximately", "24 bits"),
    ({"arithmetic": WRAP}, LOIHI, "first", "overflow", "approximately", "'wrap', not"),
    ({"threshold": PER_CHANNEL}, SPECK, "first", "thresholds", "approximately", "per"),
    ({"bias": PER_NEURON}, SPECK, "first", "biases", "approximately", "per neuron"),
    (STARTS, AKIDA, "first", "initial_potentials", "approximately", "per neuron, not"),
    ({}, LOIHI, "first", "resets", "approximately", "'subtract', not 'zero'"),
    ({"model": ZERO}, XYLO, "first", "resets", "no", "'zero', not 'subtract'"),
    ({"model": GRADED}, LOIHI, "first", "levels", "approximately", "(0, 3)"),
    ({"model": GRADED}, XYLO, "first", "levels", "approximately", "not (0, 31)"),
    ({"model": BOUNDED}, LOIHI, "first", "lowest", "approximately", "-1 V, not that"),
    ({"model": BOUNDED}, XYLO, "first", "lowest", "no", "register"),
    (LEAKY, XYLO, "first", "leak", "approximately", "shift"),
    ({}, XYLO, "first", "synapse", "no", "exponential"),
    ({}, XYLO, "network", "inputs", "no", "512, at most 16"),
    ({}, XYLO, "network", "neurons", "no", "1027, at most 1000"),
    ({"classes": 9}, XYLO, "network", "outputs", "no", "9, at most 8"),
    ({"channels": 9}, XYLO, "network", "fan_out", "no", "81, at most 64"),
    ({"steps": 4}, AKIDA, "network", "one_step", "no", "T = 4, not 1"),
    ({"arithmetic": TEN_BITS}, AKIDA, "input", "input_levels", "approximately", "10 b"),
    ({"groups": 2}, AKIDA, "first", "groups", "no", "2, not 1"),
    ({}, AKIDA, "first", "input_channels", "no", "2, not 1, 3"),
    ({}, AKIDA, "last0", "pools", "no", "of a whole image"),
    ({"padding": 2}, AKIDA, "first", "padding_modes", "no", "(2, 2)), not SAME"),
    ({"image": 4}, AKIDA, "first", "input_columns", "no", "4, not 5 to 256"),
    ({"image": 300}, AKIDA, "first", "input_columns", "no", "300, not 5 to 256"),
    ({"image": 128, "pool": 1}, AKIDA, "last0", "dense_inputs", "no", "65536"),
]  # fmt: skip


def test_every_violated_property_is_named():
    for options, chip, row, field, verdict, words in CASES:
        findings = deploy.report(network(**options), chip)[row].findings
        result = {(f.field, f.verdict) for f in findings if words in f.problem}
        assert (field, verdict) in result, (options, chip, findings)
        # A finding that fits is a remark, such as the cores by the maker's mapper.
        assert all(f.remedy or f.verdict == "fits" for f in findings)
        # A network without the violation does not have the finding.
        if chip is SPECK and row != "network" and row != "output" and options:
            plain = deploy.report(network(), chip)[row].findings
            assert field not in [f.field for f in plain], field


def test_a_scale_per_channel_is_named_where_a_chip_has_a_threshold_per_layer():
    params = weights(hidden=(4, 6), readout=(6, 3))
    x = np.eye(4, dtype=np.float32)

    def fn(params, x):
        return relu(x @ params["hidden"]) @ params["readout"]

    snn = snnjax.convert(fn, params, x, steps=4, recipe=snnjax.max_activation())
    layers = deploy.layers(fn, snn, x)
    remedies = {}
    for scale in ("channel", "layer"):
        integers = deploy.quantize(layers, x, scale=scale)
        findings = deploy.report(integers, SPECK)["hidden/relu"].findings
        remedies[scale] = [f.remedy for f in findings if f.field == "thresholds"]
    remedy = 'fit thresholds per layer, and quantize with scale="layer"'
    assert remedies == {"channel": [remedy], "layer": []}


def test_images_below_zero_are_told_where_the_input_of_a_chip_has_no_sign():
    params = weights(hidden=(4, 6), readout=(6, 3))
    x = np.float32([[1, 0.5, 0.25, 0], [0, 0.25, 1, -0.5]])

    def fn(params, x):
        return relu(x @ params["hidden"]) @ params["readout"]

    snn = snnjax.init(fn, params, x, model=GRADED)
    layers = dataclasses.replace(deploy.layers(fn, snn, x), steps=1)
    for images, problems in (
        (np.abs(x), []),
        (x, ["the images of quantize have numbers from -63 on, not 0 to 255 per step"]),
    ):
        integers = deploy.quantize(layers, images, input_bits=8)
        findings = deploy.report(integers, AKIDA)["input"].findings
        assert [f.problem for f in findings] == problems
        assert all("for images >= 0, such as pixels" in f.remedy for f in findings)
        # Nothing states that Loihi takes no negative numbers.
        assert not deploy.report(integers, LOIHI)["input"].findings


def test_a_code_says_what_rate_coding_takes_instead():
    """Four signed digits tell 15 values above 0 apart, and two layers wait a step."""
    layers = network(model=SIGNED, code=RADIX, wait=1)
    for chip, words in ((SPECK, "take rate"), (CATALYST, "let the host")):
        (finding,) = deploy.report(layers, chip)["code"].findings
        assert "wait 1, an answer after 6 steps" in finding.problem
        assert words in finding.remedy and "steps=15 for as many" in finding.remedy
    (finding,) = deploy.report(network(code=RADIX, steps=None), SPECK)["code"].findings
    assert (
        finding.remedy.startswith("take rate coding") and "T =" not in finding.problem
    )
    for fits in ({}, {"code": RADIX, "steps": 1}):
        assert deploy.report(network(**fits), SPECK)["code"].verdict == "fits"


# (chip, T, levels, code, how many thresholds eight neurons have, their verdict)
FOR_CHIPS = [
    (SPECK, 8, (0, 1), snnjax.codes.rate(), 1, "fits"),
    (SPINNAKER, 8, (0, 1), snnjax.codes.rate(), 8, "fits"),
    (LOIHI, 8, (0, 1), snnjax.codes.rate(), 1, "approximately"),  # resets to zero
    (AKIDA, 1, (0, 15), snnjax.codes.radix(), 8, "fits"),
    (CATALYST, 1, (0, 1), snnjax.codes.rate(), 8, "fits"),  # nothing resets
]


@pytest.mark.thorough
def test_conversion_for_a_chip_makes_neurons_that_it_has():
    """Its code, levels and thresholds, and its bits in whole numbers."""
    params = weights(a=(4, 8), b=(8, 3))
    x = jnp.abs(weights(x=(80, 4))["x"])

    def fn(params, x):
        return relu(x @ params["a"]) @ params["b"]

    for chip, steps, levels, code, count, verdict in FOR_CHIPS:
        snn = snnjax.convert(fn, params, x, steps=steps, chip=chip)
        (neurons,) = snn.neurons.values()
        assert (snn.model.levels, snn.code) == (levels, code), chip
        assert len({*neurons.threshold.ravel().tolist()}) == count, chip
        layers = deploy.quantize(deploy.layers(fn, snn, x), x, chip=chip)
        row = deploy.report(layers, chip).rows[3]
        assert row.verdict == verdict, (chip, row)
        if verdict != "fits":
            assert [f.field for f in row.findings] == ["resets"]
    given = {"code": RADIX, "recipe": snnjax.light("channel"), "model": GRADED}
    snn = snnjax.convert(fn, params, x, steps=2, chip=SPECK, **given)
    assert (snn.code, snn.model) == (RADIX, GRADED)
    radix = snnjax.convert(fn, params, x, steps=4, chip=SPINNAKER, code=RADIX)
    assert radix.model.levels == (-1, 1)  # a neuron of one's own, in C


def test_the_defaults_of_a_chip_are_its_least_levels():
    some = deploy.Chip("some", levels=((0, 15), (0, 1), (0, 3)))
    assert some.defaults(4, None, None)[1].levels == (0, 1)
    one = dataclasses.replace(some, one_step=True)
    assert one.defaults(1, None, None)[1].levels == (0, 15)
    # In one step all codes are alike, also for neurons of one's own.
    assert LOIHI.defaults(1, RADIX, None)[1].levels == (0, 1)


def test_limits_of_the_first_layer_and_of_strided_kernels():
    """Akida reads x through weights of 8 bits; other layers have 4, and no 5x5 / 2."""
    assert deploy.report(akida(weight=127), AKIDA)["first"].verdict == "fits"
    nodes = list(akida(weight=127).nodes)
    deeper = dataclasses.replace(nodes[1], name="deeper", sources=("first",))
    weight = ones(4, 4, 5, 5, value=127)
    deeper = dataclasses.replace(
        deeper, weight=weight, stride=(2, 2), padding=ALIKE_2, size=(16, 16)
    )
    second = dataclasses.replace(
        nodes[2], name="second", sources=("deeper",), shape=(4, 8, 8)
    )
    output = Output("output", ("second",), (4, 8, 8), np.zeros(()))
    layers = dataclasses.replace(akida(), nodes=(*nodes[:3], deeper, second, output))
    fields = {f.field for f in deploy.report(layers, AKIDA)["second"].findings}
    assert fields == {"weight_bits", "strided_kernels", "padding_modes"}


def test_maps_in_a_row_and_paths_that_meet():
    """Speck has one kernel for all that a layer reads, and neurons after each map."""
    nodes = list(network().nodes)
    zero = np.zeros(())

    def ending(*maps, shape=(4, 16, 16), sources=None):
        last = deploy.Population(
            "last", sources or (maps[-1].name,), shape, IF, zero + 1, zero, zero
        )
        output = Output("output", ("last",), shape, zero)
        layers = Layers((*nodes[:3], *maps, last, output), 4, 0, arithmetic=EIGHT_BITS)
        return [f.field for f in deploy.report(layers, CLOCKED)["last"].findings]

    def again(name, source):
        weight = ones(4, 4, 3, 3)
        return Convolution(name, (source,), weight, None, (16, 16), padding=ALIKE)

    one = again("one", "first")
    scale = deploy.Scale("scale", ("first",), ones(), None, (4, 16, 16))
    assert ending(one) == []
    assert ending(one, again("two", "one")) == ["successive_maps"]
    pool = SumPool("pool", ("one",), (2, 2), (2, 2))
    assert ending(one, pool, shape=(4, 8, 8)) == ["successive_maps"]
    assert ending(one, scale, sources=("one", "scale")) == []
    for options in ({"stride": (2, 2)}, {"size": (8, 8)}):
        other = dataclasses.replace(again("other", "input"), **options)
        other = dataclasses.replace(other, weight=ones(4, 2, 1, 1), padding=NO_ZEROS)
        assert ending(one, other, sources=("one", "other")) == ["one_kernel"]


def test_sizes_are_those_of_the_maps():
    """Fan-out by counting, and the example of kernel memory in Speck's manual."""
    for kernel, stride, padding, groups in (
        (3, 1, 1, 1),
        (5, 2, 2, 1),
        (2, 2, 0, 1),
        (3, 3, 0, 2),
    ):
        layers = network(
            kernel=kernel, stride=stride, padding=padding, groups=groups, image=12
        )
        way, size = layers.connections[0], (kernel, kernel)
        zeros = ((padding, padding),) * 2
        options = ((12, 12, 2), (*size, 2 // groups, 4), stride, zeros, groups)
        assert reference.fan_out(*options).max() == geometry.fan_out(way)
        (result,) = geometry.kernels(way, (2, 12, 12), dense_as_kernel=True)
        assert result.size == size and result.image == (12, 12)
    # A way without neurons: a dilated convolution, a pool, a dense layer.
    conv_node = Convolution(
        "conv", ("input",), ones(4, 2, 3, 3), None, (12, 12), (1, 1), ALIKE_2, (2, 2)
    )
    pool = SumPool("pool", ("conv",), (2, 2), (2, 2))
    flatten = deploy.Flatten("flatten", ("pool",), (4, 6, 6))
    dense = deploy.Dense("dense", ("flatten",), ones(5, 144), None)
    way = Connection("input", "last", (conv_node, pool, flatten, dense))
    convolution_kernel = geometry.Kernel(
        channels=2,
        size=(5, 5),  # 3x3 with gaps
        image=(12, 12),
        stride=(1, 1),
        padding=ALIKE_2,
        modes=("SAME",),
    )
    dense_kernel = geometry.Kernel(
        channels=4,
        size=(6, 6),
        image=(6, 6),
        stride=(1, 1),
        padding=NO_ZEROS,
        modes=("VALID",),
    )
    kernels = geometry.kernels(way, (2, 12, 12), dense_as_kernel=True)
    assert kernels == [convolution_kernel, dense_kernel]
    assert geometry.kernels(way, (2, 12, 12)) == [convolution_kernel]
    padded = dataclasses.replace(pool, padding=(1, 1))
    way = Connection("input", "last", (padded, flatten, dense))
    (whole,) = geometry.kernels(way, (4, 12, 12), dense_as_kernel=True)
    assert whole.image == (7, 7)


def population_reading(*ways, sender_shape, shape):
    """A layer of this shape that reads one population by these connections."""
    node = deploy.Population("q", (), shape, IF, ones(), np.zeros(()), np.zeros(()))
    senders = (deploy.Input("p", (), sender_shape), node)
    return geometry.Layer(
        node=node,
        connections=ways,
        sender_shapes={"p": sender_shape},
        readers=set(),
        network=Layers(senders),
        dense_as_kernel=True,
    )


def test_memory_of_a_core_is_that_of_the_manual():
    weight = ones(32, 16, 3, 3)
    node = Convolution("c", ("p",), weight, None, (64, 64), padding=ALIKE)
    layer = population_reading(
        Connection("p", "q", (node,)), sender_shape=(16, 64, 64), shape=(32, 64, 64)
    )
    assert CORES.need(layer) == Core(8 * 1024, 128 * 1024)
    plain = dataclasses.replace(CORES, addressed_by_bits=False)
    assert plain.need(layer).kernels == weight.size
    # Kernels that meet are stored as one, of the largest size: 5x5 and 6x6 here.
    five = dataclasses.replace(node, weight=ones(5, 2, 5, 5), size=(6, 6))
    ways = (
        Connection("p", "q", (five,)),
        Connection("p", "q", (deploy.Dense("d", ("p",), ones(5, 72), None),)),
    )
    layer = population_reading(*ways, sender_shape=(2, 6, 6), shape=(5, 1, 1))
    assert CORES.need(layer) == Core(4 * 64 * 8, 5)


def test_same_padding_with_a_stride_is_that_of_the_function():
    """On even images Speck, which pads alike on both sides, needs a kernel of 4x4."""
    params = weights(first=(3, 3, 1, 4), second=(3, 3, 4, 4), last=(256, 3))

    def fn(p, x):
        x = relu(conv(relu(conv(x, p["first"])), p["second"], stride=2))
        return x.reshape(len(x), -1) @ p["last"]

    for size, kernel in ((16, 4), (15, 3)):
        x = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
        snn = dataclasses.replace(snnjax.init(fn, params, x, model=IF), steps=1)
        layers = deploy.layers(fn, snn, x)
        second = layers.populations[1].name
        (way,) = (w for w in layers.connections if w.receiver == second)
        (result,) = geometry.kernels(way, (4, size, size), equal_padding=True)
        assert result.size == (kernel, kernel) and result.padding == ALIKE
        (result,) = geometry.kernels(way, (4, size, size))
        assert result.size == (3, 3) and result.modes == ("SAME",)
        row = deploy.report(layers, AKIDA)[second]
        assert not {f.field for f in row.findings} & {"kernels", "padding_modes"}
    # Padding (1, 1) of other tools reads other windows of an even image.
    node = way.maps[0]
    node = dataclasses.replace(node, size=(16, 16), padding=ALIKE)
    way = Connection("a", "b", (node,))
    (result,) = geometry.kernels(way, (4, 16, 16))
    assert result.size == (3, 3) and result.modes == ()


def test_a_window_that_speck_cannot_read_is_a_finding():
    """Kernels of 2x3 without padding make 7x6 of an image 8x8; no square one does."""
    nodes = list(network(kernel=3, padding=0, image=8).nodes)
    nodes[1] = dataclasses.replace(nodes[1], weight=ones(4, 2, 2, 3))
    nodes[2] = dataclasses.replace(nodes[2], shape=(4, 7, 6))
    output = Output("output", ("first",), (4, 7, 6), np.zeros(()))
    layers = Layers((*nodes[:3], output), 4, 0, arithmetic=EIGHT_BITS)
    (finding,) = deploy.report(layers, CLOCKED)["first"].findings
    assert (finding.field, finding.verdict) == ("equal_padding", "no")
    assert "kernel 2x3" in finding.problem
    for chip in (XYLO, AKIDA):
        fields = {f.field for f in deploy.report(layers, chip)["first"].findings}
        assert "equal_padding" not in fields


def test_layers_get_cores_whenever_that_is_possible():
    rng = np.random.default_rng(0)
    for _ in range(200):
        four = [Core(*row) for row in rng.integers(2, 9, (4, 2)).tolist()]
        rows = rng.integers(1, 6, (4, 2)).tolist()
        needs = {name: Core(*row) for name, row in zip("abcd", rows, strict=True)}
        result = cores.assign(needs, four)
        assert all(four[i].holds(needs[name]) for name, i in result.items())
        assert len({*result.values()}) == len(result)
        possible = any(
            all(c.holds(n) for n, c in zip(needs.values(), some, strict=True))
            for some in itertools.permutations(four)
        )
        assert (len(result) == 4) == possible
    many = deploy.report(network(copies=10), CLOCKED)
    without = [row for row in many.rows[3:] if row.core is None]
    assert len(without) == 3  # first, ten copies and the output on nine cores
    assert all("take every core" in row.findings[-1].problem for row in without)


def test_digits_have_biases_in_units_of_w_t_and_potentials_of_t_w_t():
    for steps, problems in ((2, {"floats"}), (4, set())):
        layers = network(start=1.5, bias=0.375, code=RADIX, steps=steps)
        rows = deploy.report(layers, deploy.Chip("anything")).rows[3:]
        assert {f.problem for row in rows for f in row.findings} == problems


def test_a_report_has_80_columns():
    result = deploy.report(network(channels=2000, arithmetic=None, model=SIGNED), XYLO)
    lines = str(result).splitlines()
    assert lines[0] == "Xylo: does not run"
    assert max(map(len, lines)) <= 80
    remedy = "build the network within these limits"
    assert sum(remedy in line for line in lines) == 1  # once for all rows
    assert lines[-1].startswith("  ") and "not stated" in str(result)
    assert repr(result) == "Report(Xylo: does not run)"
    for chip in PROFILES:
        text = str(chip)
        assert text.startswith(chip.name) and "[1]" in text
    assert "first: weight_bits" in str(AKIDA)

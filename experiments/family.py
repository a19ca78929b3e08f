"""The default recipe beside plain ones, on a family: ``python -m experiments.family``.

    error = sum |y_snn - y_ann|^2 / sum |y_ann|^2,    on inputs that no conversion saw

A row is an activation or a layer, a number of calibration inputs and a code. The
default loses a row at T if its error is above `LARGEST` and above 1.2 times that of the
better plain recipe, `snnjax.light` or `snnjax.max_activation`; or if it is above
`LARGEST` and above 1.1 times its own error at fewer steps.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import snnjax
from experiments.data import load
from experiments.report import markdown_table

LARGEST = 5e-4  # an error that no answer notices
_FACTOR = 1.2
_STEPS_FACTOR = 1.1
INPUTS = (64, 256, 1024)
_TEST_INPUTS = 2048
STEPS = {
    "radix": (snnjax.codes.radix(), (2, 4, 8, 12)),
    "radix3": (snnjax.codes.radix(base=3), (2, 4, 8, 12)),
    "rate": (snnjax.codes.rate(), (4, 16, 64, 256)),
}
PLAIN = {"light": snnjax.light, "max_activation": snnjax.max_activation}
_WIDTH = 32
_TRAINING_STEPS = 400


class Network(NamedTuple):
    """A network of the family, and inputs.

    Attributes:
        function: (params, x) -> outputs.
        params: its parameters.
        inputs: [n, ...], of which the first ones calibrate.
        test_inputs: that no conversion sees.
    """

    function: Callable
    params: Any
    inputs: np.ndarray
    test_inputs: np.ndarray


class Row(NamedTuple):
    """The errors of one network, number of inputs and code.

    Attributes:
        name: of the network.
        inputs: that calibrate.
        code: its name in `STEPS`.
        errors: recipe -> error at each T of the code.
    """

    name: str
    inputs: int
    code: str
    errors: dict[str, list[float]]

    def lost(self) -> list[int]:
        """The T at which the default loses."""
        steps = STEPS[self.code][1]
        lost_steps = []
        for number, error in enumerate(self.errors["default"]):
            plain = min(self.errors[recipe][number] for recipe in PLAIN)
            earlier = min(self.errors["default"][:number], default=np.inf)
            limit = max(LARGEST, min(_FACTOR * plain, _STEPS_FACTOR * earlier))
            if not error <= limit:
                lost_steps.append(steps[number])
        return lost_steps


# ----------------------------------------------------------------------- networks


def _normal(generator: np.random.Generator, *shape: int) -> np.ndarray:
    fan_in = np.prod(shape[:-1])
    kernel = generator.normal(size=shape) * np.sqrt(2 / fan_in)
    return kernel.astype(np.float32)


def dense(activation: Callable[[jax.Array], jax.Array]) -> Network:
    """Three hidden layers of this activation, with random weights."""
    generator = np.random.default_rng(0)
    params = [
        _normal(generator, 16, _WIDTH),
        _normal(generator, _WIDTH, _WIDTH),
        _normal(generator, _WIDTH, _WIDTH),
        _normal(generator, _WIDTH, 4),
    ]

    def function(params: Any, x: jax.Array) -> jax.Array:
        for kernel in params[:-1]:
            x = activation(x @ kernel)
        return x @ params[-1]

    return _with_inputs(function, params, generator, (16,))


def gates() -> Network:
    """Hidden layers that a hard sigmoid of other weights multiplies."""
    generator = np.random.default_rng(1)
    params = [
        (_normal(generator, 16, _WIDTH), _normal(generator, 16, _WIDTH)),
        (_normal(generator, _WIDTH, _WIDTH), _normal(generator, _WIDTH, _WIDTH)),
        _normal(generator, _WIDTH, 4),
    ]

    def function(params: Any, x: jax.Array) -> jax.Array:
        for kernel, gate in params[:-1]:
            x = jax.nn.relu(x @ kernel) * jax.nn.hard_sigmoid(x @ gate)
        return x @ params[-1]

    return _with_inputs(function, params, generator, (16,))


def _layer_norm(x: jax.Array) -> jax.Array:
    centered = x - x.mean(-1, keepdims=True)
    return centered * jax.lax.rsqrt((centered**2).mean(-1, keepdims=True) + 1e-5)


def norms() -> Network:
    """Hidden layers whose input a LayerNorm normalizes."""
    return dense(lambda x: jax.nn.relu(_layer_norm(x)))


def attention() -> Network:
    """A transformer's block of one head, on eight tokens."""
    generator = np.random.default_rng(2)
    size = 16
    params = {
        "embedding": _normal(generator, 8, size),
        "query": _normal(generator, size, size) / 2,
        "key": _normal(generator, size, size) / 2,
        "value": _normal(generator, size, size),
        "up": _normal(generator, size, _WIDTH),
        "down": _normal(generator, _WIDTH, size),
        "readout": _normal(generator, size, 4),
    }

    def function(params: Any, x: jax.Array) -> jax.Array:
        x = x @ params["embedding"]
        normed = _layer_norm(x)
        scores = (normed @ params["query"]) @ (normed @ params["key"]).swapaxes(-1, -2)
        weights = jax.nn.softmax(scores / jnp.sqrt(size))
        x = x + weights @ (normed @ params["value"])
        x = x + jax.nn.gelu(_layer_norm(x) @ params["up"]) @ params["down"]
        return x.mean(-2) @ params["readout"]

    return _with_inputs(function, params, generator, (8, 8))


def _convolved(x: jax.Array, kernel: jax.Array, groups: int = 1) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def max_pool() -> Network:
    """Two convolutions with a max-pooling between them."""
    generator = np.random.default_rng(3)
    params = [
        _normal(generator, 3, 3, 2, 8),
        _normal(generator, 3, 3, 8, 8),
        _normal(generator, 4 * 4 * 8, 4),
    ]

    def function(params: Any, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(_convolved(x, params[0]))
        x = x.reshape(-1, 4, 2, 4, 2, 8).max((2, 4))
        x = jax.nn.relu(_convolved(x, params[1]))
        return x.reshape(len(x), -1) @ params[2]

    return _with_inputs(function, params, generator, (8, 8, 2))


def depthwise() -> Network:
    """A depthwise convolution with a ReLU6 between pointwise ones."""
    generator = np.random.default_rng(4)
    params = [
        _normal(generator, 1, 1, 2, 16),
        _normal(generator, 3, 3, 1, 16),
        _normal(generator, 1, 1, 16, 8),
        _normal(generator, 8, 4),
    ]

    def function(params: Any, x: jax.Array) -> jax.Array:
        x = jax.nn.relu6(_convolved(x, params[0]))
        x = jax.nn.relu6(_convolved(x, params[1], groups=16))
        x = jax.nn.relu6(_convolved(x, params[2]))
        return x.mean((1, 2)) @ params[3]

    return _with_inputs(function, params, generator, (6, 6, 2))


def trained(activation: Callable[[jax.Array, jax.Array], jax.Array]) -> Network:
    """Digits, classified by hidden layers whose maxima are trained with the weights.

    Args:
        activation: (x, maximum) -> its result.
    """
    generator = np.random.default_rng(5)
    data = load("digits")
    # Pixels of 0 to 255 would saturate every neuron, and no weight would learn.
    inputs, test_inputs = (
        np.float32(images.reshape(len(images), -1) / 255)
        for images in (data.train_images, data.test_images)
    )
    params = {
        "kernels": [
            _normal(generator, inputs.shape[1], _WIDTH),
            _normal(generator, _WIDTH, _WIDTH),
            _normal(generator, _WIDTH, 10),
        ],
        "log_maxima": [np.zeros((), np.float32), np.zeros((), np.float32)],
    }

    def function(params: Any, x: jax.Array) -> jax.Array:
        *kernels, readout = params["kernels"]
        for kernel, log_maximum in zip(kernels, params["log_maxima"], strict=True):
            x = activation(x @ kernel, jnp.exp(log_maximum))
        return x @ readout

    def loss(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        outputs = function(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()

    optimizer = optax.adam(1e-2)

    def step(carry: Any, rows: jax.Array) -> Any:
        params, state = carry
        gradient = jax.grad(loss)(params, images[rows], labels[rows])
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    images, labels = jnp.asarray(inputs), jnp.asarray(data.train_labels)
    rows = generator.integers(0, len(inputs), size=(_TRAINING_STEPS, 64))
    start = params, optimizer.init(params)
    (params, _), _ = jax.jit(lambda start: jax.lax.scan(step, start, rows))(start)
    # Images lie in the order of their classes.
    order = generator.permutation(len(inputs))
    return Network(function, params, inputs[order], test_inputs)


def _with_inputs(
    function: Callable,
    params: Any,
    generator: np.random.Generator,
    shape: tuple[int, ...],
) -> Network:
    """The network with random inputs."""
    inputs = generator.normal(size=(max(INPUTS), *shape)).astype(np.float32)
    test_inputs = generator.normal(size=(_TEST_INPUTS, *shape)).astype(np.float32)
    return Network(function, params, inputs, test_inputs)


def _clipped(maximum: float) -> Callable[[], Network]:
    return lambda: dense(lambda x: snnjax.clipped_relu(x, maximum))


def _quantized(levels: int) -> Callable[[], Network]:
    return lambda: dense(lambda x: snnjax.quantized_relu(x, 2.0, levels))


NETWORKS: dict[str, Callable[[], Network]] = {
    "ReLU": lambda: dense(jax.nn.relu),
    "ReLU6": lambda: dense(jax.nn.relu6),
    "clipped at .5": _clipped(0.5),
    "clipped at 1": _clipped(1.0),
    "clipped at 2": _clipped(2.0),
    "quantized, 3 levels": _quantized(3),
    "quantized, 15 levels": _quantized(15),
    "hard swish": lambda: dense(jax.nn.hard_swish),
    "hard sigmoid gates": gates,
    "leaky ReLU": lambda: dense(jax.nn.leaky_relu),
    "softplus": lambda: dense(jax.nn.softplus),
    "LayerNorm": norms,
    "attention": attention,
    "max-pool": max_pool,
    "depthwise": depthwise,
    "trained, clipped": lambda: trained(snnjax.clipped_relu),
    "trained, 15 levels": lambda: trained(
        functools.partial(snnjax.quantized_relu, levels=15)
    ),
}


# ------------------------------------------------------------------------- errors


def error(network: Network, snn: snnjax.SNN) -> float:
    """The error of the outputs on the test inputs."""
    exact = np.asarray(jax.jit(network.function)(network.params, network.test_inputs))
    run = jax.jit(snnjax.spiking(network.function, answer=True))
    answer = np.asarray(run(snn, network.test_inputs))
    return float(((answer - exact) ** 2).sum() / (exact**2).sum())


def errors_by_recipe(
    network: Network, count: int, code: snnjax.codes.Code, steps: int
) -> dict[str, float]:
    """The error of the default and of the plain recipes, fitted to ``count`` inputs."""
    recipes: dict[str, snnjax.Recipe | None] = {"default": None}
    for name, recipe in PLAIN.items():
        recipes[name] = recipe()
    errors = {}
    for name, recipe in recipes.items():
        snn = snnjax.convert(
            network.function,
            network.params,
            network.inputs[:count],
            steps=steps,
            code=code,
            recipe=recipe,
        )
        errors[name] = error(network, snn)
    return errors


def rows(
    names: Sequence[str], counts: Sequence[int], codes: Sequence[str]
) -> Iterator[Row]:
    """A `Row` for each network, number of inputs and code."""
    for name in names:
        network = NETWORKS[name]()
        for count in counts:
            for code_name in codes:
                code, all_steps = STEPS[code_name]
                errors: dict[str, list[float]] = {}
                for steps in all_steps:
                    new = errors_by_recipe(network, count, code, steps)
                    for recipe_name, recipe_error in new.items():
                        errors.setdefault(recipe_name, []).append(recipe_error)
                yield Row(name, count, code_name, errors)
        jax.clear_caches()


# ------------------------------------------------------------------------ command


def _cells(row: Row) -> list[str]:
    lost_steps = row.lost()
    cells = [row.name, str(row.inputs), row.code]
    for number, steps in enumerate(STEPS[row.code][1]):
        plain = min(row.errors[recipe][number] for recipe in PLAIN)
        text = f"{row.errors['default'][number]:.1e} / {plain:.1e}"
        cells.append(f"**{text}**" if steps in lost_steps else text)
    return cells


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.family",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), metavar="NAME")
    parser.add_argument("--inputs", nargs="+", type=int, choices=INPUTS)
    parser.add_argument("--codes", nargs="+", choices=list(STEPS))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, a code after another; 1 if the default loses somewhere."""
    arguments = _parser().parse_args(argv)
    lost_count = 0
    for code in arguments.codes or STEPS:
        head = ["network", "inputs", "code"]
        head += [f"T = {steps}: default / plain" for steps in STEPS[code][1]]
        table = []
        for row in rows(
            arguments.networks or list(NETWORKS), arguments.inputs or INPUTS, [code]
        ):
            table.append(_cells(row))
            lost_count += len(row.lost())
            print(*table[-1], sep=" | ", file=sys.stderr, flush=True)
        print(markdown_table(head, table))
        print()
    print(f"the default loses {lost_count} times")
    return int(lost_count > 0)


if __name__ == "__main__":
    sys.exit(main())

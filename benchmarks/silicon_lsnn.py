"""Does a recurrent network decide here as on Loihi 1, and what did it cost there?

    python -m benchmarks.silicon_lsnn --weights LSNN/weights/v25_94per --mnist MNIST \
        --out benchmarks/results/silicon_lsnn.json

The network is a trained LSNN for sequential MNIST: a pixel at each of 784 steps, then
56 steps to answer; 140 neurons that leak and 100 that also adapt. LSNN is the folder
nxsdk_modules_ncl/lsnn/apps/seqmnist of github.com/intel-nrc-ecosystem/models (BSD-3),
whose weights are whole numbers, w_in.npy, w_rec.npy and w_out.npy. The notebook there
of a run on the chip has the accuracy on 200 images, what the 11 wrong ones were taken
for, and the power of each part. ``--mnist`` has t10k-images-idx3-ubyte.gz and
t10k-labels-idx1-ubyte.gz.

The neurons are a model of one's own, in whole numbers. With d(x) = sign(x) floor(|x|
(4096 - decay) / 4096), per step:

    v  <- d(v) + 2^6 scale (sum of weights) + a        decay 204, time constant 20
    s   = 1[v > 2^6 V],    v <- 0 where s              V = 127 scale
    a  <- d(a) - 384 s   where the neuron adapts       decay 5; scale 4 there, else 1

Source: intel-nrc-ecosystem/models 3dc53bf, lsnn/src/lsnn.py, and seqmnist/snips for the
spikes that images become.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import snnjax
from benchmarks import timing
from benchmarks.silicon import MNIST_FILES, decayed, leaky_potentials, mnist

WEIGHTS = ("w_in.npy", "w_rec.npy", "w_out.npy")
SHAPES = ((80, 240), (240, 240), (240, 10))
REGULAR = 140  # neurons
ADAPTIVE = 100  # neurons
PIXELS = 784  # steps
ANSWER = 56  # steps
IMAGES = 200
BRIGHTNESSES = 40
# Label of an image, and what the chip took it for.
MISTAKEN = (
    (1, 7),
    (3, 5),
    (8, 5),
    (0, 8),
    (9, 3),
    (8, 0),
    (7, 9),
    (3, 2),
    (4, 8),
    (4, 0),
    (2, 3),
)
# Of the chip, by the notebook: W of the neurons' core and of the x86 core beside it,
# and seconds per image.
CORE_DYNAMIC = 1.5835e-3
CORE_STATIC = 1.0064e-3
X86 = 23.344e-3
SECONDS = 13.9856e-3


class Params(NamedTuple):
    """Whole numbers of each neuron: of a weight, the threshold, and of adaptation."""

    scale: jax.Array
    threshold: jax.Array
    adaptation: jax.Array


class State(NamedTuple):
    """Potential and adaptation of each neuron, int32 [B, N]."""

    v: jax.Array
    a: jax.Array


@dataclasses.dataclass(frozen=True)
class Compartment:
    """A neuron of Loihi 1 whose adaptation is a current of its own."""

    decay: int = 204
    adaptation_decay: int = 5
    fires_at_threshold: bool = False

    def init(self, shape: tuple[int, ...] = (), key: Any = None) -> Params:
        adapts = jnp.arange(REGULAR + ADAPTIVE) >= REGULAR
        scale = jnp.where(adapts, 4, 1) * 2**6
        return Params(
            scale=scale,
            threshold=127 * scale,
            adaptation=jnp.where(adapts, 384, 0),
        )

    def start(self, params: Params, shape: tuple[int, ...]) -> State:
        zeros = jnp.zeros(shape, jnp.int32)
        return State(v=zeros, a=zeros)

    def integrate(self, params: Params, state: State, current: jax.Array) -> State:
        charge = params.scale * jnp.round(current).astype(jnp.int32)
        return state._replace(v=decayed(state.v, self.decay) + charge + state.a)

    def fire(self, params: Params, state: State) -> tuple[State, jax.Array]:
        # Of whole numbers, "at V" is "above V - 1".
        threshold = params.threshold - int(self.fires_at_threshold)
        spikes = (state.v > threshold).astype(jnp.int32)
        v = jnp.where(spikes > 0, 0, state.v)
        a = decayed(state.a, self.adaptation_decay) - params.adaptation * spikes
        return State(v, a), spikes.astype(jnp.float32)


FIRES_ABOVE = Compartment()
FIRES_AT = Compartment(fires_at_threshold=True)


def lsnn(weights: dict[str, jax.Array], spikes: jax.Array) -> jax.Array:
    """What arrives at the readout in a step; the neurons are recurrent."""
    with jax.named_scope("hidden"):
        hidden = jax.nn.relu(spikes @ weights["in"])
    return hidden @ weights["out"]


def network(folder: Path, neuron: Compartment) -> tuple[snnjax.SNN, np.ndarray]:
    """The network of the files, and how many synapses each neuron has."""
    weights = [timing.read(folder / name, np.load) for name in WEIGHTS]
    shapes = tuple(array.shape for array in weights)
    are_whole = all((array == np.rint(array)).all() for array in weights)
    if shapes != SHAPES or not are_whole:
        raise SystemExit(
            f"{folder} has weights of the shapes {shapes}; allowed: whole numbers of "
            f"{SHAPES}"
        )
    inward, recurrent, outward = weights
    snn = snnjax.init(
        lsnn,
        {"in": jnp.float32(inward), "out": jnp.float32(outward)},
        jnp.zeros((1, len(inward))),
        model=snnjax.neurons.Recurrent(neuron),
        key=jax.random.key(0),
    )
    ((name, params),) = snn.neurons.items()
    params = params._replace(kernel=jnp.float32(recurrent))
    snn = dataclasses.replace(snn, neurons={name: params})
    input_synapses = np.count_nonzero(inward, axis=1)
    neuron_synapses = np.count_nonzero(recurrent, axis=1)
    neuron_synapses += np.count_nonzero(outward, axis=1)
    neuron_synapses[REGULAR:] += 1  # to its adaptation
    return snn, np.concatenate([input_synapses, neuron_synapses])


def input_spikes(images: np.ndarray) -> np.ndarray:
    """Spikes [T, B, 80] of images [B, 784], 0 .. 255.

    Of 40 brightnesses, two inputs each: the next pixel reaches it, or falls below it.
    One input sends where a pixel has the greatest, the last one while it answers.
    """
    pixels = images.T.astype(int)[..., None]  # [784, B, 1]
    following = np.concatenate([pixels[1:], pixels[-1:]])
    levels = np.floor(np.linspace(0, 255, BRIGHTNESSES)).astype(int)
    spikes = np.zeros((PIXELS + ANSWER, len(images), BRIGHTNESSES, 2), np.float32)
    spikes[:PIXELS, ..., 0] = (pixels < levels) & (following >= levels)
    spikes[:PIXELS, ..., 1] = (pixels >= levels) & (following < levels)
    spikes[..., 0, :] = 0
    spikes[..., -1, :] = 0
    spikes[:PIXELS, :, -1, 0] = pixels[..., 0] == levels[-1]
    spikes[PIXELS:, :, -1, 1] = 1
    return spikes.reshape(len(spikes), len(images), -1)


def run(
    folder: Path, images: np.ndarray, neuron: Compartment = FIRES_ABOVE
) -> tuple[np.ndarray, snnjax.measures.Measures]:
    """Potentials of the readout [B, 10], and what they cost on average."""
    snn, synapses = network(folder, neuron)
    x = input_spikes(images)
    trains = snnjax.measures.spike_trains(
        lsnn,
        snn,
        x,
        steps=len(x),
        inputs="sequence",
    )
    (train,) = trains.values()  # [T, B, N]
    outputs = np.asarray(train @ snn.params["out"])  # as `lsnn` computes them
    spikes = np.asarray(train).sum(0)
    senders = np.concatenate([x.sum(0), spikes], axis=1)
    operations = np.asarray((senders @ synapses).mean())
    # An adaptive neuron takes two compartments of the chip, and a readout one.
    neurons = REGULAR + 2 * ADAPTIVE + outputs.shape[-1]
    zero = np.asarray(0.0)
    measures = snnjax.measures.Measures(
        {},
        neurons=np.asarray(neurons),
        weights=np.asarray(synapses.sum()),
        steps=np.asarray(len(x)),
        firing_rate=np.asarray(spikes.sum(1).mean() / (neurons * len(x))),
        values=np.asarray(2.0),
        macs=np.asarray(synapses.sum() * len(x)),  # of an ANN with this recurrence
        synaptic_operations=operations,
        synaptic_additions=operations,
        input_macs=zero,
        operator_macs=zero,
        wait=zero,
        bits=zero,
    )
    return leaky_potentials(outputs, Compartment.decay)[-1], measures


COLUMNS = {"joules": "uJ per image", "ratio": "of the cores %"}
DECISIONS = {
    "right": "right %",
    "alike": "as on the chip",
    "mistakes": "mistakes",
}


def decisions(potentials: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How many are right, and which mistakes the chip made too.

    The notebook lists the chip's mistakes without the numbers of the images.
    """
    answers = potentials.argmax(-1)
    wrong = answers != labels
    mistakes = list(zip(labels[wrong].tolist(), answers[wrong].tolist(), strict=True))
    alike = Counter(mistakes) & Counter(MISTAKEN)
    return {
        "right": 100 * float((~wrong).mean()),
        "alike": sum(alike.values()),
        "mistakes": words(mistakes),
    }


def words(mistakes: Sequence[tuple[int, int]]) -> str:
    """Label and decision of each."""
    return ", ".join(f"{label} as {answer}" for label, answer in mistakes)


def energies(measures: snnjax.measures.Measures) -> dict[str, float]:
    """Joules per image, as measured on the chip and as estimated here."""
    estimates = snnjax.energy(measures, chip=snnjax.deploy.loihi1())
    return {
        "measured: cores, dynamic": SECONDS * CORE_DYNAMIC,
        "measured: cores, static": SECONDS * CORE_STATIC,
        "measured: x86 core": SECONDS * X86,
        "estimate: operations": float(estimates.operations.spiking),
        "estimate: with memory": float(estimates.memory.spiking),
        "estimate: in integers": float(estimates.quantized.spiking),
        "estimate: energies of the chip": float(estimates.chip),
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """The command: a result with energies and decisions, which are printed too."""
    parser = timing.parser(__doc__)
    parser.add_argument(
        "--weights",
        type=Path,
        required=True,
        metavar="FOLDER",
    )
    parser.add_argument(
        "--mnist",
        type=Path,
        required=True,
        metavar="FOLDER",
    )
    options = parser.parse_args(arguments)
    timing.check_files(parser, options.weights, *WEIGHTS)
    timing.check_files(parser, options.mnist, *MNIST_FILES)
    images, labels = mnist(options.mnist, None)
    if len(images) < IMAGES:
        parser.error(
            f"{options.mnist} has {len(images)} images; allowed: {IMAGES} or more"
        )
    # The images that the notebook draws.
    drawn = np.random.RandomState(0).choice(len(images), IMAGES, replace=False)
    if options.quick:
        drawn = drawn[:20]
    labels = labels[drawn]
    images = images.reshape(len(images), -1)[drawn]
    result = timing.new_result(__doc__, ("jax", "numpy"))
    rules = {}
    for rule, neuron in (("v >= V", FIRES_AT), ("v > V", FIRES_ABOVE)):
        potentials, measures = run(options.weights, images, neuron)
        rules[f"fires at {rule}"] = decisions(potentials, labels)
    rules["the chip"] = {
        "right": 94.5,
        "alike": len(MISTAKEN),
        "mistakes": words(MISTAKEN),
    }
    result["images"] = len(labels)
    result["decisions"] = rules
    result["synaptic_operations"] = float(measures.synaptic_operations)
    result["updates"] = int(measures.neurons * measures.steps)
    for name, joules in energies(measures).items():
        result["sides"][name] = {
            "joules": 1e6 * joules,
            "ratio": 100 * joules / (SECONDS * CORE_DYNAMIC),
        }
    distance = abs(rules["fires at v > V"]["right"] - 94.5)
    goal = timing.target("accuracy, distance from 94.5 %", distance, at_most=1)
    result["targets"].append(goal)
    energy = timing.table_of("energy", COLUMNS, result["sides"])
    text = timing.table_of(f"rule, {len(labels)} images", DECISIONS, rules)
    return timing.report(result, f"{energy}\n\n{text}", options.out)


if __name__ == "__main__":
    main()

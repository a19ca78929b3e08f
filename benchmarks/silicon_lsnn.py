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
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import snnjax
from benchmarks import timing
from benchmarks.silicon import MNIST_FILES, decayed, leaky_potentials, mnist

WEIGHTS = "w_in.npy", "w_rec.npy", "w_out.npy"
SHAPES = (80, 240), (240, 240), (240, 10)
REGULAR, ADAPTIVE = 140, 100
PIXELS, ANSWER = 784, 56  # steps
IMAGES = 200
# Labels of the images that the chip took for something else, in their order, and that.
MISTAKEN = "13809873442", "75583092803"
# Of the chip, by the notebook: W of the neurons' core and of the x86 core beside it,
# and seconds per image.
CORE_DYNAMIC, CORE_STATIC, X86, SECONDS = 1.5835e-3, 1.0064e-3, 23.344e-3, 13.9856e-3


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
        scale = jnp.where(jnp.arange(REGULAR + ADAPTIVE) < REGULAR, 1, 4) * 2**6
        return Params(scale, 127 * scale, jnp.where(scale > 2**6, 384, 0))

    def start(self, params: Params, shape: tuple[int, ...]) -> State:
        nothing = jnp.zeros(shape, jnp.int32)
        return State(nothing, nothing)

    def integrate(self, params: Params, state: State, current: jax.Array) -> State:
        current = params.scale * jnp.round(current).astype(jnp.int32)
        return state._replace(v=decayed(state.v, self.decay) + current + state.a)

    def fire(self, params: Params, state: State) -> tuple[State, jax.Array]:
        most = params.threshold - self.fires_at_threshold
        s = (state.v > most).astype(jnp.int32)
        a = decayed(state.a, self.adaptation_decay) - params.adaptation * s
        return State(jnp.where(s > 0, 0, state.v), a), s.astype(jnp.float32)


FIRES_ABOVE, FIRES_AT = Compartment(), Compartment(fires_at_threshold=True)


def lsnn(weights: dict[str, jax.Array], spikes: jax.Array) -> jax.Array:
    """What arrives at the readout in a step; the neurons are recurrent."""
    with jax.named_scope("hidden"):
        hidden = jax.nn.relu(spikes @ weights["in"])
    return hidden @ weights["out"]


def network(folder: Path, neuron: Compartment) -> tuple[snnjax.SNN, np.ndarray]:
    """The network of the files, and how many synapses each neuron has."""
    weights = into, within, out = [timing.read(folder / n, np.load) for n in WEIGHTS]
    shapes = tuple(w.shape for w in weights)
    if shapes != SHAPES or any((w != np.rint(w)).any() for w in weights):
        found = f"{folder} has weights of the shapes {shapes}"
        raise SystemExit(f"{found}; allowed: whole numbers of {SHAPES}")
    params = {"in": jnp.float32(into), "out": jnp.float32(out)}
    model = snnjax.neurons.Recurrent(neuron)
    x, key = jnp.zeros((1, len(into))), jax.random.key(0)
    snn = snnjax.init(lsnn, params, x, model=model, key=key)
    (name,) = snn.neurons
    own = snn.neurons[name]._replace(kernel=jnp.float32(within))
    snn = dataclasses.replace(snn, neurons={name: own})
    synapses = [np.count_nonzero(w, axis=1) for w in weights]
    adapts = np.arange(REGULAR + ADAPTIVE) >= REGULAR  # a synapse to its adaptation
    return snn, np.concatenate([synapses[0], synapses[1] + synapses[2] + adapts])


def spikes_of(images: np.ndarray) -> np.ndarray:
    """Spikes [T, B, 80] of images [B, 784], 0 .. 255.

    Of 40 brightnesses, two inputs each: the next pixel reaches it, or falls below it.
    One input sends where a pixel has the greatest, the last one while it answers.
    """
    pixels = images.T.astype(int)[..., None]
    following = np.concatenate([pixels[1:], pixels[-1:]])
    levels = np.floor(np.linspace(0, 255, 40)).astype(int)
    spikes = np.zeros((PIXELS + ANSWER, len(images), 40, 2), np.float32)
    spikes[:PIXELS, ..., 0] = (pixels < levels) & (following >= levels)
    spikes[:PIXELS, ..., 1] = (pixels >= levels) & (following < levels)
    spikes[..., 0, :] = spikes[..., 39, :] = 0
    spikes[:PIXELS, :, 39, 0] = pixels[..., 0] == levels[39]
    spikes[PIXELS:, :, 39, 1] = 1
    return spikes.reshape(len(spikes), len(images), -1)


def run(
    folder: Path, images: np.ndarray, neuron: Compartment = FIRES_ABOVE
) -> tuple[np.ndarray, snnjax.measures.Measures]:
    """Potentials of the readout [B, 10], and what they cost on average."""
    snn, synapses = network(folder, neuron)
    x = spikes_of(images)
    options = {"steps": len(x), "inputs": "sequence"}
    (sent,) = snnjax.measures.spike_trains(lsnn, snn, x, **options).values()
    outputs = np.asarray(sent @ snn.params["out"])  # as `lsnn` computes them
    spikes = np.asarray(sent).sum(0)
    operations = (np.concatenate([x.sum(0), spikes], 1) @ synapses).mean()
    # An adaptive neuron takes two compartments of the chip, and a readout one.
    neurons = REGULAR + 2 * ADAPTIVE + outputs.shape[-1]
    counts = {"neurons": neurons, "weights": synapses.sum(), "steps": len(x)}
    counts |= {"firing_rate": spikes.sum(1).mean() / (neurons * len(x)), "values": 2.0}
    counts |= {"macs": synapses.sum() * len(x)}  # of an ANN with this recurrence
    counts |= dict.fromkeys(("synaptic_operations", "synaptic_additions"), operations)
    counts |= dict.fromkeys(("input_macs", "operator_macs", "wait", "bits"), 0.0)
    arrays = {name: np.asarray(count) for name, count in counts.items()}
    measures = snnjax.measures.Measures({}, **arrays)
    return leaky_potentials(outputs, Compartment.decay)[-1], measures


COLUMNS = {"joules": "uJ per image", "ratio": "of the cores %"}
DECISIONS = {"right": "right %", "alike": "as on the chip", "mistakes": "mistakes"}


def words(mistakes: list) -> str:
    """Label and decision of each."""
    return ", ".join(f"{label} as {other}" for label, other in mistakes)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = timing.parser(__doc__)
    options.add_argument("--weights", type=Path, required=True, metavar="FOLDER")
    options.add_argument("--mnist", type=Path, required=True, metavar="FOLDER")
    choice = options.parse_args(arguments)
    timing.check_files(options, choice.weights, *WEIGHTS)
    timing.check_files(options, choice.mnist, *MNIST_FILES)
    images, labels = mnist(choice.mnist, None)
    if len(images) < IMAGES:
        found = f"{choice.mnist} has {len(images)} images"
        options.error(f"{found}; allowed: {IMAGES} or more")
    result = timing.new_result(__doc__, ("jax", "numpy"))
    # The images that the notebook draws.
    drawn = np.random.RandomState(0).choice(len(images), IMAGES, replace=False)
    drawn = drawn[: 20 if choice.quick else None]
    labels, images = labels[drawn], images.reshape(len(images), -1)[drawn]
    # The notebook lists the chip's mistakes without the numbers of the images.
    chip = list(zip(*(map(int, digits) for digits in MISTAKEN), strict=True))
    rules = {}
    for rule, neuron in (("v >= V", FIRES_AT), ("v > V", FIRES_ABOVE)):
        potentials, measures = run(choice.weights, images, neuron)
        taken_for = potentials.argmax(-1)
        wrong = taken_for != labels
        ours = list(zip(labels[wrong], taken_for[wrong], strict=True))
        alike = sum((Counter(ours) & Counter(chip)).values())
        counts = {"right": 100 * float((~wrong).mean()), "alike": alike}
        rules[f"fires at {rule}"] = counts | {"mistakes": words(ours)}
    rules["the chip"] = {"right": 94.5, "alike": len(chip), "mistakes": words(chip)}
    right = rules["fires at v > V"]["right"]
    result |= {"images": len(labels), "decisions": rules}
    result |= {"synaptic_operations": float(measures.synaptic_operations)}
    result |= {"updates": int(measures.neurons * measures.steps)}
    estimates = snnjax.energy(measures, chip=snnjax.deploy.loihi1())
    dynamic = SECONDS * CORE_DYNAMIC
    joules = {
        "measured: cores, dynamic": dynamic,
        "measured: cores, static": SECONDS * CORE_STATIC,
        "measured: x86 core": SECONDS * X86,
        "estimate: operations": estimates.operations.spiking,
        "estimate: with memory": estimates.memory.spiking,
        "estimate: in integers": estimates.quantized.spiking,
        "estimate: energies of the chip": estimates.chip,
    }
    for name, e in joules.items():
        numbers = {"joules": 1e6 * float(e), "ratio": 100 * float(e / dynamic)}
        result["sides"][name] = numbers
    goal = timing.target("accuracy, distance from 94.5 %", abs(right - 94.5), at_most=1)
    result["targets"].append(goal)
    energy = timing.table_of("energy", COLUMNS, result["sides"])
    decisions = timing.table_of(f"rule, {len(labels)} images", DECISIONS, rules)
    return timing.report(result, f"{energy}\n\n{decisions}", choice.out)


if __name__ == "__main__":
    main()

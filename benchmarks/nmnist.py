"""What does the CNN of the NIR paper do on N-MNIST, as it is and converted here?

    python -m benchmarks.nmnist --folder NIR/paper/02_cnn --recordings nmnist.npz \
        --out benchmarks/results/nmnist.json

The folder is paper/02_cnn of github.com/neuromorphs/NIR (BSD-3). It has the network,
``cnn_sinabs.nir``, and the accuracy that each tool of the paper reached on all 10,000
test recordings, ``NAME_accuracy.npy`` (Pedersen et al., Nature Communications 2024).
Recordings are a file of `experiments.data.prepare_nmnist`.

The graph reads events in 300 frames. It is run under both rules of reset and compared
with sinabs, spike by spike (sinabs 3 needs an older nir). Its weights are those of an
ANN that was trained on thirds of a recording, each the sum of its events. That ANN is
converted and quantized.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import snnjax
from benchmarks import mlperf_tiny, timing
from experiments.data import load_events

FILE = "cnn_sinabs.nir"
FRAMES = 300  # of about one millisecond
CALIBRATION = 256
AT_A_TIME = 10  # recordings of all frames
PUBLISHED = {"lava": "Lava", "nengo": "Nengo", "norse": "Norse"}
PUBLISHED |= {"s2_brian2": "SpiNNaker 2, simulated", "s2": "SpiNNaker 2, the chip"}
PUBLISHED |= {"sinabs": "sinabs", "snntorch": "snnTorch", "speck": "Speck, the chip"}
PUBLISHED |= {"spyx": "Spyx"}
ROWS = mlperf_tiny.Row("rate", 8, 0, 8), mlperf_tiny.Row("radix", 4, 1, 8)


class Network(NamedTuple):
    """The graph, and what it reads."""

    graph: Any  # as the package nir reads it
    fn: Any  # of the graph, by `snnjax.deploy.as_function`, as the SNN
    snn: snnjax.SNN
    frames: np.ndarray  # [B, T, H, W, 2], counts of test events
    thirds: np.ndarray  # [3 B, H, W, 2], the sums of a third of a test recording
    calibration: np.ndarray  # [B, H, W, 2], such sums of training recordings
    labels: np.ndarray  # [B]


def network_of(folder: Path, recordings: str, count: int | None) -> Network:
    """Read the graph and the first `count` test recordings."""
    import nir

    graph = nir.read(str(folder / FILE))
    frames = load_events(recordings, FRAMES).test_images[:count]
    thirds = load_events(recordings, 3)
    return Network(
        graph,
        *snnjax.deploy.as_function(snnjax.deploy.from_nir(graph)),
        frames,
        np.concatenate(thirds.test_images[:count]).astype(np.float32),
        thirds.train_images[:CALIBRATION, 0].astype(np.float32),
        thirds.test_labels[:count],
    )


def events_through(network: Network, reset: str) -> np.ndarray:
    """Output spikes [T, B, 10] of snnjax."""
    model = snnjax.integrate_and_fire(levels=(0, 1), reset=reset)  # type: ignore
    snn = dataclasses.replace(network.snn, model=model)
    options: Any = {"inputs": "sequence", "execution": 1}
    spiking = jax.jit(snnjax.spiking(network.fn, steps=FRAMES, **options))

    def run(frames: np.ndarray) -> jax.Array:
        return spiking(snn, frames.swapaxes(0, 1).astype(np.float32))

    return timing.in_parts(run, network.frames, AT_A_TIME, axis=1)


def sinabs_outputs(network: Network, reset: str) -> np.ndarray | None:
    """Output spikes [T, B, 10] of sinabs under the same rule; None without sinabs."""
    try:
        import sinabs.layers
        import torch
        from sinabs import activation
        from sinabs.nir import from_nir
    except ImportError:
        return None
    rule = {"zero": activation.MembraneReset, "subtract": activation.MembraneSubtract}

    def run(frames: np.ndarray) -> np.ndarray:
        module = from_nir(network.graph, batch_size=len(frames))
        for part in module.modules():
            if isinstance(part, sinabs.layers.IAFSqueeze):
                part.spike_fn, part.min_v_mem = activation.SingleSpike, None
                part.reset_fn = rule[reset]()
        x = torch.tensor(frames).float().permute(0, 1, 4, 2, 3)
        with torch.no_grad():
            spikes = module(x.flatten(0, 1))
        spikes = spikes[0] if isinstance(spikes, tuple) else spikes
        return spikes.reshape(len(x), FRAMES, -1).numpy().swapaxes(0, 1)

    return timing.in_parts(run, network.frames, AT_A_TIME, axis=1)


def compared(network: Network, reset: str) -> dict[str, dict]:
    """Rows of snnjax and sinabs under one rule."""
    ours, theirs = events_through(network, reset), sinabs_outputs(network, reset)

    def row(outputs: np.ndarray) -> dict[str, Any]:
        right = timing.percent(outputs.sum(0), network.labels)
        return {"T": FRAMES, "recordings": len(network.labels), "accuracy": right}

    rows = {f"snnjax, reset {reset}": row(ours)}
    if theirs is not None:
        counts = {"spikes": int(np.count_nonzero(theirs))}
        counts |= {"differ": int((ours != theirs).sum())}
        rows[f"sinabs, reset {reset}"] = row(theirs) | counts
    return rows


def converted(network: Network) -> dict[str, dict]:
    """The ANN, its conversions, and these in 8 bits."""
    inputs = network.calibration, network.thirds, np.repeat(network.labels, 3)
    task = mlperf_tiny.Task(network.fn, network.snn.params, *inputs)
    rows = {}
    for row in mlperf_tiny.converted(task, ROWS):
        bits = "" if row["numbers"] == "float" else f", {row['numbers']}"
        name = f"converted, {row['code']}{bits}" if "code" in row else "ANN, on thirds"
        shared = {key: row[key] for key in ("T", "accuracy") if key in row}
        rows[name] = {"recordings": len(network.labels)} | shared
    return rows


def published(folder: Path) -> dict[str, dict]:
    """Accuracies that the paper measured."""
    row, rows = {"T": FRAMES, "recordings": 10_000}, {}
    for name in PUBLISHED:
        if (file := folder / f"{name}_accuracy.npy").exists():
            right = 100 * float(np.load(file))
            rows[f"{PUBLISHED[name]}, by the paper"] = row | {"accuracy": right}
    return rows


COLUMNS = {"T": "T", "recordings": "recordings", "accuracy": "accuracy %"}
COLUMNS |= {"spikes": "output spikes", "differ": "outputs that differ"}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = timing.parser(__doc__)
    options.add_argument("--folder", type=Path, required=True, help="of the CNN")
    options.add_argument("--recordings", required=True, help="a prepared .npz file")
    choice = options.parse_args(arguments)
    timing.check_files(options, choice.folder, FILE)
    result = timing.new_result(__doc__, ("jax", "numpy", "nir", "sinabs", "torch"))
    network = network_of(choice.folder, choice.recordings, 10 if choice.quick else None)
    sides = converted(network)
    for reset in ("zero", "subtract"):
        sides |= compared(network, reset)
    result["sides"] = sides = sides | published(choice.folder)
    return timing.report(result, timing.table_of("network", COLUMNS, sides), choice.out)


if __name__ == "__main__":
    main()

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
from benchmarks.mlperf_tiny import Row
from experiments.data import load_events

FILE = "cnn_sinabs.nir"
FRAMES = 300  # of about one millisecond
CALIBRATION = 256
BATCH = 10  # recordings of all frames
PUBLISHED = {
    "lava": "Lava",
    "nengo": "Nengo",
    "norse": "Norse",
    "s2_brian2": "SpiNNaker 2, simulated",
    "s2": "SpiNNaker 2, the chip",
    "sinabs": "sinabs",
    "snntorch": "snnTorch",
    "speck": "Speck, the chip",
    "spyx": "Spyx",
}
ROWS = (
    Row(
        "rate",
        steps=8,
        wait=0,
        bits=8,
    ),
    Row(
        "radix",
        steps=4,
        wait=1,
        bits=8,
    ),
)


class Network(NamedTuple):
    """The graph, and what it reads."""

    graph: Any  # as the package nir reads it
    fn: Any  # of the graph, by `snnjax.deploy.as_function`, as the SNN
    snn: snnjax.SNN
    frames: np.ndarray  # [B, T, H, W, 2], counts of test events
    thirds: np.ndarray  # [3 B, H, W, 2], the sums of a third of a test recording
    calibration: np.ndarray  # [B, H, W, 2], such sums of training recordings
    labels: np.ndarray  # [B]


def read_network(folder: Path, recordings: str, count: int | None) -> Network:
    """Read the graph and the first `count` test recordings."""
    import nir

    graph = nir.read(str(folder / FILE))
    fn, snn = snnjax.deploy.as_function(snnjax.deploy.from_nir(graph))
    frames = load_events(recordings, FRAMES).test_images[:count]
    thirds = load_events(recordings, 3)
    return Network(
        graph=graph,
        fn=fn,
        snn=snn,
        frames=frames,
        thirds=np.concatenate(thirds.test_images[:count]).astype(np.float32),
        calibration=thirds.train_images[:CALIBRATION, 0].astype(np.float32),
        labels=thirds.test_labels[:count],
    )


def snnjax_outputs(network: Network, reset: str) -> np.ndarray:
    """Output spikes [T, B, 10] of snnjax."""
    model = snnjax.integrate_and_fire(levels=(0, 1), reset=reset)  # type: ignore
    snn = dataclasses.replace(network.snn, model=model)
    spiking = jax.jit(
        snnjax.spiking(
            network.fn,
            steps=FRAMES,
            inputs="sequence",
            execution=1,
        )
    )

    def run(frames: np.ndarray) -> jax.Array:
        return spiking(snn, frames.swapaxes(0, 1).astype(np.float32))

    return timing.in_parts(run, network.frames, BATCH, axis=1)


def sinabs_outputs(network: Network, reset: str) -> np.ndarray | None:
    """Output spikes [T, B, 10] of sinabs under the same rule; None without sinabs."""
    try:
        import sinabs.layers
        import torch
        from sinabs import activation
        from sinabs.nir import from_nir
    except ImportError:
        return None
    resets = {"zero": activation.MembraneReset, "subtract": activation.MembraneSubtract}

    def run(frames: np.ndarray) -> np.ndarray:
        module = from_nir(network.graph, batch_size=len(frames))
        for part in module.modules():
            if isinstance(part, sinabs.layers.IAFSqueeze):
                part.spike_fn = activation.SingleSpike
                part.min_v_mem = None
                part.reset_fn = resets[reset]()
        x = torch.tensor(frames).float().permute(0, 1, 4, 2, 3)
        with torch.no_grad():
            spikes = module(x.flatten(0, 1))
        if isinstance(spikes, tuple):
            spikes = spikes[0]
        return spikes.reshape(len(x), FRAMES, -1).numpy().swapaxes(0, 1)

    return timing.in_parts(run, network.frames, BATCH, axis=1)


def compared_rows(network: Network, reset: str) -> dict[str, dict]:
    """Rows of snnjax and sinabs under one rule."""

    def row(outputs: np.ndarray) -> dict[str, Any]:
        return {
            "T": FRAMES,
            "recordings": len(network.labels),
            "accuracy": timing.percent(outputs.sum(0), network.labels),
        }

    outputs = snnjax_outputs(network, reset)
    rows = {f"snnjax, reset {reset}": row(outputs)}
    peer_outputs = sinabs_outputs(network, reset)
    if peer_outputs is not None:
        rows[f"sinabs, reset {reset}"] = {
            **row(peer_outputs),
            "spikes": int(np.count_nonzero(peer_outputs)),
            "differ": int((outputs != peer_outputs).sum()),
        }
    return rows


def converted_rows(network: Network) -> dict[str, dict]:
    """The ANN, its conversions, and these in 8 bits."""
    task = mlperf_tiny.Task(
        fn=network.fn,
        params=network.snn.params,
        calibration=network.calibration,
        x=network.thirds,
        labels=np.repeat(network.labels, 3),
    )
    recordings = len(network.labels)
    ann = mlperf_tiny.ann_row(task)
    rows = {"ANN, on thirds": {"recordings": recordings, "accuracy": ann["accuracy"]}}
    for conversion in ROWS:
        for row in mlperf_tiny.converted_rows(task, conversion):
            name = f"converted, {row['code']}"
            if row["numbers"] != "float":
                name = f"{name}, {row['numbers']}"
            rows[name] = {
                "recordings": recordings,
                "T": row["T"],
                "accuracy": row["accuracy"],
            }
    return rows


def published_rows(folder: Path) -> dict[str, dict]:
    """Accuracies that the paper measured."""
    rows = {}
    for name, title in PUBLISHED.items():
        file = folder / f"{name}_accuracy.npy"
        if file.exists():
            rows[f"{title}, by the paper"] = {
                "T": FRAMES,
                "recordings": 10_000,
                "accuracy": 100 * float(np.load(file)),
            }
    return rows


COLUMNS = {
    "T": "T",
    "recordings": "recordings",
    "accuracy": "accuracy %",
    "spikes": "output spikes",
    "differ": "outputs that differ",
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """The command: a result with a row for each network, which is printed too."""
    parser = timing.parser(__doc__)
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        help="of the CNN",
    )
    parser.add_argument("--recordings", required=True, help="a prepared .npz file")
    options = parser.parse_args(arguments)
    timing.check_files(parser, options.folder, FILE)
    result = timing.new_result(__doc__, ("jax", "numpy", "nir", "sinabs", "torch"))
    count = 10 if options.quick else None
    network = read_network(options.folder, options.recordings, count)
    sides = result["sides"]
    sides |= converted_rows(network)
    for reset in ("zero", "subtract"):
        sides |= compared_rows(network, reset)
    sides |= published_rows(options.folder)
    text = timing.table_of("network", COLUMNS, sides)
    return timing.report(result, text, options.out)


if __name__ == "__main__":
    main()

"""Rasters: the spikes of a site for one image, in real time."""

import jax
import numpy as np

import snnjax
from experiments.report.drawing import COLORS, Panel, every

NEURONS = 40  # rows of a raster


def raster(name: str, spikes: np.ndarray, first: int, latency: int) -> Panel:
    """Spikes of one site for one image, in real time: some of its neurons.

    Args:
        name: of the site.
        spikes: [T, ...], bool or levels, of which those below 0 have another color.
        first: step, from 1, in which the site may fire for the first time.
        latency: step of the network's answer, where the axis ends.
    """
    steps = len(spikes)
    spikes = spikes.reshape(steps, -1)
    neurons = spikes.shape[1]
    some = np.linspace(0, neurons - 1, min(NEURONS, neurons)).round().astype(int)
    last = first + steps - 1
    rate = 100 * (spikes != 0).mean()
    title = f"{name}: {rate:.1f} %, steps {first} to {last}"
    label = (
        f"Spikes of {name}: rate {rate:.1f} %; it may fire in steps {first} to {last}."
    )

    def draw(axis) -> None:
        axis.axvspan(first - 0.5, last + 0.5, color=COLORS["window"], linewidth=0)
        for fired, color in ((spikes > 0, "ink"), (spikes < 0, "c1")):
            step, neuron = np.nonzero(fired[:, some])
            # Dashes as one line, which NaN interrupts.
            x = np.stack(
                [step + first - 0.4, step + first + 0.4, np.full(len(step), np.nan)]
            )
            y = np.repeat(neuron, 3)
            style = {"linewidth": 1.6, "solid_capstyle": "butt"}
            axis.plot(x.T.ravel(), y, color=COLORS[color], **style)
        axis.set(xlim=(0.5, latency + 0.5), ylim=(len(some), -1), yticks=[])
        distance = every(latency, 16)
        steps_shown = [t for t in range(1, latency + 1) if t == 1 or t % distance == 0]
        axis.set_xticks(steps_shown)
        axis.spines["left"].set_visible(False)
        axis.grid(visible=False)

    return Panel(title, label, 30 + 3.5 * len(some), draw)


def spikes_of(fn, snn: snnjax.SNN, image: jax.Array) -> dict[str, np.ndarray]:
    """Site -> spikes [T, ...] of an image [1, ...], bool or levels."""

    @jax.jit
    def trains(snn, x):
        run = {"steps": snn.steps, "wait": snn.wait}
        return snnjax.measures.spike_trains(fn, snn, x, **run)

    return {name: np.asarray(t)[:, 0] for name, t in trains(snn, image).items()}


def rasters(
    trains: dict[str, np.ndarray], sites: snnjax.network.Sites, snn: snnjax.SNN
) -> list[Panel]:
    """One of every site that fires, in order."""
    latency = snnjax.latency(sites, steps=snn.steps, wait=snn.wait)
    return [
        raster(site.name, trains[site.name], 1 + site.depth * snn.wait, latency)
        for site in sites
        if site.fires
    ]

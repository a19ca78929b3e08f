"""A user's script for a type checker: correct calls, then one mistake in each line.

It is never run. `test_types.py` says which lines a checker must find, and no others.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import snnjax
from snnjax import calibrators, training


def network(params, x):
    return jax.nn.relu(x @ params["hidden"]) @ params["readout"]


params = {"hidden": jnp.ones((8, 32)), "readout": jnp.ones((32, 3))}
images = np.zeros((256, 8), np.float32)
print(snnjax.sites(network, params, images))
snn = snnjax.convert(
    network, params, images, steps=4, recipe=snnjax.light(per="channel")
)
signed = snnjax.convert(
    network,
    params,
    jnp.asarray(images),
    steps=4,
    model=snnjax.integrate_and_fire(levels=(-1, 1)),
)
spiking = jax.jit(snnjax.spiking(network, steps=4, execution=4))
outputs = spiking(snn, images)
mean = outputs.mean(0)
print(snn.params["hidden"].shape, snn.neurons["hidden/relu"].threshold)
simulate = snnjax.spiking(network, steps=4, inputs="sequence")
sequence = simulate(snn, jnp.zeros((4, *images.shape)))


def loss(snn: snnjax.SNN, x, y):
    return training.mean_cross_entropy(snnjax.spiking(network, steps=4)(snn, x), y)


init, step = training.descent(loss, optax.adam(1e-3))
snn2, state, value = step(snn, init(snn), images, jnp.zeros(256, int))
tuned = training.finetune(network, snn, [(images, jnp.zeros(256, int))], epochs=1).snn
measures = snnjax.measure(network, snn, images, params=params)
for name, site in measures.sites.items():
    print(name, float(site.firing_rate))
joules = snnjax.energy(measures).operations[0]
recipe = snnjax.Recipe(
    [calibrators.percentile_threshold(99.5), calibrators.half_charge()]
)


def my(view: calibrators.View, fit: calibrators.Fit) -> calibrators.Fit:
    return fit._replace(
        neurons=fit.neurons._replace(threshold=2 * fit.neurons.threshold)
    )


snnjax.save("a.safetensors", snn, fn=network, x=images[:1])
stored = snnjax.load("a.safetensors")
stored.run(images)
# ---------------------------------------------------------------------- mistakes
snnjax.convert(network, params, images, step=4)
snnjax.spiking(network, steps="4")
snnjax.spiking(network, steps=4, execution="by_layer")
snnjax.spiking(network, steps=4, inputs="constnt")
snnjax.light(per="chanel")
snnjax.integrate_and_fire(levels=1)
snnjax.integrate_and_fire(reset="substract")
simulate(snn)
print(snn.parameters)
print(snnjax.convret)

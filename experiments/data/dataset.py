"""A data set as a value, and the images that a network sees of it.

Images are uint8, and so are the steps of most sequences. `augment` and `normalize` are
JAX, for use inside a jitted step of training.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class MissingDataError(RuntimeError):
    """A data set is not on this machine; the message says how to provide it."""


class Dataset(NamedTuple):
    """Images [N, H, W, C] with labels [N] as int32, for training and test.

    Or sequences of features [N, T, F], or of images [N, T, H, W, C].
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    mean: tuple[float, ...]  # per channel of the training images, in 0..255
    std: tuple[float, ...]
    num_classes: int
    evaluated_on: str = "test images"  # kind of the test images, for texts
    train_groups: np.ndarray | None = None  # [N], such as the speaker of a recording
    choice: tuple[np.ndarray, np.ndarray] | None = None  # held out, to choose options

    @property
    def is_sequence(self) -> bool:
        """Whether examples have a time axis of their own."""
        return self.train_images.ndim != 4

    def facts(self) -> dict[str, Any]:
        """Fields that describe the images in the card of a network."""
        return {
            "dataset": self.name,
            "num_classes": self.num_classes,
            "input_shape": list(self.train_images.shape[1:]),
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def first(self, count: int | None) -> "Dataset":
        """The same data set with the first `count` training images; None: all."""
        if count is not None and count > len(self.train_images):
            raise ValueError(
                f"train_images {count} exceeds the {len(self.train_images)} training "
                f"images of {self.name}; choose fewer"
            )
        return self._only(slice(count))

    def _only(self, part: Any) -> "Dataset":
        groups = self.train_groups
        return self._replace(
            train_images=self.train_images[part],
            train_labels=self.train_labels[part],
            train_groups=None if groups is None else groups[part],
        )

    def with_choice(self, share: float) -> "Dataset":
        """Holds out a share of the training examples, whole groups, for choices.

        A data set that came with such examples keeps its own.
        """
        if self.choice is not None or not share:
            return self
        groups = self.train_groups
        groups = np.arange(len(self.train_labels)) if groups is None else groups
        rest, chosen = split(groups, (1 - share, share))
        choice = self.train_images[chosen], self.train_labels[chosen]
        return self._only(rest)._replace(choice=choice)

    def held_back(self, count: int) -> "Dataset":
        """Takes the last `count` training images as test images; 0: no change."""
        if count == 0:
            return self
        first_test = len(self.train_images) - count
        if first_test < 1:
            raise ValueError(
                f"held_back is {count}; allowed: fewer than the "
                f"{len(self.train_images)} training images of {self.name}"
            )
        return self.first(first_test)._replace(
            test_images=self.train_images[first_test:],
            test_labels=self.train_labels[first_test:],
            evaluated_on="training images held back",
        )


def split(groups: np.ndarray, shares: tuple[float, ...]) -> list[np.ndarray]:
    """Numbers of examples, in parts of about these shares; no group is in two parts.

    The same groups are split alike, whatever the seed of a training.
    """
    names, of_examples = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(names))
    sizes = np.bincount(of_examples)[order].cumsum() - np.bincount(of_examples)[order]
    part_of_name = np.empty(len(names), int)
    ends = np.cumsum(shares)[:-1] * len(groups)
    part_of_name[order] = np.searchsorted(ends - 1e-6, sizes)
    parts = part_of_name[of_examples]
    return [np.flatnonzero(parts == part) for part in range(len(shares))]


def normalize(dataset: Dataset, images: jax.Array) -> jax.Array:
    """Images in 0..255 as float32 of mean 0, deviation 1 per channel, the last axis."""
    mean, std = (jnp.asarray(x, jnp.float32) for x in (dataset.mean, dataset.std))
    images = jnp.asarray(images).astype(jnp.float32)
    axes = (1,) * (images.ndim - 1)
    return (images - mean.reshape(*axes, -1)) / std.reshape(*axes, -1)


def normalized_as(dataset: Dataset, card: Mapping[str, Any]) -> Dataset:
    """The same images, with the normalization of the network's training images.

    That is `mean` and `std` of its card, per channel of pixels in 0..255. Without both,
    the data set stays unchanged.
    """
    mean, std = card.get("mean"), card.get("std")
    if mean is None and std is None:
        return dataset
    channels = dataset.train_images.shape[-1]
    if mean is None or std is None or not len(mean) == len(std) == channels:
        raise ValueError(
            f"the card of the network has mean {mean} and std {std}; give both, with "
            f"the {channels} channels of {dataset.name}, or leave both out"
        )
    if max(std) < 1 <= min(dataset.std):
        raise ValueError(
            f"std {list(std)} in the card of the network is of pixels in 0..1, but "
            "here they are in 0..255; multiply its mean and std by 255"
        )
    return dataset._replace(mean=tuple(mean), std=tuple(std))


@partial(jax.jit, static_argnames=("flip", "padding"))
def augment(
    key: jax.Array, images: jax.Array, *, flip: bool, padding: int
) -> jax.Array:
    """Random crop after zero-padding by `padding`, and random horizontal flip.

    Args:
        key: the only source of randomness.
        images: [N, H, W, C] of any dtype; the result has the same.
        flip: mirror each image with probability one half; not for digits.
        padding: pixels added on each side, 0 for no cropping.
    """
    crop_key, flip_key = jax.random.split(key)
    batch, height, width, channels = images.shape
    if padding:
        sides = (padding, padding)
        padded = jnp.pad(images, ((0, 0), sides, sides, (0, 0)))
        corner = jax.random.randint(crop_key, (batch, 2), 0, 2 * padding + 1)
        size = (height, width, channels)
        images = jax.vmap(
            lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), size)
        )(padded, corner)
    if flip:
        mirror = jax.random.bernoulli(flip_key, shape=(batch, 1, 1, 1))
        images = jnp.where(mirror, images[:, :, ::-1], images)
    return images


@partial(jax.jit, static_argnames=("shift", "mask"))
def augment_sequences(
    key: jax.Array, x: jax.Array, mean: jax.Array, *, shift: int, mask: int
) -> jax.Array:
    """Sequences [N, T, F] shifted in time, with a band of steps and of features off.

    As SpecAugment (Park et al., 2019) does for sound, what is off has the mean.

    Args:
        key: the only source of randomness.
        x: of any dtype; the result has the same.
        mean: of the features [F].
        shift: steps by which an example is earlier or later, at most; edges are held.
        mask: the widest band.
    """
    keys = jax.random.split(key, 5)
    (count, *sizes), steps = x.shape, x.shape[1]
    if shift:
        by = jax.random.randint(keys[0], (count, 1), -shift, shift + 1)
        times = jnp.clip(jnp.arange(steps) + by, 0, steps - 1)
        x = jnp.take_along_axis(x, times[..., None], 1)
    for axis, size in enumerate(sizes if mask else ()):
        first = jax.random.randint(keys[1 + axis], (count, 1, 1), 0, size)
        width = jax.random.randint(keys[3 + axis], (count, 1, 1), 0, mask + 1)
        place = jnp.arange(size).reshape((1, size, 1) if axis == 0 else (1, 1, size))
        off = (place >= first) & (place < first + width)
        x = jnp.where(off, mean.astype(x.dtype), x)
    return x

"""A data set as a value, and the images that a network sees of it.

Images are uint8; those of an `Unread` stay on the disk until they are indexed.
`augment` and `normalize` are JAX, for use inside a jitted step of training.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class MissingDataError(RuntimeError):
    """A data set is not on this machine; the message says how to provide it."""


@dataclasses.dataclass(frozen=True)
class Unread:
    """Images that are read when they are indexed by number, slice, list or mask.

    Attributes:
        read: numbers -> these images, each uint8 [H, W, C].
        count: N.
        image_shape: (H, W, C).
    """

    read: Callable[[Sequence[int]], Iterable[np.ndarray]]
    count: int
    image_shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count, *self.image_shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape)

    def first(self, count: int | None) -> "Unread":
        """The first of them, or all; unread too."""
        return dataclasses.replace(self, count=len(range(self.count)[:count]))

    def __getitem__(self, index) -> np.ndarray:
        if isinstance(index, tuple) or index is None or index is Ellipsis:
            raise IndexError(
                f"index {index!r} of images that are not read yet; allowed: a number, "
                "a slice, a list or a mask of images. Choose pixels of what comes back"
            )
        numbers = np.arange(self.count)[index]
        images = np.empty((numbers.size, *self.image_shape), np.uint8)
        for place, image in enumerate(self.read(numbers.ravel().tolist())):
            images[place] = image
        return images.reshape(*numbers.shape, *self.image_shape)

    def __array__(self, *_, **__):
        size = f"{self.nbytes / 1e9:.3g} GB"
        raise TypeError(f"{self.count} images of {size} are not read yet; index them")


class Dataset(NamedTuple):
    """Images [N, H, W, C] as uint8 with labels [N] as int32, for training and test."""

    name: str
    train_images: np.ndarray | Unread
    train_labels: np.ndarray
    test_images: np.ndarray | Unread
    test_labels: np.ndarray
    mean: tuple[float, ...]  # per channel of the training images, in 0..255
    std: tuple[float, ...]
    num_classes: int
    evaluated_on: str = "test images"  # what the test images are

    def first(self, count: int | None) -> "Dataset":
        """The same data set with the first `count` training images; None: all.

        Raises:
            ValueError: there are fewer.
        """
        if count is not None and count > len(self.train_images):
            raise ValueError(
                f"train_images {count} exceeds the {len(self.train_images)} training "
                f"images of {self.name}; choose fewer"
            )
        return self._replace(
            train_images=_first(self.train_images, count),
            train_labels=self.train_labels[:count],
        )

    def held_back(self, count: int) -> "Dataset":
        """Takes the last `count` training images as test images; 0: no change.

        Raises:
            ValueError: there are not more training images than that.
        """
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


def _first(images: np.ndarray | Unread, count: int | None):
    return images.first(count) if isinstance(images, Unread) else images[:count]


@dataclasses.dataclass(frozen=True)
class Normalized:
    """The first test images as `normalize` gives them, computed when they are indexed.

    All of them as float32 would take four times the memory of the data set.

    Attributes:
        dataset: whose test images these are.
        count: number of images.
    """

    dataset: Dataset
    count: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count, *self.dataset.test_images.shape[1:])

    def __getitem__(self, index: slice | np.ndarray) -> jax.Array:
        images = _first(self.dataset.test_images, self.count)
        return normalize(self.dataset, images[index])


def normalize(dataset: Dataset, images: jax.Array) -> jax.Array:
    """Images [N, H, W, C] in 0..255 as float32 of mean 0, deviation 1 per channel."""
    mean = jnp.asarray(dataset.mean, jnp.float32).reshape(1, 1, 1, -1)
    std = jnp.asarray(dataset.std, jnp.float32).reshape(1, 1, 1, -1)
    return (jnp.asarray(images).astype(jnp.float32) - mean) / std


def normalized_as(dataset: Dataset, card: Mapping[str, Any]) -> Dataset:
    """The same images, with the normalization of the network's training images.

    Args:
        dataset: images for the network.
        card: card of the network, with `mean` and `std` per channel of pixels in
            0..255. Without both, the data set stays unchanged.

    Raises:
        ValueError: only one is there, or they do not fit the images.
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

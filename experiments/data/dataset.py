"""A data set as a value, and the images that a network sees of it.

Images are uint8, and so are the steps of most sequences. `augment` and `normalize` are
JAX, for use inside a jitted step of training; everything else is NumPy.
"""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# The mean and the standard deviation of each channel.
Normalization = tuple[tuple[float, ...], tuple[float, ...]]


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
    # How mean and std follow from training images; None: they were given, and stay.
    normalization: Callable[[np.ndarray], Normalization] | None = None

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

    def _only(self, selection: slice | np.ndarray) -> "Dataset":
        """The same data set with a selection of its training images."""
        groups = self.train_groups
        if groups is not None:
            groups = groups[selection]
        return self._replace(
            train_images=self.train_images[selection],
            train_labels=self.train_labels[selection],
            train_groups=groups,
        )

    def with_choice(self, share: float) -> "Dataset":
        """Holds out a share of the training examples, to choose options by them.

        Groups stay whole: a speaker is in the training or in the choice. The mean and
        the standard deviation become those of the examples that stay. A data set that
        came with a choice keeps it, and so does one of which no share is asked.

        Raises:
            ValueError: there are fewer than two groups.
        """
        if self.choice is not None or not share:
            return self
        groups = self.train_groups
        if groups is None:
            groups = np.arange(len(self.train_labels))
        try:
            trained, chosen = split(groups, (1 - share, share))
        except ValueError as error:
            raise ValueError(
                f"no choice can be held out of the training examples of {self.name}: "
                f"{error}. Give --choice 0"
            ) from None
        choice = self.train_images[chosen], self.train_labels[chosen]
        data = self._only(trained)._replace(choice=choice)
        if self.normalization is not None:
            mean, std = self.normalization(data.train_images)
            data = data._replace(mean=mean, std=std)
        if self.is_sequence:
            warn_copies(
                self.name,
                training=named("training", data.train_images),
                held_out=named("choice", choice[0]),
            )
        return data

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


# ------------------------------------------------------------------ parts of a set


def split(groups: np.ndarray, shares: Sequence[float]) -> list[np.ndarray]:
    """Numbers of examples, in parts of about these shares; no group is in two parts.

    A group belongs to the part in which it begins, but every part has a group. The
    same groups are split alike, whatever the seed of a training.

    Raises:
        ValueError: there are fewer groups than parts.

    >>> split(np.array(["ann", "ann", "bob", "bob"]), (0.9, 0.1))
    [array([0, 1]), array([2, 3])]
    """
    names, group_numbers = np.unique(groups, return_inverse=True)
    if len(names) < len(shares):
        raise ValueError(
            f"{len(names)} groups cannot be in {len(shares)} parts; allowed: a group, "
            "such as a speaker, for each part"
        )
    order = np.random.default_rng(0).permutation(len(names))
    sizes = np.bincount(group_numbers)[order]
    begins = np.cumsum(sizes) - sizes
    ends = np.cumsum(shares)[:-1] * len(groups)
    # Part i has the groups order[cuts[i] : cuts[i + 1]].
    cuts = [0, *np.searchsorted(begins, ends - 1e-6), len(names)]
    for i in range(1, len(shares)):
        cuts[i] = max(cuts[i], cuts[i - 1] + 1)
    for i in reversed(range(1, len(shares))):
        cuts[i] = min(cuts[i], cuts[i + 1] - 1)
    parts = []
    for start, end in zip(cuts[:-1], cuts[1:], strict=True):
        parts.append(np.flatnonzero(np.isin(group_numbers, order[start:end])))
    return parts


def check_labels(name: str, num_classes: int, **labels: np.ndarray) -> None:
    """Raise unless the labels of each part are classes of the training examples."""
    for part, numbers in labels.items():
        if not len(numbers):
            raise ValueError(f"{name} has no {part} examples; copy its files anew")
        if numbers.min() < 0 or numbers.max() >= num_classes:
            raise ValueError(
                f"{name} has {part} labels from {numbers.min()} to {numbers.max()}; "
                f"allowed: 0 to {num_classes - 1}, the classes of its training "
                "examples. Copy its files anew, or leave out other classes"
            )


def named(part: str, recordings: np.ndarray) -> dict[str, np.ndarray]:
    """The recordings of a part by their names, for `warn_copies`."""
    return {f"{part} recording {i}": array for i, array in enumerate(recordings)}


def warn_copies(
    name: str,
    *,
    training: Mapping[str, np.ndarray],
    held_out: Mapping[str, np.ndarray],
) -> None:
    """Warn if a recording that is held out is also in the training."""

    def digest(array: np.ndarray) -> bytes:
        return hashlib.sha256(np.ascontiguousarray(array)).digest()

    originals = {digest(array): title for title, array in training.items()}
    copies = []
    for title, array in held_out.items():
        original = originals.get(digest(array))
        if original is not None:
            copies.append(f"{title} equals {original}")
    if copies:
        warnings.warn(
            f"{len(copies)} held-out recordings of {name} are equal to training "
            f"recordings, so accuracies are too high: {copies[0]}. Remove the copies",
            stacklevel=3,
        )


# ------------------------------------------------------------------- normalization


def normalize(dataset: Dataset, images: jax.Array) -> jax.Array:
    """Images in 0..255 as float32 of mean 0, deviation 1 per channel, the last axis."""
    mean = jnp.asarray(dataset.mean, jnp.float32)
    std = jnp.asarray(dataset.std, jnp.float32)
    return (jnp.asarray(images).astype(jnp.float32) - mean) / std


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
            f"the card of the network has mean {mean} and std {std}; give both, each "
            f"with a number per channel of {dataset.name} ({channels}), or neither"
        )
    if max(std) < 1 <= min(dataset.std):
        raise ValueError(
            f"std {list(std)} in the card of the network is of pixels in 0..1, but "
            "here they are in 0..255; multiply its mean and std by 255"
        )
    return dataset._replace(mean=tuple(mean), std=tuple(std), normalization=None)


# -------------------------------------------------------------------- augmentation


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
        edge = (padding, padding)
        padded = jnp.pad(images, ((0, 0), edge, edge, (0, 0)))
        corners = jax.random.randint(crop_key, (batch, 2), 0, 2 * padding + 1)

        def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
            start = (corner[0], corner[1], 0)
            return jax.lax.dynamic_slice(image, start, (height, width, channels))

        images = jax.vmap(crop)(padded, corners)
    if flip:
        is_mirrored = jax.random.bernoulli(flip_key, shape=(batch, 1, 1, 1))
        images = jnp.where(is_mirrored, images[:, :, ::-1], images)
    return images


@partial(jax.jit, static_argnames=("shift", "mask"))
def augment_sequences(
    key: jax.Array, x: jax.Array, mean: jax.Array, *, shift: int, mask: int
) -> jax.Array:
    """Sequences [N, T, F] shifted in time, with a band of steps and of features off.

    As in SpecAugment (Park et al., 2019) for sound, the mean replaces what is off.

    Args:
        key: the only source of randomness.
        x: of any dtype; the result has the same.
        mean: of the features [F].
        shift: steps by which an example is earlier or later, at most; the first or
            the last step fills the gap.
        mask: largest width of a band; 0 for no bands.
    """
    keys = jax.random.split(key, 5)
    shift_key, first_step_key, first_feature_key, steps_key, features_key = keys
    count, steps, features = x.shape
    if shift:
        shifts = jax.random.randint(shift_key, (count, 1), -shift, shift + 1)
        times = jnp.clip(jnp.arange(steps) + shifts, 0, steps - 1)
        x = jnp.take_along_axis(x, times[..., None], axis=1)
    if mask:
        silence = mean.astype(x.dtype)
        off = _bands(first_step_key, steps_key, (count, steps), mask)
        x = jnp.where(off[:, :, None], silence, x)
        off = _bands(first_feature_key, features_key, (count, features), mask)
        x = jnp.where(off[:, None, :], silence, x)
    return x


def _bands(
    first_key: jax.Array, width_key: jax.Array, shape: tuple[int, int], widest: int
) -> jax.Array:
    """A random band of True in each row of a boolean array of this shape."""
    count, size = shape
    first = jax.random.randint(first_key, (count, 1), 0, size)
    width = jax.random.randint(width_key, (count, 1), 0, widest + 1)
    places = jnp.arange(size)
    return (places >= first) & (places < first + width)

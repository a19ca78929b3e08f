"""Data sets from the three sources, their error messages, and augmentation."""

import itertools

import jax
import numpy as np
import PIL.Image
import pytest

from experiments import data


def _write_folder(root, sizes=((4, 3),), mode="RGB", suffix="png", times=1):
    generator = np.random.default_rng(0)
    channels = (3,) if mode == "RGB" else ()
    for split, count in (("train", 3), ("test", 2)):
        for label in ("cat", "dog"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(times * count):
                height, width = sizes[index % len(sizes)]
                pixels = generator.integers(0, 256, (height, width, *channels))
                image = PIL.Image.fromarray(pixels.astype(np.uint8))
                image.save(folder / f"{index}.{suffix}")


def test_digits_are_split_and_normalized():
    digits = data.load("digits")
    assert digits.train_images.shape == (1297, 8, 8, 1)
    assert digits.test_images.shape == (500, 8, 8, 1)
    assert digits.train_images.dtype == np.uint8 and digits.train_images.max() == 255
    assert digits.train_labels.dtype == np.int32 and digits.num_classes == 10
    assert np.bincount(digits.test_labels).min() >= 48  # stratified
    np.testing.assert_array_equal(digits.test_images, data.load("digits").test_images)
    images = np.asarray(data.normalize(digits, digits.train_images))
    assert images.dtype == np.float32
    np.testing.assert_allclose([images.mean(), images.std()], [0, 1], atol=1e-5)
    less = digits.first(100).held_back(30)  # the last ones
    np.testing.assert_array_equal(less.train_images, digits.train_images[:70])
    np.testing.assert_array_equal(less.test_images, digits.train_images[70:100])
    np.testing.assert_array_equal(less.test_labels, digits.train_labels[70:100])


@pytest.mark.parametrize("mode, channels", [("RGB", 3), ("L", 1)])
def test_a_folder_of_images_is_a_data_set(tmp_path, mode, channels):
    _write_folder(tmp_path / "pets", mode=mode, times=10)
    (tmp_path / "pets/train/.ipynb_checkpoints").mkdir()  # what is hidden is not read
    (tmp_path / "pets/train/cat/._0.png").write_bytes(b"not an image")
    pets = data.load("pets", str(tmp_path))
    assert pets.train_images.shape == (60, 4, 3, channels)
    assert pets.num_classes == 2 and len(pets.mean) == len(pets.std) == channels
    np.testing.assert_array_equal(np.bincount(pets.test_labels), [20, 20])
    # The first images are of all classes.
    assert set(pets.train_labels[:10]) == set(pets.test_labels[:10]) == {0, 1}
    with PIL.Image.open(tmp_path / "pets/test/dog/1.png") as image:
        expected = np.asarray(image).reshape(4, 3, channels)
    (place,) = np.flatnonzero((pets.test_images == expected).all(axis=(1, 2, 3)))
    assert pets.test_labels[place] == 1
    images = pets.train_images
    np.testing.assert_allclose(pets.mean, images.mean((0, 1, 2)))
    np.testing.assert_allclose(pets.std, images.std((0, 1, 2)))
    reloaded = data.load(str(tmp_path / "pets"))
    np.testing.assert_array_equal(reloaded.train_images, images)
    np.testing.assert_array_equal(reloaded.train_labels, pets.train_labels)


def test_a_folder_that_is_no_data_set_is_refused(tmp_path):
    for name, options in {
        "broken": {"suffix": "jpg"},
        "sizes": {"sizes": ((4, 3), (5, 3))},
        "gray": {"mode": "L"},
        **dict.fromkeys(("more in test", "deep", "empty class"), {}),
    }.items():
        _write_folder(tmp_path / name, **options)
    broken = tmp_path / "broken/train/dog/1.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    deep = PIL.Image.fromarray(np.full((4, 3), 1000, np.uint16))
    deep.save(tmp_path / "deep/train/cat/1.png")
    color = PIL.Image.fromarray(np.full((4, 3, 3), 100, np.uint8))
    color.save(tmp_path / "gray/train/cat/1.png")
    for folder in ("more in test/test/bird", "empty class/train/bird"):
        (tmp_path / folder).mkdir()
    for folder in ("no test/train", "empty/train", "empty/test"):
        (tmp_path / folder).mkdir(parents=True)
    for name, message in (
        ("broken", r"dog/1.jpg cannot be read as an image"),
        ("sizes", r"has 3x[45] pixels, .* has 3x[54]; bring"),
        ("gray", "mode RGB, and others are gray; bring all"),
        ("deep", "mode I;16; allowed: 8 bits per channel"),
        ("more in test", "bird has no counterpart .* cat, dog"),
        ("empty class", r"bird holds none of \*.png, \*.jpg"),
        ("no test", "has train/ but no test/"),
        ("empty", "no images below"),
    ):
        with pytest.raises(ValueError, match=message):
            data.load(str(tmp_path / name))


def test_data_that_tfds_has_prepared_are_read(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)

    class TinyImages(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(4, 4, 3)),
                "label": tfds.features.ClassLabel(num_classes=5),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._examples(5), "validation": self._examples(2)}

        def _generate_examples(self):
            raise NotImplementedError

        def _examples(self, count):
            for index in range(count):
                image = PIL.Image.fromarray(images[index])
                yield index, {"image": image, "label": index}

    builder = TinyImages(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    tiny = data.load("tiny_images", str(tmp_path))
    assert tiny.num_classes == 5 and len(tiny.test_images) == 2
    np.testing.assert_array_equal(
        tiny.train_images[np.argsort(tiny.train_labels)], images
    )


def test_missing_data_names_the_ways_out(tmp_path):
    for name in ("cifar10", "no_such_set"):
        with pytest.raises(data.MissingDataError) as caught:
            data.load(name, str(tmp_path))
        for way in ("--dataset digits", "array_record", "--data_dir", "train/<class>"):
            assert way in str(caught.value)
        assert caught.value.__suppress_context__
    with pytest.raises(data.MissingDataError, match=r"the folder .* has no train/\)"):
        data.load(str(tmp_path))


def test_augment_depends_on_its_key_alone():
    for dtype in (np.uint8, np.float32):
        images = np.arange(64 * 6 * 5 * 2).reshape(64, 6, 5, 2).astype(dtype)
        first_key = jax.random.key(0)
        second_key = jax.random.key(1)
        crops = data.augment(first_key, images, flip=True, padding=2)
        assert crops.shape == images.shape and crops.dtype == dtype
        repeated = data.augment(first_key, images, flip=True, padding=2)
        np.testing.assert_array_equal(crops, repeated)
        assert (crops != data.augment(second_key, images, flip=True, padding=2)).any()
        unchanged = data.augment(first_key, images, flip=False, padding=0)
        np.testing.assert_array_equal(unchanged, images)


def test_augment_makes_only_shifts_and_mirrors():
    images = np.arange(1, 1 + 32 * 9, dtype=np.int32).reshape(32, 3, 3, 1)
    crops = np.asarray(data.augment(jax.random.key(0), images, flip=True, padding=1))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    changes = [*itertools.product(range(3), range(3), (1, -1))]
    drawn_changes = set()
    for image, crop in zip(padded, crops, strict=True):
        hits = set()
        for row, column, mirror in changes:
            candidate = image[row : row + 3, column : column + 3][:, ::mirror]
            if np.array_equal(candidate, crop):
                hits.add((row, column, mirror))
        assert hits
        drawn_changes |= hits
    assert len(drawn_changes) > 10  # of 18

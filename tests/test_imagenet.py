"""Networks of ImageNet: what is read, compared and continued, at toy size."""

import functools
import io

import numpy as np
import pytest

from benchmarks import imagenet, imagenet_val

WNIDS = [
    imagenet_val.FIRST,
    *(f"n{n:08}" for n in range(2_000_000, 2_000_998)),
    imagenet_val.LAST,
]


def small_squeezenet(folder, images=2, size=47):
    """Write a SqueezeNet with a few channels, and small images of one color each."""
    image = pytest.importorskip("PIL.Image")
    draw = np.random.default_rng(0)
    sizes = {"conv1": (4, 3, 7), "conv10": (5, 6, 1)}
    for number in range(2, 10):
        sizes[f"fire{number}/s"] = (3, 4 if number == 2 else 6, 1)
        sizes |= {f"fire{number}/e1": (3, 3, 1), f"fire{number}/e3": (3, 3, 3)}
    arrays = {}
    for name, (outputs, inputs, width) in sizes.items():
        scale = (2 / (inputs * width**2)) ** 0.5
        weights = draw.normal(0, scale, (outputs, inputs, width, width))
        arrays[f"{name}/w"] = weights.astype(np.float32)
        arrays[f"{name}/b"] = np.full(outputs, 0.1, np.float32)
    np.savez(folder / "squeezenet.npz", **arrays)
    colors = draw.integers(0, 256, (2, images, 3)).astype(np.uint8)
    splits = {}
    for split, image_colors in zip(("calibration", "test"), colors, strict=True):
        contents = []
        for color in image_colors.tolist():
            file = io.BytesIO()
            picture = image.new("RGB", (size, size), tuple(color))
            picture.save(file, "JPEG", quality=100)
            contents.append(file.getvalue())
        splits[f"{split}_jpeg"] = np.frombuffer(b"".join(contents), np.uint8)
        splits[f"{split}_offsets"] = np.cumsum([0, *map(len, contents)])
        splits[f"{split}_labels"] = np.arange(images)
    np.savez(folder / "images.npz", **splits)
    return colors[1]


@pytest.mark.thorough
def test_squeezenet_reads_its_images_and_weights(tmp_path):
    colors = small_squeezenet(tmp_path)
    fn, params, read = imagenet.squeezenet_in(tmp_path)
    files, labels = imagenet.images_at_hand(tmp_path, "test")
    images = imagenet.pixels(files, read)
    for image, color in zip(images, colors, strict=True):  # JPEG rounds colors
        blue_first = (color - imagenet.MEAN)[::-1]
        np.testing.assert_allclose(
            image, np.broadcast_to(blue_first, image.shape), atol=4
        )
    assert list(labels) == [0, 1]
    assert params["fire2/e3"]["w"].shape == (3, 3, 3, 3)
    assert fn(params, images).shape == (2, 5)


def test_answers_are_compared():
    ann = np.array([[0.0, 1.0], [1.0, 0.0], [3.0, 0.0]])
    with_itself = imagenet.comparison(ann, ann, labels=[1, 0, 1])
    assert with_itself["agreement"] == 100 and with_itself["divergence"] == 0
    assert with_itself["accuracy"] == pytest.approx(200 / 3)
    shifted = imagenet.comparison(ann + 5, ann)  # the same probabilities
    assert shifted["divergence"] == pytest.approx(0, abs=1e-12)
    [first, *_] = imagenet.published_rows("mobilenet_v2")
    assert first == "MobileNetV2: local threshold balancing, all 50,000 images, ANN"


@pytest.mark.slow
def test_squeezenet_has_rows_and_sites(capsys, tmp_path, monkeypatch):
    small_squeezenet(tmp_path, images=3)
    monkeypatch.setattr(imagenet, "HELD_OUT", 1)
    out = tmp_path / "squeezenet.json"
    options = ["--data", str(tmp_path), "--rows=-1:1:2:0,0:1:16:1", "--sites", "2"]
    options += ["--networks", "squeezenet", "--out", str(out), "--calibration", "2"]
    with pytest.warns(UserWarning, match="2 samples"):
        result = imagenet.main([*options, "--recipe", "best, weights as they are"])
    assert len(result["sides"]) == 3 and len(result["sites"]) == 27
    assert str(tmp_path) not in out.read_text()
    assert "| squeezenet, T = 2: all of them" in capsys.readouterr().out


@pytest.fixture
def tiny():
    """The name of a network of torchvision with three layers and 1000 classes."""
    torch = pytest.importorskip("torch", reason="torchvision needs PyTorch")
    torchvision = pytest.importorskip("torchvision")
    pytest.importorskip("torchax")
    nn = torch.nn
    models = torchvision.models._api
    form = functools.partial(
        torchvision.transforms._presets.ImageClassification, crop_size=8, resize_size=10
    )

    class Tiny_Weights(models.WeightsEnum):
        V1 = models.Weights("https://a.b/tiny-1.pth", form, {})

    def tiny(*, weights: Tiny_Weights | None = None):
        return nn.Sequential(
            nn.Conv2d(3, 6, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 1000)
        )

    models.register_model("tiny")(tiny)
    yield "tiny"
    del models.BUILTIN_MODELS["tiny"]


def made_set(folder, module, transforms):
    """20 images, 13 of them in the folders of what the module answers, and 4 others."""
    import torch
    from PIL import Image

    draw = np.random.default_rng(0)
    for wnid in WNIDS:
        (folder / "val" / wnid).mkdir(parents=True)
    (folder / "train" / "a").mkdir(parents=True)
    for number in range(24):
        image = Image.fromarray(draw.integers(0, 256, (12, 14, 3)).astype(np.uint8))
        if number >= 20:
            image.save(folder / "train" / "a" / f"{number}.JPEG")
            continue
        image.save(file := folder / f"{number}.JPEG", quality=100)
        with torch.no_grad(), Image.open(file) as image:
            answer = int(module(transforms(image)[None]).argmax())
        label = answer if number < 13 else (answer + 1) % 1000
        file.rename(folder / "val" / WNIDS[label] / file.name)


def test_a_network_of_torchvision_is_tested_on_the_validation_set(
    tiny, tmp_path, monkeypatch, capsys
):
    import torch
    import torchvision

    module = torchvision.models.get_model(tiny).eval()
    weights = next(iter(torchvision.models.get_model_weights(tiny)))
    torch.save(module.state_dict(), tmp_path / "tiny-1.pth")
    made_set(tmp_path, module, weights.transforms())
    out = tmp_path / "val.json"
    line = f"--val {tmp_path / 'val'} --weights {tmp_path} --networks tiny --batch 8 "
    line += f"--calibration 4 --recipe light --out {out} --rows=-1:1:4:3:radix"
    result = imagenet.main(line.split())
    ann, digits = result["sides"].values()
    assert ann["accuracy"] == pytest.approx(65) and ann["agreement"] == 100
    assert digits["agreement"] > 80 and digits["images"] == 4
    assert "GFLOP x 100 images and steps" in capsys.readouterr().out
    repeated = functools.partial(pytest.fail, "a row was repeated")
    monkeypatch.setattr(imagenet, "all_outputs", repeated)
    assert imagenet.main(line.split())["sides"] == result["sides"]
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "tiny-1.pth")
    with pytest.raises(SystemExit):
        imagenet.main(line.split())
    assert "tiny-1.pth is not https://a.b/tiny-1.pth" in capsys.readouterr().err


def test_labels_of_the_validation_set(tmp_path):
    """Classes are the wnids in order, in folders or in a file."""
    labels, flat = tmp_path / "labels.txt", tmp_path / "flat"
    flat.mkdir()
    for number, wnid in enumerate(reversed(WNIDS)):
        (flat / f"{number:04}.JPEG").touch()
        (tmp_path / "val" / wnid).mkdir(parents=True)
    (tmp_path / "val" / WNIDS[7] / "a.JPEG").touch()
    labels.write_text("\n".join(reversed(WNIDS)))
    assert list(imagenet_val.validation(flat, labels)[1]) == [*range(999, -1, -1)]
    assert list(imagenet_val.validation(tmp_path / "val", None)[1]) == [7]
    labels.write_text("\n".join(map(str, range(1, 1001))))
    with pytest.raises(ValueError, match="kit numbers them in another order"):
        imagenet_val.validation(flat, labels)
    labels.write_text("1")
    with pytest.raises(ValueError, match="has 1 lines for 1000 images"):
        imagenet_val.validation(flat, labels)
    (tmp_path / "val" / WNIDS[7] / "a.JPEG").unlink()
    with pytest.raises(ValueError, match="1000 folders and no JPEG file"):
        imagenet_val.validation(tmp_path / "val", None)
    with pytest.raises(ValueError, match="has 0 images that are not of the val"):
        imagenet_val.spread(tmp_path / "val", tmp_path / "val", 4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--data .", "has no images.npz, squeezenet.npz; --help says"),
        ("--data . --rows 1:2", "1:2; allowed: LOW:HIGH:T:WAIT"),
        ("--data . --rows=-1:1:4:5", "with LOW <= 0 < HIGH and WAIT <= T"),
        ("--data . --rows 0:1:4::spikes", "with :radix behind it for digits"),
        ("--data . --test 0", "0; allowed: a whole number >= 1"),
        ("--data . --labels a", "--labels and --train are of --val"),
        ("--val . --sites 4", "--sites needs --data"),
        ("--val .", ". has 0 classes; allowed: those of ILSVRC 2012"),
        ("--val nowhere", "No such file or directory: 'nowhere'"),
    ],
)
def test_a_wrong_line_ends_with_one_message(
    line, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        imagenet.main(line.split())
    assert message in capsys.readouterr().err

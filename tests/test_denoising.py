"""A dense regression: a small U-Net on digits, trained, converted, and measured."""

import functools

import jax
import numpy as np
import pytest

from benchmarks import denoising


@pytest.mark.thorough
def test_a_unet_keeps_what_it_removes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(denoising, "UNet", functools.partial(denoising.UNet, 8))
    monkeypatch.setattr(denoising, "TEST", 50)
    monkeypatch.setattr(denoising, "ROWS", (denoising.Row("radix", steps=6),))
    out = tmp_path / "a.json"
    line = ["--quick", "--training", str(tmp_path / "weights"), "--out", str(out)]
    sides = denoising.main(line)["sides"]
    noisy, ann, digits = (sides[n] for n in ("noisy image", "ANN", "radix T = 6"))
    assert noisy["psnr"] + 1 < ann["psnr"]  # sure of 50 images
    assert ann["psnr"] - 0.5 < digits["psnr"]
    assert 0 < digits["error"] < 20 and digits["latency"] > 6
    assert capsys.readouterr().out.endswith(out.with_suffix(".md").read_text())
    # A second run has the weights and the row.
    monkeypatch.setattr(denoising, "batches", pytest.fail)
    monkeypatch.setattr(denoising, "table_row", pytest.fail)
    assert denoising.main(line)["sides"] == sides
    monkeypatch.setattr(denoising, "NOISE", 0.5)  # weights of another training
    with pytest.raises(SystemExit):
        denoising.main(line)
    assert "holds another training" in capsys.readouterr().err


@pytest.mark.thorough
def test_the_network_reads_images_of_other_sizes():
    model = denoising.UNet(features=2)
    for size in ((8, 8), (12, 16)):
        images = np.ones((1, *size, 3), np.float32)
        params = model.init(jax.random.key(0), images)
        assert model.apply(params, images).shape == images.shape

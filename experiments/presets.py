"""Configurations by name, for ``--preset NAME`` of the commands."""

from dataclasses import replace
from typing import Any

from experiments.running import Convert, FineTune, TrainANN, TrainSNN

# Every preset is run by `python -m experiments.train_ann --preset NAME`; for those that
# read a TFDS set add `--data_dir DIR` where it is not in ~/tensorflow_datasets. Costs
# are counted operations of the whole training: an accelerator that sustains 10 TFLOP/s
# needs 100 seconds for 1 PFLOP. Accuracies are on test images, with seed 0.
PRESETS_ANN: dict[str, TrainANN] = {
    # ResNet-8 on 8x8 digits: no download, 12 seconds on two CPU cores.
    # Measured 99.4 % (jax 0.10.2) and 99.6 % (jax 0.7.2).
    "digits_resnet": TrainANN(
        model="digits_resnet",
        dataset="digits",
        out="runs/digits_resnet",
        epochs=15,
        batch_size=64,
        warmup=0.1,
        flip=False,
        padding=1,
    ),
    # He et al.'s ResNet-20 with 0.27 M parameters. 2 PFLOP. Not measured yet; He et al.
    # report 91.25 %.
    "cifar10_resnet20": TrainANN(),
    # ResNet-18 with a stem of three convolutions. 9 PFLOP. Not measured yet; 95.46 % is
    # reported for it by Bu et al., 2022.
    "cifar10_resnet18": TrainANN(model="resnet18", out="runs/cifar10_resnet18"),
    # The published ResNet-20, trained on with quantized ReLUs of L = 4 in place of its
    # ReLUs, as Bu et al. do on CIFAR-10. 0.1 PFLOP. Measured: 88.6 % after 68 minutes
    # on one CPU core, beside other work.
    "cifar10_resnet20_quantized": TrainANN(
        levels=4,
        checkpoint="experiments/sources/resnet20.safetensors",
        out="runs/cifar10_resnet20_quantized",
        epochs=10,
        learning_rate=0.04,
    ),
}


# Two dense recurrent layers of 128 neurons with leaks of their own, which are trained.
# Options are chosen by examples held out; docs/training_results.md has results.
_SEQUENCE = TrainSNN(
    model="dense",
    neuron="recurrent",
    learn="fixed",
    learn_neurons=True,
    learning_rate=6e-3,
    reset="subtract",  # chosen: 69.1 % after 2 epochs of permuted MNIST, with zero 58.5
    padding=0,
    choice=0.1,
    answer_from=0.5,
    time_constants=(1.0, 20.0),
)
_PERMUTED = replace(
    _SEQUENCE,
    dataset="mnist",
    sequence="permuted",
    time_constants=(5.0, 300.0),
    epochs=8,
    clip_norm=1.0,
    out="runs/permuted",
)

_PERMUTED_4 = replace(
    _PERMUTED, pixels=4, time_constants=(2.0, 100.0), out="runs/permuted_4"
)

# Every preset is run by `python -m experiments.train_snn --preset NAME`; --data_dir is
# the folder of mnist/, keywords/, nmnist_small.npz, shd_train.h5 and so on.
PRESETS_SNN: dict[str, TrainSNN] = {
    # ResNet-8 on 8x8 digits, T = 4: under two minutes on two CPU cores.
    "digits": TrainSNN(),
    # The setting of the Dspike paper, as far as it is known: ResNet-18 with a stem of
    # three convolutions, LIF, T = 4 (the paper: 2, 4, 6, by --steps). For an
    # accelerator; not measured yet. The paper reports 93.66 % at T = 4.
    "cifar10_resnet18": TrainSNN(
        model="resnet18",
        dataset="cifar10",
        out="runs/snn_cifar10_resnet18",
        epochs=300,
        batch_size=128,
        learning_rate=1e-3,
        warmup=0.02,
        flip=True,
        padding=4,
        difference_step=0.03,
    ),
    # Six convolutions of 32 to 128 channels, T = 2, for two CPU cores. Measured: 81.1 %
    # (seed 0, jax 0.10.2) after about 70 minutes of one core's time, 85 by the clock
    # on a machine with much else to do.
    "cifar10_small": TrainSNN(
        model="small",
        dataset="cifar10",
        out="runs/snn_cifar10_small",
        steps=2,
        epochs=15,
        batch_size=128,
        learning_rate=4e-3,
        flip=True,
        padding=4,
        difference_step=0.03,
        difference_images=16,
    ),
    # Event frames of N-MNIST from a prepared file (see experiments/data/events.py):
    # --dataset nmnist_small.npz.
    "nmnist": TrainSNN(
        model="events",
        dataset="nmnist.npz",
        out="runs/snn_nmnist",
        steps=8,
        epochs=20,
        batch_size=50,
        learning_rate=4e-3,
        padding=2,
    ),
    # MNIST row by row, and pixel by pixel in a permuted order.
    "rows": replace(
        _SEQUENCE, dataset="mnist", sequence="rows", epochs=30, out="runs/rows"
    ),
    # Chosen: 98.7 % of the choice after 4 epochs.
    "rows_wide": replace(
        _SEQUENCE,
        dataset="mnist",
        sequence="rows",
        neuron="recurrent_adaptive",
        width=256,
        batch_size=128,
        learning_rate=3e-3,
        clip_norm=1.0,
        epochs=8,
        out="runs/rows_wide",
    ),
    "permuted": replace(_PERMUTED, batch_size=128),
    # Four pixels a step, 196 steps: an epoch takes a quarter of the time.
    "permuted_4": replace(_PERMUTED_4, batch_size=128, epochs=12),
    # With four layers, to compare surrogates.
    "permuted_deep": replace(
        _PERMUTED_4, depth=4, train_images=8000, epochs=2, out="runs/permuted_deep"
    ),
    "cifar_rows": replace(
        _SEQUENCE, dataset="cifar10", sequence="rows", out="runs/cifar_rows"
    ),
    "nmnist_dense": replace(
        _SEQUENCE, dataset="nmnist_small.npz", steps=20, out="runs/nmnist_dense"
    ),
    # MFCCs of a second of sound; speakers of the test are in no other part.
    "keywords": replace(
        _SEQUENCE,
        dataset="keywords",
        neuron="adaptive",  # chosen: 89 % of the choice, recurrent LIF 84
        width=256,
        padding=5,
        mask=8,
        epochs=60,
        out="runs/keywords",
    ),
    # Spiking Heidelberg Digits and Speech Commands, from their HDF5 files.
    "shd": replace(
        _SEQUENCE, dataset="shd", steps=100, epochs=40, width=256, out="runs/shd"
    ),
    "ssc": replace(
        _SEQUENCE, dataset="ssc", steps=100, epochs=40, width=256, out="runs/ssc"
    ),
}


# Networks in experiments/sources.
SOURCES = (
    "resnet20",  # He et al.'s
    "resnet20_clipped",  # with ReLU clipped at 2
    "resnet20_quantized",  # with ReLU quantized to four levels above 0
    "whitened_vgg8",  # six convolutions, behind a layer that whitens
    "whitened_resnet9",  # seven with two shortcuts, behind a layer that whitens
    "vgg8",  # narrower, with average pooling
    "vgg8_max",  # the same with max-pool
    "mobilenet_quarter",  # a quarter of the width, with ReLU6
    "vit",  # a vision transformer with LayerNorm, attention and GELU
    "mobilenet_v3",  # with hard swish and squeeze-and-excite gates
    "convnext",
)
WITH_OPERATORS = ("vit", "mobilenet_v3", "convnext")

# Weights by network: ours, and those that others trained, which are not here but
# written by `python -m experiments.sources.pretrained`.
CHECKPOINTS = {name: f"experiments/sources/{name}.safetensors" for name in SOURCES}
CHECKPOINTS["resnet56"] = "runs/sources/resnet56.safetensors"

# Of the published tables.
DRAWS: dict[str, Any] = {"steps": (2, 4, 8, 16), "seeds": (0, 1, 2)}

# Every preset is run by `python -m experiments.convert --preset NAME`.
PRESETS_CONVERT: dict[str, Convert] = {
    # ResNet-8 on 8x8 digits; trains it first, 12 seconds. 95 CPU seconds in all, at
    # most a minute and a half on two CPU cores.
    "digits": Convert(),
    # Published networks; their cards say how they were trained. All recipes on all test
    # images take hours on two CPU cores; docs/accuracy.md has the commands for a part
    # of them.
    **{
        f"cifar10_{name}": Convert(
            dataset="cifar10",
            checkpoint=checkpoint,
            codes=("rate",),
            iterations=1000,
            **DRAWS,
            out=f"runs/convert_cifar10_{name}",
        )
        for name, checkpoint in CHECKPOINTS.items()
    },
    # By the recipe that is exact with T = 4 and a wait of T, beside the best one.
    "cifar10_resnet20_quantized": Convert(
        dataset="cifar10",
        checkpoint="experiments/sources/resnet20_quantized.safetensors",
        recipes=("quantized", "best"),
        codes=("rate",),
        waits=("0", "T"),
        **DRAWS,
        out="runs/convert_cifar10_resnet20_quantized",
    ),
}


# Every preset is run by `python -m experiments.finetune --preset NAME`.
PRESETS_FINETUNE: dict[str, FineTune] = {
    # ResNet-8 on 8x8 digits, T = 2; trains the source network first, 12 seconds.
    "digits": FineTune(),
    # The published networks on CIFAR-10.
    **{
        f"cifar10_{name}": FineTune(
            dataset="cifar10",
            checkpoint=f"experiments/sources/{name}.safetensors",
            epochs=5,
            batch_size=128,
            # Chosen on 2000 training images held back (which the ANN knows), after 2
            # epochs of 11000: resnet20, T = 1. Distillation 0.5 and 0.9: 58.3 and
            # 59.9 %; with 0.9, rates 1.5e-3 and 3e-3: 59.4 and 59.9 %. A network that
            # converts well loses with so high a rate: whitened_resnet9, T = 2, one
            # epoch: 77.2, 86.6 and 89.4 % with 3e-3, 1e-3 and 3e-4 (86.7 before).
            distillation=0.9,
            learning_rate=3e-4 if name == "whitened_resnet9" else 3e-3,
            keep_averages=name in WITH_OPERATORS,
            flip=True,
            padding=4,
            out=f"runs/finetune_cifar10_{name}",
        )
        for name in SOURCES
    },
}

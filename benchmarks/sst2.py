"""What does a small transformer for the sentiment of sentences keep when converted?

    python -m benchmarks.sst2 --data DIR --training sst2 \
        --out benchmarks/results/sst2.json

DIR has two files of SST-2 (Socher et al., 2013), as GLUE's SST-2.zip has them:
train.tsv (67,349 phrases) and dev.tsv (872 sentences). Both are UTF-8, with a header
that names the columns ``sentence`` (words with blanks between them) and ``label`` (0 or
1), and a tab between the columns.

The transformer has two blocks of the vision transformer in `experiments.models`. It
reads words that occur at least twice, and one token for all others. It is trained from
scratch: nothing is pretrained. 500 whole sentences of train.tsv are held out, and so
are all phrases of theirs. They choose the epoch, and 256 of them calibrate, without
labels. The weights stay in ``--weights``, so a second run only converts.

In the SNN, embeddings become spikes (`snnjax.encode`): no product after them has a
number of the input. Accuracies are of all sentences of dev.tsv, costs of the first 250.
"""

import collections
import csv
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

import snnjax
from benchmarks import mlperf_tiny, networks, timing
from benchmarks.mlperf_tiny import Row
from experiments.models import vit

FILES = ("train.tsv", "dev.tsv")
LENGTH = 48  # words that are read
PADDING = 0  # token
UNKNOWN = 1  # token
CALIBRATION = 256  # sentences
HELD_OUT = 500  # sentences
EPOCHS = 4
BATCH = 64
LEARNING_RATE = 1e-3
DROPPED = 0.25  # share of words, and of features, in training
ROWS = (
    Row("radix", steps=2),
    Row("radix", steps=4),
    Row("radix", steps=4, wait=3),
    Row("radix", steps=8),
    Row("rate", steps=8),
)


class Phrase(NamedTuple):
    """A phrase and whether it is positive."""

    text: str
    label: int


class Examples(NamedTuple):
    """What the network reads."""

    tokens: np.ndarray  # [N, LENGTH]
    labels: np.ndarray  # [N]


class Transformer(nn.Module):
    """Logits [B, 2] of tokens [B, n], n <= LENGTH."""

    tokens: int
    features: int = 128
    blocks: int = 2

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        mask = tokens != PADDING
        dropout = nn.Dropout(DROPPED, deterministic=not train)
        x = nn.Embed(self.tokens, self.features)(tokens)
        small = nn.initializers.normal(0.02)
        positions = self.param("positions", small, (LENGTH, self.features))
        x = x + positions[: mask.shape[1]]
        x = snnjax.encode(dropout(x))
        for _ in range(self.blocks):
            x = vit.Transformer(4, 2 * self.features, nn.relu)(x, mask)
        total = (nn.LayerNorm()(x) * mask[..., None]).sum(1)
        mean = total / mask.sum(1, keepdims=True)
        return nn.Dense(2)(dropout(mean))


def read_phrases(file: Path) -> list[Phrase]:
    """The rows of a file."""
    with open(file, encoding="utf-8", newline="") as lines:
        table = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [Phrase(row["sentence"].strip(), int(row["label"])) for row in table]


def vocabulary(phrases: list[Phrase]) -> dict[str, int]:
    """Word -> token, of the words that occur at least twice."""
    counts: collections.Counter[str] = collections.Counter()
    for phrase in phrases:
        counts.update(phrase.text.split())
    words = sorted(word for word, count in counts.items() if count > 1)
    return {word: token for token, word in enumerate(words, UNKNOWN + 1)}


def examples(phrases: list[Phrase], tokens: dict[str, int]) -> Examples:
    """Padded behind the words; longer sentences are cut."""
    rows = np.full((len(phrases), LENGTH), PADDING, np.int32)
    for row, phrase in zip(rows, phrases, strict=True):
        words = phrase.text.split()[:LENGTH]
        row[: len(words)] = [tokens.get(word, UNKNOWN) for word in words]
    return Examples(rows, np.array([phrase.label for phrase in phrases]))


class Data(NamedTuple):
    """The vocabulary and the three parts of SST-2."""

    tokens: dict[str, int]
    training: Examples
    held_out: Examples
    test: Examples


def read(folder: Path) -> Data:
    """The files, with whole sentences held out, and all phrases of theirs."""
    phrases = read_phrases(folder / "train.tsv")
    test = read_phrases(folder / "dev.tsv")
    phrases.sort()
    order = np.random.default_rng(0).permutation(len(phrases))
    phrases = [phrases[i] for i in order]
    sentences = [phrase for phrase in phrases if phrase.text.endswith(" .")]
    held_out = sentences[:HELD_OUT]
    held_out_text = "\n".join(phrase.text for phrase in held_out)
    training = [phrase for phrase in phrases if phrase.text not in held_out_text]
    tokens = vocabulary(training)
    return Data(
        tokens=tokens,
        training=examples(training, tokens),
        held_out=examples(held_out, tokens),
        test=examples(test, tokens),
    )


def batches(training: Examples, epoch: int) -> Iterator[tuple[Any, ...]]:
    """Phrases of like length, cut behind it, some words unknown; labels; a seed."""
    rng = np.random.default_rng(epoch)
    order = rng.permutation(len(training.labels))
    lengths = (training.tokens != PADDING).sum(1)
    order = order[np.argsort(lengths[order], kind="stable")]
    for start in rng.permutation(np.arange(0, len(order), BATCH)):
        indices = order[start : start + BATCH]
        # Multiples of 16 words: few shapes to compile.
        width = math.ceil(lengths[indices].max() / 16) * 16
        words = training.tokens[indices, :width]
        is_dropped = (rng.random(words.shape) < DROPPED) & (words != PADDING)
        seed = rng.integers(2**31)
        words = np.where(is_dropped, UNKNOWN, words)
        yield words, training.labels[indices], seed


def trained(
    model: nn.Module, training: Examples, held_out: Examples, folder: Path
) -> Any:
    """The weights after `EPOCHS`; resumes from its folder."""
    steps = EPOCHS * math.ceil(len(training.labels) / BATCH)
    rate = optax.cosine_onecycle_schedule(steps, LEARNING_RATE, pct_start=0.1)
    run = jax.jit(model.apply)

    def loss(params, tokens, labels, seed):
        dropout = {"dropout": jax.random.key(seed)}
        logits = model.apply(
            params,
            tokens,
            train=True,
            rngs=dropout,
        )
        entropy = optax.losses.softmax_cross_entropy_with_integer_labels
        return entropy(logits, labels).mean()

    def measure(state, log):
        params, _ = state
        percent = timing.percent(run(params, held_out.tokens), held_out.labels)
        print(f"epoch {len(log)}: {percent:.1f} % of held-out sentences", flush=True)

    return networks.trained(
        loss,
        params=model.init(jax.random.key(0), training.tokens[:1]),
        optimizer=optax.adamw(rate, weight_decay=0.01),
        batches=functools.partial(batches, training),
        epochs=EPOCHS,
        measure=measure,
        folder=folder,
        depends_on={
            "training": tuple(training),
            "options": (EPOCHS, BATCH, LEARNING_RATE, DROPPED),
        },
    )


COLUMNS = {
    "numbers": "numbers",
    "code": "code",
    "T": "T",
    "wait": "wait",
    "latency": "latency",
    "inputs": "inputs",
    "accuracy": "accuracy %",
    "spikes": "spikes",
    "synops": "SynOps M",
    "energy": "energy, % of ANN",
    "memory": "with memory",
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """The command. It reports after each row, because a row takes minutes."""
    parser = timing.parser(__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
    )
    parser.add_argument(
        "--training",
        type=Path,
        required=True,
        metavar="DIR",
    )
    options = parser.parse_args(arguments)
    timing.check_files(parser, options.data, *FILES)
    data = read(options.data)
    model = Transformer(len(data.tokens) + UNKNOWN + 1)
    count = mlperf_tiny.BATCH if options.quick else None
    task = mlperf_tiny.Task(
        fn=model.apply,
        params=trained(model, data.training, data.held_out, options.training),
        calibration=data.held_out.tokens[:CALIBRATION],
        x=data.test.tokens[:count],
        labels=data.test.labels[:count],
    )
    sizes = {"words": len(data.tokens), "phrases": len(data.training.labels)}
    result = timing.new_result(__doc__, ("jax", "flax", "numpy"), sizes=sizes)
    rows = [mlperf_tiny.ann_row(task)]
    result["sides"]["transformer"] = rows
    for row in ROWS:
        rows += mlperf_tiny.converted_rows(task, row)
        cells = [timing.cells(line, COLUMNS) for line in rows]
        timing.report(result, timing.table([*COLUMNS.values()], cells), options.out)
    return result


if __name__ == "__main__":
    main()

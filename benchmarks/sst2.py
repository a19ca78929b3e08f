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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

import snnjax
from benchmarks import mlperf_tiny, networks, timing
from benchmarks.mlperf_tiny import Row
from experiments.models import vit

FILES = "train.tsv", "dev.tsv"
LENGTH = 48  # words that are read
PADDING, UNKNOWN = 0, 1  # tokens
CALIBRATION, HELD_OUT = 256, 500  # sentences
EPOCHS, BATCH, LEARNING_RATE = 4, 64, 1e-3
DROPPED = 0.25  # share of words, and of features, in training
ROWS = Row("radix", 2), Row("radix", 4), Row("radix", 4, 3)
ROWS += Row("radix", 8), Row("rate", 8)

Examples = tuple[np.ndarray, np.ndarray]  # tokens [N, LENGTH] and labels [N]


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
        x = x + self.param("positions", small, (LENGTH, self.features))[: mask.shape[1]]
        x = snnjax.encode(dropout(x))
        for _ in range(self.blocks):
            x = vit.Transformer(4, 2 * self.features, nn.relu)(x, mask)
        total = (nn.LayerNorm()(x) * mask[..., None]).sum(1)
        return nn.Dense(2)(dropout(total / mask.sum(1, keepdims=True)))


def pairs_of(file: Path) -> list[tuple[str, int]]:
    """Sentences and labels."""
    with open(file, encoding="utf-8", newline="") as lines:
        table = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["sentence"].strip(), int(row["label"])) for row in table]


def vocabulary(sentences: list[str]) -> dict[str, int]:
    """Word -> token, of the words that occur at least twice."""
    counts = collections.Counter(" ".join(sentences).split())
    words = sorted(word for word, count in counts.items() if count > 1)
    return {word: token for token, word in enumerate(words, UNKNOWN + 1)}


def examples(pairs: list[tuple[str, int]], tokens: dict[str, int]) -> Examples:
    """Padded behind the words; longer sentences are cut."""
    rows = np.full((len(pairs), LENGTH), PADDING, np.int32)
    for row, (sentence, _) in zip(rows, pairs, strict=True):
        words = [tokens.get(word, UNKNOWN) for word in sentence.split()[:LENGTH]]
        row[: len(words)] = words
    return rows, np.array([label for _, label in pairs])


def read(folder: Path) -> tuple[dict[str, int], Examples, Examples, Examples]:
    """The vocabulary, and the examples to train with, held out, and to test with."""
    pairs, test = (pairs_of(folder / file) for file in FILES)
    pairs.sort()
    pairs = [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))]
    held_out = [pair for pair in pairs if pair[0].endswith(" .")][:HELD_OUT]
    theirs = "\n".join(sentence for sentence, _ in held_out)
    training = [pair for pair in pairs if pair[0] not in theirs]
    tokens = vocabulary([sentence for sentence, _ in training])
    return tokens, *(examples(part, tokens) for part in (training, held_out, test))


def batches(training: Examples, epoch: int) -> Iterator[tuple[Any, ...]]:
    """Phrases of like length, cut behind it, some words unknown; labels; a seed."""
    rng = np.random.default_rng(epoch)
    tokens, labels = training
    order = rng.permutation(len(labels))
    lengths = (tokens != PADDING).sum(1)
    order = order[np.argsort(lengths[order], kind="stable")]
    for start in rng.permutation(np.arange(0, len(order), BATCH)):
        indices = order[start : start + BATCH]
        width = -(-lengths[indices].max() // 16) * 16  # few shapes to compile
        words = tokens[indices, :width]
        is_dropped = (rng.random(words.shape) < DROPPED) & (words != PADDING)
        seed = rng.integers(2**31)
        yield np.where(is_dropped, UNKNOWN, words), labels[indices], seed


def trained(
    model: nn.Module, training: Examples, held_out: Examples, folder: Path
) -> Any:
    """The weights after `EPOCHS`; resumes from its folder."""
    steps = EPOCHS * -(-len(training[1]) // BATCH)
    rate = optax.cosine_onecycle_schedule(steps, LEARNING_RATE, pct_start=0.1)
    optimizer = optax.adamw(rate, weight_decay=0.01)

    def loss(params, tokens, labels, seed):
        dropout = {"dropout": jax.random.key(seed)}
        logits = model.apply(params, tokens, train=True, rngs=dropout)
        entropy = optax.losses.softmax_cross_entropy_with_integer_labels
        return entropy(logits, labels).mean()

    def measure(state, log):
        tokens, labels = held_out
        percent = timing.percent(jax.jit(model.apply)(state[0], tokens), labels)
        print(f"epoch {len(log)}: {percent:.1f} % of held-out sentences", flush=True)

    parts = {"training": training, "options": (EPOCHS, BATCH, LEARNING_RATE, DROPPED)}
    options = {"measure": measure, "folder": folder, "depends_on": parts}
    params = model.init(jax.random.key(0), training[0][:1])
    draw = functools.partial(batches, training)
    return networks.trained(loss, params, optimizer, draw, epochs=EPOCHS, **options)


COLUMNS = {"numbers": "numbers", "code": "code", "T": "T", "wait": "wait"}
COLUMNS |= {
    name: title for name, title in mlperf_tiny.COLUMNS.items() if name != "target"
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = timing.parser(__doc__)
    options.add_argument("--data", type=Path, required=True, metavar="DIR")
    options.add_argument("--training", type=Path, required=True, metavar="DIR")
    choice = options.parse_args(arguments)
    timing.check_files(options, choice.data, *FILES)
    tokens, training, held_out, test = read(choice.data)
    count = mlperf_tiny.AT_A_TIME if choice.quick else None
    model = Transformer(len(tokens) + UNKNOWN + 1)
    params = trained(model, training, held_out, choice.training)
    calibration, test = held_out[0][:CALIBRATION], [array[:count] for array in test]
    task = mlperf_tiny.Task(model.apply, params, calibration, *test)
    rows: list[dict[str, Any]] = []
    sizes = {"words": len(tokens), "phrases": len(training[1])}
    result = timing.new_result(__doc__, ("jax", "flax", "numpy"), sizes=sizes)
    result["sides"] = {"transformer": rows}
    for row in mlperf_tiny.converted(task, ROWS):  # a row takes minutes
        rows.append(row)
        cells = [timing.cells(row, COLUMNS) for row in rows]
        timing.report(result, timing.table([*COLUMNS.values()], cells), choice.out)
    return result


if __name__ == "__main__":
    main()

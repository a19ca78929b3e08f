`timescale 1ns / 1ps

// Drives one core of catalyst-n1, see silicon_rtl.py. Plusargs name two files.
//
// +commands: a letter and three numbers per line, those that a command needs first.
//   g mode              graded payloads, 0 or 1
//   p neuron id value   a parameter: 0 threshold, 2 resting potential
//   w address to value  a synapse
//   i neuron base count where the synapses of a neuron lie
//   x neuron current    input of the next step
//   s                   a step
//   r neuron            read the potential
// +events: "spike step neuron payload" and "potential neuron value".
module driver;
    parameter NEURONS = 1024, BITS = 10, POOL_BITS = 17;

    reg clock = 0, awake = 0;
    always #5 clock = !clock;

    // What the host writes; each strobe is high for one cycle.
    reg step = 0, current = 0, synapse = 0, index = 0, parameters = 0, probe = 0;
    reg graded = 0;
    reg [BITS-1:0] neuron = 0, to = 0;
    reg [POOL_BITS-1:0] address = 0;
    reg [11:0] count = 0;
    reg [4:0] id = 0;
    reg signed [15:0] value = 0;

    wire done, fired, probed;
    wire [BITS-1:0] source;
    wire [7:0] payload;
    wire [31:0] now;
    wire signed [15:0] potential;

    scalable_core_v2 #(
        .NUM_NEURONS(NEURONS), .NEURON_BITS(BITS),
        .POOL_DEPTH(1 << POOL_BITS), .POOL_ADDR_BITS(POOL_BITS),
        .LEAK_RATE(16'sd0), .REFRAC_CYCLES(0), .THRESHOLD(16'sd32767)
    ) core (
        .clk(clock), .rst_n(awake), .start(step), .graded_enable(graded),
        .ext_valid(current), .ext_neuron_id(neuron), .ext_current(value),
        .pool_we(synapse), .pool_addr_in(address), .pool_src_in({BITS{1'b0}}),
        .pool_target_in(to), .pool_weight_in(value), .pool_comp_in(2'd0),
        .index_we(index), .index_neuron_in(neuron), .index_base_in(address),
        .index_count_in(count), .index_format_in(2'd0),
        .prog_param_we(parameters), .prog_param_neuron(neuron), .prog_param_id(id),
        .prog_param_value(value), .probe_read(probe), .probe_neuron(neuron),
        .probe_state_id(5'd0), .probe_data(potential), .probe_valid(probed),
        .timestep_done(done), .timestep_count(now), .spike_out_valid(fired),
        .spike_out_id(source), .spike_out_payload(payload),
        // Not used: learning, dendrites, noise, delays.
        .learn_enable(1'b0), .dendritic_enable(1'b0), .threefactor_enable(1'b0),
        .noise_enable(1'b0), .skip_idle_enable(1'b0), .scale_u_enable(1'b0),
        .reward_value(16'sd0), .delay_we(1'b0), .delay_addr_in({POOL_BITS{1'b0}}),
        .delay_value_in(6'd0), .ucode_prog_we(1'b0), .ucode_prog_addr(8'd0),
        .ucode_prog_data(32'd0), .probe_pool_addr({POOL_BITS{1'b0}})
    );

    integer commands, events, a, b, c;
    reg [7:0] letter;
    reg [8*512-1:0] name;

    always @(posedge clock)
        if (fired) $fdisplay(events, "spike %0d %0d %0d", now, source, payload);

    initial begin
        if (!$value$plusargs("commands=%s", name)) $fatal;
        commands = $fopen(name, "r");
        if (!$value$plusargs("events=%s", name)) $fatal;
        events = $fopen(name, "w");
        repeat (2) @(negedge clock);
        awake = 1;
        // Strobes change at the falling edge, when the core reads none of them.
        while ($fscanf(commands, " %c %d %d %d", letter, a, b, c) == 4) begin
            neuron = a; id = b; to = b; count = c;
            value = letter == "x" ? b : c;
            address = letter == "w" ? a : b;
            if (letter == "g") graded = a;
            parameters = letter == "p"; synapse = letter == "w"; index = letter == "i";
            current = letter == "x"; step = letter == "s"; probe = letter == "r";
            @(negedge clock) {parameters, synapse, index, current, step} = 0;
            if (letter == "s") wait (done) repeat (3) @(negedge clock);
            if (probe) wait (probed) $fdisplay(events, "potential %0d %0d", a, potential);
            probe = 0;
            wait (!probed);
        end
        $finish(0);
    end
endmodule

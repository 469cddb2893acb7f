/* SPDX-License-Identifier: MIT */
/*
 * The storm's barriers and the phases that read the HPET's counter.
 *
 * The check across vCPUs: a value read is published in counter_max by a compare-and-swap to the
 * larger; what counter_max held before a read began was read by someone before it, so the value
 * read may not be smaller. Publishing releases and looking acquires: reader_publish() and
 * reader_read().
 */
#include "storm_phases.h"

void storm_barrier(struct storm_cpu *cpu)
{
    struct storm_control *control = cpu->control;
    /* Acquire: pairs with the release of the last to arrive, below. */
    uint32_t turn = bb_load_acquire(&control->barrier_turn);
    /* Acquire and release: what each did before the barrier is seen by the last to arrive. */
    if (bb_fetch_add_acq_rel(&control->barrier_arrived, 1) + 1 == control->vcpus) {
        /* Relaxed: nobody arrives again before it has seen the new turn. */
        bb_store_relaxed(&control->barrier_arrived, 0);
        bb_store_release(&control->barrier_turn, turn + 1);
        return;
    }
    uint64_t pause_ns = STORM_RELAX_NS;
    while (bb_load_acquire(&control->barrier_turn) == turn && !storm_stopped(cpu)) {
        storm_relax(cpu, pause_ns);
        pause_ns = storm_relax_longer(control, pause_ns);
    }
}

struct reader {
    struct storm_cpu *cpu;
    struct storm_reading *reading;
    uint64_t counter_gpa;
    uint64_t last;        /* value */
    uint64_t stamp;       /* end of the last read, where time stamps are chained */
    uint64_t think_ticks; /* before each read */
    uint64_t unpublished;
};

static struct reader reader_begin(struct storm_cpu *cpu, enum storm_phase phase)
{
    struct reader reader = {
        .cpu = cpu,
        .reading = &cpu->self->reading[phase],
        .counter_gpa = cpu->control->hpet_gpa + HPET_MAIN_CNT,
        .stamp = storm_ticks(),
    };
    reader.reading->begin = reader.stamp;
    return reader;
}

static void reader_publish(struct reader *reader, uint64_t seen)
{
    uint64_t *max = &reader->cpu->control->counter_max;
    /* Release: the read was before; pairs with reader_read() of another vCPU. */
    while (reader->last > seen && !bb_cas_acq_rel(max, &seen, reader->last)) {
    }
    reader->unpublished = 0;
}

/* One timed, checked read of the counter. */
static uint64_t reader_read(struct reader *reader)
{
    struct storm_control *control = reader->cpu->control;
    struct storm_reading *reading = reader->reading;
    uint64_t seen = bb_load_acquire(&control->counter_max); /* pairs with reader_publish() */
    uint64_t from = STORM_CHAINED && !reader->think_ticks ? reader->stamp : storm_ticks();
    uint64_t value = storm_read64(reader->cpu, reader->counter_gpa);
    reader->stamp = storm_ticks();
    uint64_t ticks = reader->stamp - from;
    reading->backward_self += value < reader->last;
    reading->backward_cross += value < seen;
    reader->last = value;
    if (++reader->unpublished >= control->publish_every) {
        reader_publish(reader, seen);
    }
    reading->latency_sum += ticks;
    if (ticks > reading->latency_max) {
        reading->latency_max = ticks;
    }
    reading->hist[storm_hist_bucket(ticks)]++;
    reading->reads++;
    return value;
}

static void wait_ticks(uint64_t ticks)
{
    uint64_t from = storm_ticks();
    while (storm_ticks() - from < ticks) {
    }
}

static uint64_t ns_to_ticks(const struct storm_control *control, uint64_t ns)
{
    return ns * control->tsc_khz / 1000000;
}

/* Relaxed: how often vCPU 0 has had its turn is a number and no more. */
static void turn_taken(struct storm_cpu *cpu, uint64_t turns)
{
    bb_store_relaxed(&cpu->control->turns, turns);
}

static bool turns_missing(struct storm_cpu *cpu, enum storm_phase phase)
{
    return phase != STORM_READ && cpu->control->vcpus > 1 &&
           bb_load_relaxed(&cpu->control->turns) < STORM_TURNS_MIN;
}

static void read_run(struct storm_cpu *cpu, enum storm_phase phase, uint64_t count,
                     uint64_t think_ns)
{
    struct reader reader = reader_begin(cpu, phase);
    reader.think_ticks = ns_to_ticks(cpu->control, think_ns);
    for (uint64_t i = 0; (i < count || turns_missing(cpu, phase)) && !storm_stopped(cpu); i++) {
        if (reader.think_ticks) {
            wait_ticks(reader.think_ticks);
        }
        reader_read(&reader);
    }
    reader.reading->end = reader.stamp;
}

static bool readers_left(struct storm_cpu *cpu)
{
    /* Pairs with reader_leaves(). */
    return bb_load_acquire(&cpu->control->readers_left) != 0 && !storm_stopped(cpu);
}

/* Release: pairs with readers_left(). */
static void reader_leaves(struct storm_cpu *cpu)
{
    bb_fetch_sub_release(&cpu->control->readers_left, 1);
}

/* Disables the counter, looks whether it stands still, enables it again. */
static void toggle(struct reader *reader)
{
    struct storm_cpu *cpu = reader->cpu;
    uint64_t conf_gpa = cpu->control->hpet_gpa + HPET_GEN_CONF;
    storm_write64(cpu, conf_gpa, 0);
    uint64_t halted = reader_read(reader);
    cpu->self->halted_moved += reader_read(reader) != halted;
    storm_write64(cpu, conf_gpa, HPET_ENABLE_CNF);
    turn_taken(cpu, ++cpu->self->toggles);
}

static void torture_run(struct storm_cpu *cpu)
{
    struct storm_control *control = cpu->control;
    if (cpu->index != 0) {
        read_run(cpu, STORM_TORTURE, control->torture_reads, 0);
        reader_leaves(cpu);
        return;
    }
    struct reader reader = reader_begin(cpu, STORM_TORTURE);
    while (control->vcpus == 1
               ? reader.reading->reads < control->torture_reads && !storm_stopped(cpu)
               : readers_left(cpu)) {
        toggle(&reader);
        /* Enabled for a varying while, so that readers meet both states at every point. */
        for (uint64_t i = cpu->self->toggles % 7; i != 0; i--) {
            reader_read(&reader);
        }
    }
    reader.reading->end = reader.stamp;
}

static void noisy_run(struct storm_cpu *cpu)
{
    struct storm_control *control = cpu->control;
    uint64_t rest_ticks = ns_to_ticks(control, control->rest_ns);
    if (cpu->index != 0 || control->vcpus == 1) {
        read_run(cpu, STORM_NOISY, control->noisy_reads, control->think_ns);
        reader_leaves(cpu);
        return;
    }
    while (readers_left(cpu)) {
        storm_write64(cpu, control->device_gpa + STORM_DEVICE_HOLD_NS, control->hold_ns);
        turn_taken(cpu, ++cpu->self->holds);
        if (rest_ticks) {
            wait_ticks(rest_ticks);
        }
    }
}

/* vCPU 0: the counter must exist and be 64 bits wide; then it is started. */
static void hpet_start(struct storm_cpu *cpu)
{
    uint64_t capabilities = storm_read64(cpu, cpu->control->hpet_gpa + HPET_GCAP);
    if (!(capabilities & HPET_COUNT_SIZE_CAP) || capabilities >> 32 == 0 ||
        capabilities == UINT64_MAX) {
        storm_fail(cpu, STORM_FAIL_HPET, capabilities);
        return;
    }
    storm_write64(cpu, cpu->control->hpet_gpa + HPET_GEN_CONF, HPET_ENABLE_CNF);
    storm_timers_prepare(cpu);
}

static bool phase_begins(struct storm_cpu *cpu, enum storm_phase phase)
{
    struct storm_control *control = cpu->control;
    if (!(control->phases & 1u << phase)) {
        return false;
    }
    if (cpu->index == 0) {
        /* Relaxed: the barrier orders both before everyone's use. */
        bb_store_relaxed(&control->turns, 0);
        bb_store_relaxed(&control->readers_left, control->vcpus > 1 ? control->vcpus - 1 : 1);
    }
    storm_barrier(cpu);
    return !storm_stopped(cpu);
}

void storm_phases_run(struct storm_cpu *cpu)
{
    if (cpu->index == 0) {
        hpet_start(cpu);
    }
    if (phase_begins(cpu, STORM_READ)) {
        read_run(cpu, STORM_READ, cpu->control->reads, 0);
        storm_barrier(cpu);
    }
    if (phase_begins(cpu, STORM_TORTURE)) {
        torture_run(cpu);
        storm_barrier(cpu);
    }
    if (phase_begins(cpu, STORM_NOISY)) {
        noisy_run(cpu);
        storm_barrier(cpu);
    }
    if (phase_begins(cpu, STORM_TIMERS)) {
        storm_timers_run(cpu);
        storm_barrier(cpu);
    }
}

/* SPDX-License-Identifier: MIT */
/*
 * Stop any thread at any instruction, and every access that a device's table of paths calls
 * wait-free or lock-free still completes on all other threads.
 *
 * A child process holds a machine with every device of the tree, a victim and two workers. The
 * test traces the victim alone (ptrace), has it run one operation and single-steps it. At each
 * instruction, with the victim stopped there, both workers make every access of every table that
 * is called wait-free or lock-free, set lines, and must answer. The victims' operations are the
 * short paths named below, at every instruction; and, taken from the same tables, a read and a
 * write of every register of every device, at every instruction in a long run and at every 17th
 * else (BUSBAR_STRESS_SECONDS of 60 or more is a long run).
 *
 * The kernel's vDSO, which an operation enters to read the clock, has a loop that a stop of
 * milliseconds at each of its instructions would keep going round; it is stepped through without
 * stopping for the workers.
 */
#include <criterion/criterion.h>
#include <dlfcn.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../base/atomic.h"
#include "../../base/bits.h"
#include "machine.h"

enum { WORKERS = 2, STOPS_MAX = 2500, STEPS_MAX = 200000, ANSWER_S = 20, VDSO_BYTES = 0x4000 };

/* Shared by test and child; every field is accessed atomically. */
struct shared {
    uint32_t victim_tid;
    uint32_t command;  /* operation to run + 1; 0: none. Set by the test, cleared by the victim */
    uint32_t in_op;    /* the victim is inside the operation */
    uint32_t round;    /* counted up by the test: workers do all their accesses once more */
    uint32_t answered; /* workers that have done so, in all rounds */
    uint32_t operations;
    uint32_t quit;
    char what[96]; /* the operation's name, written by the victim before in_op */
};

static struct shared *shared;
static struct machine machine;

static void futex_wait(uint32_t *word, uint32_t seen)
{
    struct timespec second = {.tv_sec = 1};

    (void)syscall(SYS_futex, word, FUTEX_WAIT, seen, &second, NULL, 0);
}

static void futex_wake(uint32_t *word)
{
    (void)syscall(SYS_futex, word, FUTEX_WAKE, 64, NULL, NULL, 0);
}

/* In the child: the workers. */

static unsigned size_at(const struct bb_path_row *row)
{
    uint64_t length = row->last - row->first + 1;

    return length >= 4 && row->first % 4 == 0 ? 4 : (length >= 2 && row->first % 2 == 0 ? 2 : 1);
}

static void touch_row(struct bb_ctx *ctx, const struct mapped *mapped,
                      const struct bb_path_row *row)
{
    unsigned size = size_at(row);
    uint64_t value;

    if (row->read <= BB_PATH_LOCK_FREE) {
        (void)bb_mmio_read(ctx, mapped->space, mapped->gpa + row->first, size, &value);
        if (size == 4 && row->first % 8 == 0 && row->last - row->first >= 7) {
            (void)bb_mmio_read(ctx, mapped->space, mapped->gpa + row->first, 8, &value);
        }
    }
    if (row->write <= BB_PATH_LOCK_FREE) {
        (void)bb_mmio_write(ctx, mapped->space, mapped->gpa + row->first, size, 0);
    }
}

static void touch_everything(struct bb_ctx *ctx, unsigned round)
{
    uint64_t value;

    for (unsigned i = 0; i < machine.mapped_count; i++) {
        size_t rows;
        const struct bb_path_row *row = bb_region_paths(machine.mapped[i].region, &rows);

        for (size_t r = 0; r < rows; r++) {
            touch_row(ctx, &machine.mapped[i], &row[r]);
        }
    }
    (void)bb_mmio_read(ctx, machine.mmio, 0x100, 8, &value);      /* RAM */
    (void)bb_mmio_write(ctx, machine.mmio, 0x108, 8, round);      /* RAM */
    (void)bb_mmio_read(ctx, machine.mmio, 0xc0000000, 4, &value); /* nothing */
    bb_source_set(ctx, machine.other, round % 2);
    bb_source_pulse(ctx, machine.edge);
    (void)bb_msi_send(ctx, 0xfee00000, 0x51);
}

static void *worker_main(void *arg)
{
    struct bb_ctx *ctx;
    uint32_t seen = 0;

    (void)arg;
    if (bb_ctx_attach(machine.engine, "worker", &ctx, NULL) != BB_OK) {
        abort();
    }
    touch_everything(ctx, 0); /* first use of whatever is resolved at first use */
    for (;;) {
        uint32_t round = bb_load_acquire(&shared->round);

        if (round == seen) {
            futex_wait(&shared->round, seen);
            continue;
        }
        seen = round;
        touch_everything(ctx, round);
        (void)bb_fetch_add_acq_rel(&shared->answered, 1);
        futex_wake(&shared->answered);
    }
    return NULL;
}

/* In the child: the victim. */

static void op_lookup(struct bb_ctx *ctx)
{
    uint64_t value;

    /* A hit of its own, a way taken over by another, nothing, and the first again. */
    (void)bb_mmio_read(ctx, machine.pio, 0x608, 4, &value);
    (void)bb_mmio_read(ctx, machine.mmio, 0xfed00004, 4, &value);
    (void)bb_mmio_read(ctx, machine.mmio, 0xd0000000, 4, &value);
    (void)bb_mmio_read(ctx, machine.pio, 0x608, 4, &value);
}

static void op_hpet_counter(struct bb_ctx *ctx)
{
    uint64_t value;

    (void)bb_mmio_read(ctx, machine.mmio, 0xfed000f0, 8, &value);
}

static void op_hpet_enable(struct bb_ctx *ctx)
{
    (void)bb_mmio_write(ctx, machine.mmio, 0xfed00010, 8, 1);
}

static void op_hpet_disable(struct bb_ctx *ctx)
{
    (void)bb_mmio_write(ctx, machine.mmio, 0xfed00010, 8, 0);
}

static void op_line_raise(struct bb_ctx *ctx)
{
    bb_source_set(ctx, machine.level, true);
}

static void op_line_lower(struct bb_ctx *ctx)
{
    bb_source_set(ctx, machine.level, false);
}

static void op_line_pulse(struct bb_ctx *ctx)
{
    bb_source_pulse(ctx, machine.edge);
}

static void op_ioapic_mask(struct bb_ctx *ctx)
{
    (void)bb_mmio_write(ctx, machine.mmio, 0xfec00000, 4, 0x18);
    (void)bb_mmio_write(ctx, machine.mmio, 0xfec00010, 4, 0x18044);
}

static void op_ioapic_unmask(struct bb_ctx *ctx)
{
    (void)bb_mmio_write(ctx, machine.mmio, 0xfec00000, 4, 0x18);
    (void)bb_mmio_write(ctx, machine.mmio, 0xfec00010, 4, 0x8044);
}

static void op_ioapic_eoi(struct bb_ctx *ctx)
{
    (void)bb_mmio_write(ctx, machine.mmio, 0xfec00040, 4, 0x44);
}

static void op_locked_device(struct bb_ctx *ctx)
{
    uint64_t value;

    (void)bb_mmio_read(ctx, machine.mmio, 0xfd000000, 4, &value);
}

static void op_map(struct bb_ctx *ctx)
{
    (void)bb_space_map(ctx, machine.mmio, 0xfb000000, machine.spare, NULL);
}

static void op_unmap(struct bb_ctx *ctx)
{
    (void)bb_space_unmap(ctx, machine.spare, NULL);
}

static const struct {
    const char *name;
    void (*run)(struct bb_ctx *ctx);
} short_paths[] = {
    {"lookup", op_lookup},
    {"HPET counter read", op_hpet_counter},
    {"HPET enable", op_hpet_enable},
    {"HPET counter read, running", op_hpet_counter},
    {"HPET disable", op_hpet_disable},
    {"line raise", op_line_raise},
    {"line lower", op_line_lower},
    {"line pulse", op_line_pulse},
    {"I/O APIC mask", op_ioapic_mask},
    {"line raise, masked", op_line_raise},
    {"I/O APIC unmask", op_ioapic_unmask},
    {"I/O APIC EOI", op_ioapic_eoi},
    {"locked device", op_locked_device},
    {"map change", op_map},
    {"map change back", op_unmap},
};

/* The operations after the short paths: read and write of each row of each table. */
static unsigned row_operations(void)
{
    unsigned count = 0;

    for (unsigned i = 0; i < machine.mapped_count; i++) {
        size_t rows;
        (void)bb_region_paths(machine.mapped[i].region, &rows);
        count += 2 * (unsigned)rows;
    }
    return count;
}

static void run_row(struct bb_ctx *ctx, unsigned n, bool name_only)
{
    for (unsigned i = 0; i < machine.mapped_count; i++) {
        const struct mapped *mapped = &machine.mapped[i];
        size_t rows;
        const struct bb_path_row *row = bb_region_paths(mapped->region, &rows);
        uint64_t value;

        if (n >= 2 * rows) {
            n -= 2 * (unsigned)rows;
            continue;
        }
        row += n / 2;
        if (name_only) {
            (void)snprintf(shared->what, sizeof(shared->what), "%s of %s %s",
                           n % 2 == 0 ? "read" : "write", bb_region_name(mapped->region),
                           row->name);
        } else if (n % 2 == 0) {
            (void)bb_mmio_read(ctx, mapped->space, mapped->gpa + row->first, size_at(row), &value);
        } else {
            (void)bb_mmio_write(ctx, mapped->space, mapped->gpa + row->first, size_at(row), 1);
        }
        return;
    }
}

static void *victim_main(void *arg)
{
    struct bb_ctx *ctx;

    (void)arg;
    if (bb_ctx_attach(machine.engine, "victim", &ctx, NULL) != BB_OK) {
        abort();
    }
    for (unsigned i = 0; i < BB_ARRAY_LEN(short_paths); i++) {
        short_paths[i].run(ctx); /* first use, as for the workers */
    }
    bb_store_release(&shared->victim_tid, (uint32_t)syscall(SYS_gettid));
    futex_wake(&shared->victim_tid);
    for (;;) {
        uint32_t command = bb_load_acquire(&shared->command);

        if (command == 0) {
            futex_wait(&shared->command, 0);
            continue;
        }
        unsigned op = command - 1;
        if (op < BB_ARRAY_LEN(short_paths)) {
            (void)snprintf(shared->what, sizeof(shared->what), "%s", short_paths[op].name);
            bb_store_release(&shared->in_op, 1);
            short_paths[op].run(ctx);
        } else {
            op -= (unsigned)BB_ARRAY_LEN(short_paths);
            run_row(ctx, op, true);
            bb_store_release(&shared->in_op, 1);
            run_row(ctx, op, false);
        }
        bb_store_release(&shared->in_op, 0);
        bb_store_release(&shared->command, 0);
        futex_wake(&shared->command);
    }
    return NULL;
}

static _Noreturn void child_main(void)
{
    pthread_t thread;

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    machine_build(&machine);
    bb_store_release(&shared->operations, (uint32_t)BB_ARRAY_LEN(short_paths) + row_operations());
    for (unsigned i = 0; i < WORKERS; i++) {
        if (pthread_create(&thread, NULL, worker_main, NULL) != 0) {
            abort();
        }
    }
    if (pthread_create(&thread, NULL, victim_main, NULL) != 0) {
        abort();
    }
    for (;;) {
        pause();
    }
}

/* The test. */

static pid_t child;

static bool wait_for(uint32_t *word, uint32_t wanted)
{
    struct timespec start, now;

    clock_gettime(CLOCK_MONOTONIC, &start);
    for (;;) {
        uint32_t value = bb_load_acquire(word);
        if (value == wanted) {
            return true;
        }
        futex_wait(word, value);
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec - start.tv_sec > ANSWER_S) {
            return false;
        }
    }
}

/* Where the victim stands, as well as can be told. */
static const char *place_of(pid_t victim, char *text, size_t bytes)
{
    struct user_regs_struct regs;
    Dl_info info;

    if (ptrace(PTRACE_GETREGS, victim, NULL, &regs) != 0) {
        return "?";
    }
    if (dladdr((void *)(uintptr_t)regs.rip, &info) != 0 && info.dli_sname != NULL) {
        (void)snprintf(text, bytes, "%s+0x%lx", info.dli_sname,
                       (unsigned long)(regs.rip - (uintptr_t)info.dli_saddr));
    } else {
        (void)snprintf(text, bytes, "0x%lx", (unsigned long)regs.rip);
    }
    return text;
}

static bool in_vdso(pid_t victim)
{
    struct user_regs_struct regs;
    unsigned long vdso = getauxval(AT_SYSINFO_EHDR);

    return ptrace(PTRACE_GETREGS, victim, NULL, &regs) == 0 && regs.rip >= vdso &&
           regs.rip < vdso + VDSO_BYTES;
}

static void stopped(pid_t victim)
{
    int status;

    cr_assert_eq(waitpid(victim, &status, __WALL), victim, "waitpid: %s", strerror(errno));
    cr_assert(WIFSTOPPED(status), "the victim ended: status 0x%x", (unsigned)status);
}

/* Runs operation `op` in the victim, stopping at every `stride`-th instruction. */
static unsigned step_through(pid_t victim, unsigned op, unsigned stride, uint32_t *answers)
{
    unsigned stops = 0;
    unsigned instructions = 0;
    char place[128];

    cr_assert_eq(ptrace(PTRACE_INTERRUPT, victim, NULL, NULL), 0);
    stopped(victim);
    bb_store_release(&shared->command, op + 1);
    for (unsigned step = 0;; step++) {
        cr_assert_lt(step, STEPS_MAX, "operation %u does not end", op);
        cr_assert_eq(ptrace(PTRACE_SINGLESTEP, victim, NULL, NULL), 0);
        stopped(victim);
        if (bb_load_acquire(&shared->command) == 0) {
            break;
        }
        /* The workers change the same lines and entries at each stop, so a victim that is lock-free
         * and not wait-free may have to try again for as long as they do. */
        if (bb_load_acquire(&shared->in_op) == 0 || in_vdso(victim) || stops == STOPS_MAX ||
            instructions++ % stride != 0) {
            continue;
        }
        stops++;
        *answers += WORKERS;
        (void)bb_fetch_add_acq_rel(&shared->round, 1);
        futex_wake(&shared->round);
        if (!wait_for(&shared->answered, *answers)) {
            cr_assert_fail("with a thread stopped in '%s' at %s, %u of %d others did not finish "
                           "their lock-free accesses in %d s",
                           shared->what, place_of(victim, place, sizeof(place)),
                           *answers - bb_load_acquire(&shared->answered), WORKERS, ANSWER_S);
        }
    }
    cr_assert_eq(ptrace(PTRACE_CONT, victim, NULL, NULL), 0);
    return stops;
}

static pid_t start_child(void)
{
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(shared, MAP_FAILED);
    child = fork();
    cr_assert_geq(child, 0);
    if (child == 0) {
        child_main();
    }
    uint32_t tid;
    while ((tid = bb_load_acquire(&shared->victim_tid)) == 0) {
        futex_wait(&shared->victim_tid, 0);
        cr_assert_eq(waitpid(child, NULL, WNOHANG), 0, "the child ended");
    }
    cr_assert_eq(ptrace(PTRACE_SEIZE, (pid_t)tid, NULL, NULL), 0, "ptrace: %s", strerror(errno));
    return (pid_t)tid;
}

static void stop_child(void)
{
    if (child > 0) {
        (void)kill(child, SIGKILL);
        /* The traced thread is waited for apart, and before its process can be. */
        while (waitpid(-1, NULL, __WALL) > 0) {
        }
    }
}

TestSuite(stall, .fini = stop_child, .timeout = 1200);

static bool long_run(void)
{
    const char *seconds = getenv("BUSBAR_STRESS_SECONDS");

    return seconds != NULL && atoi(seconds) >= 60;
}

Test(stall, a_thread_stopped_at_any_instruction_of_a_short_path_stops_nobody)
{
    pid_t victim = start_child();
    uint32_t answers = 0;

    for (unsigned op = 0; op < BB_ARRAY_LEN(short_paths); op++) {
        unsigned stops = step_through(victim, op, 1, &answers);
        (void)printf("%-28s %5u instructions, each with %d others completing\n",
                     short_paths[op].name, stops, WORKERS);
        cr_assert_gt(stops, 10, "'%s' was not stepped through", short_paths[op].name);
    }
}

Test(stall, a_thread_stopped_in_any_register_of_any_device_stops_nobody)
{
    pid_t victim = start_child();
    uint32_t answers = 0;
    uint32_t operations = bb_load_acquire(&shared->operations);
    unsigned stops = 0;

    for (unsigned op = (unsigned)BB_ARRAY_LEN(short_paths); op < operations; op++) {
        stops += step_through(victim, op, long_run() ? 1 : 17, &answers);
    }
    (void)printf("%u operations, %u stops\n", (unsigned)(operations - BB_ARRAY_LEN(short_paths)),
                 stops);
    cr_assert_gt(operations, BB_ARRAY_LEN(short_paths) + 40);
}

/* SPDX-License-Identifier: MIT */
/* Doorbells: which writes ring, that no callback runs then, and what a transaction may ask for. */
#include "fixture.h"

#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../../memory/doorbell.h"

static struct machine machine;
static struct probe probe;

static void setup(void)
{
    struct bb_region_config config = {.rules = {.valid_max = 64, .unaligned = true}};

    machine_make(&machine, NULL);
    probe = (struct probe){0};
    probe_make_config(&machine, &probe, "bells", 0, &config);
}

static void teardown(void)
{
    probe_drop(&probe);
    machine_drop(&machine);
}

TestSuite(doorbell, .init = setup, .fini = teardown, .timeout = 120);

static int event(void)
{
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

    cr_assert_geq(fd, 0);
    return fd;
}

/* How often it was rung since last asked. */
static uint64_t rung(int fd)
{
    uint64_t count = 0;

    return read(fd, &count, sizeof(count)) == (ssize_t)sizeof(count) ? count : 0;
}

static int change(struct bb_region *region, const struct bb_doorbell *bell, bool add,
                  struct bb_error *err)
{
    struct bb_txn *txn;

    cr_assert_eq(bb_txn_begin(machine.ctx, &txn, NULL), BB_OK);
    int result = add ? bb_txn_doorbell_add(txn, region, bell, err)
                     : bb_txn_doorbell_remove(txn, region, bell, err);
    if (result != BB_OK) {
        bb_txn_abort(txn);
        return result;
    }
    return bb_txn_commit(txn, err);
}

static void add(struct bb_region *region, struct bb_doorbell bell)
{
    struct bb_error err = {0};

    cr_assert_eq(change(region, &bell, true, &err), BB_OK, "%s", err.text);
}

static void take_off(struct bb_region *region, struct bb_doorbell bell)
{
    struct bb_error err = {0};

    cr_assert_eq(change(region, &bell, false, &err), BB_OK, "%s", err.text);
}

Test(doorbell, of_a_size_and_any_value_rings_for_that_size_at_that_offset_alone)
{
    int fd = event();

    add(probe.region, (struct bb_doorbell){.offset = 0x10, .size = 4, .fd = fd});
    mmio_write(&machine, probe.gpa + 0x10, 4, 7);
    mmio_write(&machine, probe.gpa + 0x10, 4, UINT32_MAX);
    cr_assert_eq(rung(fd), 2);
    cr_assert_eq(probe.writes, 0);
    mmio_write(&machine, probe.gpa + 0x10, 2, 7);
    mmio_write(&machine, probe.gpa + 0x10, 8, 7);
    mmio_write(&machine, probe.gpa + 0x0c, 4, 7);
    mmio_write(&machine, probe.gpa + 0x0e, 4, 7); /* reaches into it */
    mmio_write(&machine, probe.gpa + 0x14, 4, 7);
    (void)mmio_read(&machine, probe.gpa + 0x10, 4);
    cr_assert_eq(rung(fd), 0);
    cr_assert_geq(probe.writes, 5);
    cr_assert_eq(probe.reads, 1);
    cr_assert_eq(bb_engine_stats(machine.ctx).doorbells_rung, 2);
    close(fd);
}

Test(doorbell, of_one_value_rings_for_that_value_alone)
{
    int low = event(), high = event(), byte = event();

    add(probe.region, (struct bb_doorbell){.offset = 8, .size = 4, .match_value = true, .fd = low});
    add(probe.region,
        (struct bb_doorbell){
            .offset = 8, .size = 4, .match_value = true, .value = UINT32_MAX, .fd = high});
    add(probe.region,
        (struct bb_doorbell){.offset = 8, .size = 1, .match_value = true, .value = 5, .fd = byte});
    mmio_write(&machine, probe.gpa + 8, 4, 0);
    mmio_write(&machine, probe.gpa + 8, 4, UINT64_C(0xabcdef12ffffffff)); /* low bytes count */
    mmio_write(&machine, probe.gpa + 8, 1, 5);
    cr_assert_eq(probe.writes, 0);
    mmio_write(&machine, probe.gpa + 8, 4, 1);
    mmio_write(&machine, probe.gpa + 8, 1, 0);
    mmio_write(&machine, probe.gpa + 8, 2, 5);
    cr_assert_eq(probe.writes, 3);
    cr_assert_eq(rung(low), 1);
    cr_assert_eq(rung(high), 1);
    cr_assert_eq(rung(byte), 1);
    close(low);
    close(high);
    close(byte);
}

Test(doorbell, without_a_size_rings_for_every_write_that_begins_there)
{
    static const uint8_t wide[64];
    int fd = event();

    add(probe.region, (struct bb_doorbell){.offset = 0x40, .fd = fd});
    for (unsigned size = 1; size <= 8; size *= 2) {
        mmio_write(&machine, probe.gpa + 0x40, size, size);
    }
    cr_assert_eq(bb_access_write(machine.ctx, machine.mmio, probe.gpa + 0x40, wide, 64,
                                 (struct bb_attrs){.requester_id = 3}),
                 BB_OK);
    cr_assert_eq(rung(fd), 5);
    cr_assert_eq(probe.writes, 0);
    mmio_write(&machine, probe.gpa + 0x41, 1, 0);
    mmio_write(&machine, probe.gpa + 0x3f, 2, 0);
    cr_assert_eq(rung(fd), 0);
    close(fd);
}

Test(doorbell, is_found_among_as_many_as_there_can_be)
{
    struct bb_txn *txn;
    struct bb_error err = {0};
    int odd = event(), even = event();
    unsigned made = 0;

    /* From the highest down, so that each goes in front of the others. */
    cr_assert_eq(bb_txn_begin(machine.ctx, &txn, NULL), BB_OK);
    for (unsigned i = 0; i < BB_DOORBELLS_MAX; i++) {
        unsigned n = BB_DOORBELLS_MAX - 1 - i;
        struct bb_doorbell bell = {.offset = n / 8 * 2,
                                   .size = 2,
                                   .match_value = true,
                                   .value = n % 8 * 3,
                                   .fd = n % 2 != 0 ? odd : even};
        cr_assert_eq(bb_txn_doorbell_add(txn, probe.region, &bell, &err), BB_OK, "%s", err.text);
    }
    cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
    for (unsigned offset = 0; offset < DEVICE_BYTES; offset += 2) {
        for (unsigned value = 0; value < 24; value++) {
            bool hit = value % 3 == 0;
            mmio_write(&machine, probe.gpa + offset, 2, value);
            made += hit ? 0 : 1;
            cr_assert_eq(rung(odd), hit && value / 3 % 2 == 1 ? 1 : 0);
            cr_assert_eq(rung(even), hit && value / 3 % 2 == 0 ? 1 : 0);
        }
    }
    cr_assert_eq(probe.writes, made);
    struct bb_doorbell more = {.offset = 0, .size = 4, .fd = odd};
    cr_assert_eq(change(probe.region, &more, true, &err), BB_E_LIMIT);
    cr_assert_not_null(strstr(err.text, "1024"), "%s", err.text);
    close(odd);
    close(even);
}

Test(doorbell, rings_wherever_its_region_is_shown)
{
    struct bb_alias_config config = {
        .name = "window", .target = probe.region, .offset = 0x10, .size_bytes = 0x20};
    struct bb_region *alias, *again;
    int fd = event();

    cr_assert_eq(bb_alias_create(machine.ctx, &config, &alias, NULL), BB_OK);
    cr_assert_eq(bb_alias_create(machine.ctx, &config, &again, NULL), BB_OK);
    cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, DEVICE_GPA(1), alias, NULL), BB_OK);
    add(probe.region, (struct bb_doorbell){.offset = 0x18, .size = 4, .fd = fd});
    /* One that was there before the doorbell, one that comes after it, in another space. */
    cr_assert_eq(bb_space_map(machine.ctx, machine.pio, 0x100, again, NULL), BB_OK);
    mmio_write(&machine, probe.gpa + 0x18, 4, 1);
    mmio_write(&machine, DEVICE_GPA(1) + 8, 4, 2);
    cr_assert_eq(bb_mmio_write(machine.ctx, machine.pio, 0x108, 4, 3), BB_OK);
    cr_assert_eq(rung(fd), 3);
    cr_assert_eq(probe.writes, 0);
    mmio_write(&machine, DEVICE_GPA(1) + 0x18, 4, 2);
    cr_assert_eq(rung(fd), 0);
    cr_assert_eq(bb_region_remove_wait(machine.ctx, alias, NULL), BB_OK);
    cr_assert_eq(bb_region_remove_wait(machine.ctx, again, NULL), BB_OK);
    close(fd);
}

Test(doorbell, that_is_taken_off_rings_no_more)
{
    struct bb_doorbell any = {.offset = 4, .size = 4, .fd = event()};
    struct bb_doorbell one = {
        .offset = 8, .size = 2, .match_value = true, .value = 9, .fd = any.fd};
    struct bb_error err = {0};

    add(probe.region, any);
    add(probe.region, one);
    cr_assert_eq(change(probe.region, &(struct bb_doorbell){.offset = 4, .size = 0, .fd = any.fd},
                        false, &err),
                 BB_E_NOENT);
    cr_assert_eq(change(probe.region, &(struct bb_doorbell){.offset = 8, .size = 2, .fd = any.fd},
                        false, &err),
                 BB_E_NOENT);
    take_off(probe.region, (struct bb_doorbell){.offset = 4, .size = 4, .value = 77, .fd = -1});
    mmio_write(&machine, probe.gpa + 4, 4, 0);
    mmio_write(&machine, probe.gpa + 8, 2, 9);
    cr_assert_eq(rung(any.fd), 1);
    cr_assert_eq(probe.writes, 1);
    take_off(probe.region, one);
    mmio_write(&machine, probe.gpa + 8, 2, 9);
    cr_assert_eq(rung(any.fd), 0);
    cr_assert_eq(probe.writes, 2);
    cr_assert_eq(change(probe.region, &one, false, &err), BB_E_NOENT);
    close(any.fd);
}

Test(doorbell, beside_one_that_the_same_write_would_ring_is_refused)
{
    static const struct {
        struct bb_doorbell there, more;
        bool refused;
    } rows[] = {
        {{.offset = 0, .size = 4}, {.offset = 0, .size = 4}, true},
        {{.offset = 0, .size = 4}, {.offset = 0, .size = 0}, true},
        {{.offset = 0, .size = 0}, {.offset = 0, .size = 8}, true},
        {{.offset = 0, .size = 0}, {.offset = 0, .size = 0}, true},
        {{.offset = 0, .size = 0}, {.offset = 0, .size = 2, .match_value = true, .value = 1}, true},
        {{.offset = 0, .size = 2, .match_value = true, .value = 1}, {.offset = 0, .size = 0}, true},
        {{.offset = 0, .size = 2, .match_value = true, .value = 1}, {.offset = 0, .size = 2}, true},
        {{.offset = 0, .size = 2}, {.offset = 0, .size = 2, .match_value = true, .value = 1}, true},
        {{.offset = 0, .size = 2, .match_value = true, .value = 1},
         {.offset = 0, .size = 2, .match_value = true, .value = 1},
         true},
        {{.offset = 0, .size = 2, .match_value = true, .value = 1},
         {.offset = 0, .size = 2, .match_value = true, .value = 2},
         false},
        {{.offset = 0, .size = 2}, {.offset = 0, .size = 4}, false},
        {{.offset = 0, .size = 4}, {.offset = 1, .size = 4}, false},
        {{.offset = 0, .size = 0}, {.offset = 1, .size = 0}, false},
    };

    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct bb_doorbell there = rows[i].there, more = rows[i].more;
        struct bb_error err = {0};

        there.fd = event();
        more.fd = event();
        add(probe.region, there);
        cr_assert_eq(change(probe.region, &more, true, &err), rows[i].refused ? BB_E_EXIST : BB_OK,
                     "row %u: %s", i, err.text);
        mmio_write(&machine, probe.gpa + there.offset, there.size == 0 ? 4 : there.size,
                   there.value);
        cr_assert_eq(rung(there.fd), 1, "row %u", i);
        mmio_write(&machine, probe.gpa + more.offset, more.size == 0 ? 4 : more.size, more.value);
        cr_assert_eq(rung(more.fd), rows[i].refused ? 0 : 1, "row %u", i);
        take_off(probe.region, there);
        if (!rows[i].refused) {
            take_off(probe.region, more);
        }
        close(there.fd);
        close(more.fd);
    }
}

Test(doorbell, that_makes_no_sense_is_refused_with_what_would)
{
    struct bb_region *container;
    static const struct {
        struct bb_doorbell bell;
        int result;
        const char *says;
    } rows[] = {
        {{.offset = 0, .size = 3}, BB_E_INVAL, "size 3"},
        {{.offset = 0, .size = 16}, BB_E_INVAL, "size 16"},
        {{.offset = 0, .size = 0, .match_value = true}, BB_E_INVAL, "any size"},
        {{.offset = 0, .size = 4, .fd = -1}, BB_E_INVAL, "-1"},
        {{.offset = 0, .size = 1, .match_value = true, .value = 0x100}, BB_E_RANGE, "0xff"},
        {{.offset = DEVICE_BYTES - 3, .size = 4}, BB_E_RANGE, "0xfd"},
        {{.offset = DEVICE_BYTES, .size = 0}, BB_E_RANGE, "0x100"},
        {{.offset = UINT64_MAX, .size = 2}, BB_E_RANGE, "0xff"},
        {{.offset = DEVICE_BYTES - 4, .size = 4}, BB_OK, NULL},
        {{.offset = DEVICE_BYTES - 1, .size = 0}, BB_OK, NULL},
    };
    struct bb_error err = {0};

    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        cr_assert_eq(change(probe.region, &rows[i].bell, true, &err), rows[i].result, "row %u: %s",
                     i, err.text);
        cr_assert(rows[i].says == NULL || strstr(err.text, rows[i].says) != NULL, "row %u: %s", i,
                  err.text);
    }
    cr_assert_eq(change(machine.ram, &(struct bb_doorbell){.size = 4}, true, &err), BB_E_INVAL);
    cr_assert_not_null(strstr(err.text, "RAM"), "%s", err.text);
    cr_assert_eq(bb_container_create(machine.ctx, "box", 0x100, &container, NULL), BB_OK);
    cr_assert_eq(change(container, &(struct bb_doorbell){.size = 4}, true, &err), BB_E_INVAL);
    cr_assert_eq(bb_region_remove_wait(machine.ctx, container, NULL), BB_OK);
    cr_assert_eq(bb_txn_doorbell_add(NULL, probe.region, &(struct bb_doorbell){0}, &err),
                 BB_E_INVAL);
    cr_assert_eq(change(probe.region, NULL, true, &err), BB_E_INVAL);
    cr_assert_eq(change(NULL, &(struct bb_doorbell){0}, false, &err), BB_E_INVAL);
}

Test(doorbell, changes_with_its_transaction_or_not_at_all)
{
    struct bb_doorbell bell = {.offset = 0, .size = 4, .fd = event()};
    struct bb_txn *txn;

    cr_assert_eq(bb_txn_begin(machine.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_doorbell_add(txn, probe.region, &bell, NULL), BB_OK);
    cr_assert_eq(bb_txn_doorbell_add(txn, probe.region, &bell, NULL), BB_OK);
    mmio_write(&machine, probe.gpa, 4, 0);
    cr_assert_eq(rung(bell.fd), 0);
    cr_assert_eq(bb_txn_commit(txn, NULL), BB_E_EXIST);
    mmio_write(&machine, probe.gpa, 4, 0);
    cr_assert_eq(rung(bell.fd), 0);

    /* Moved, and rung in the new place from the same moment on. */
    cr_assert_eq(bb_txn_begin(machine.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_doorbell_add(txn, probe.region, &bell, NULL), BB_OK);
    cr_assert_eq(bb_txn_move(txn, probe.region, DEVICE_GPA(5), NULL), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, NULL), BB_OK);
    mmio_write(&machine, DEVICE_GPA(5), 4, 0);
    cr_assert_eq(rung(bell.fd), 1);
    cr_assert_eq(probe.writes, 2);
    close(bell.fd);
}

Test(doorbell, whose_counter_is_full_has_been_rung)
{
    const uint64_t most = UINT64_MAX - 1;
    int fd = event();

    cr_assert_eq(write(fd, &most, sizeof(most)), (ssize_t)sizeof(most));
    add(probe.region, (struct bb_doorbell){.offset = 0, .size = 4, .fd = fd});
    mmio_write(&machine, probe.gpa, 4, 0);
    cr_assert_eq(probe.writes, 0);
    cr_assert_eq(rung(fd), most);
    close(fd);
}

Test(doorbell, whose_descriptor_takes_no_write_leaves_it_to_the_callback)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    cr_assert_geq(fd, 0);
    add(probe.region, (struct bb_doorbell){.offset = 0, .size = 4, .fd = fd});
    mmio_write(&machine, probe.gpa, 4, 12);
    cr_assert_eq(probe.writes, 1);
    cr_assert_eq(probe.last_value, 12);
    cr_assert_eq(bb_engine_stats(machine.ctx).doorbells_failed, 1);
    cr_assert_eq(bb_engine_stats(machine.ctx).doorbells_rung, 0);
    close(fd);
}

Test(doorbell, compares_the_value_that_the_access_has_whatever_the_byte_order)
{
    struct bb_region_config config = {.rules = {.endian = BB_BIG_ENDIAN, .impl_max = 1}};
    struct probe swapped = {0};
    int fd = event();

    probe_make_config(&machine, &swapped, "swapped", 1, &config);
    add(swapped.region,
        (struct bb_doorbell){
            .offset = 0, .size = 4, .match_value = true, .value = 0x11223344, .fd = fd});
    mmio_write(&machine, swapped.gpa, 4, 0x11223344);
    cr_assert_eq(rung(fd), 1);
    cr_assert_eq(swapped.writes, 0);
    mmio_write(&machine, swapped.gpa, 4, 0x44332211);
    cr_assert_eq(rung(fd), 0);
    cr_assert_eq(swapped.writes, 4);
    probe_drop(&swapped);
    close(fd);
}

Test(doorbell, of_a_rom_device_rings_in_either_mode)
{
    struct bb_region_config config = {.rom_device = true, .size_bytes = 0x1000};
    struct probe flash = {0};
    struct bb_txn *txn;
    int fd = event();

    probe_make_config(&machine, &flash, "flash", 1, &config);
    add(flash.region, (struct bb_doorbell){.offset = 0x555, .size = 1, .fd = fd});
    mmio_write(&machine, flash.gpa + 0x555, 1, 0xaa);
    cr_assert_eq(bb_txn_begin(machine.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_rom_mode(txn, flash.region, false, NULL), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, NULL), BB_OK);
    mmio_write(&machine, flash.gpa + 0x555, 1, 0xaa);
    cr_assert_eq(rung(fd), 2);
    cr_assert_eq(flash.writes, 0);
    probe_drop(&flash);
    close(fd);
}

/* A callback that writes to the bell, and one that writes to `plain` first. */
struct caller {
    struct probe *plain;
    int fd;
    uint64_t at_once; /* rung when the callback's write had returned */
    uint64_t before;  /* rung when `plain` was written */
};

static int write_bell(struct bb_ctx *ctx, struct probe *from, uint64_t offset, unsigned size,
                      uint64_t value)
{
    struct caller *caller = from->arg;

    (void)offset;
    (void)size;
    if (caller->plain != NULL &&
        bb_mmio_write(ctx, machine.mmio, caller->plain->gpa, 4, value) != BB_OK) {
        return BB_E_DEVICE;
    }
    if (bb_mmio_write(ctx, machine.mmio, probe.gpa, 4, value) != BB_OK) {
        return BB_E_DEVICE;
    }
    caller->at_once = rung(caller->fd);
    return BB_OK;
}

static int note_bell(struct bb_ctx *ctx, struct probe *plain, uint64_t offset, unsigned size,
                     uint64_t value)
{
    struct caller *caller = plain->arg;

    (void)ctx;
    (void)offset;
    (void)size;
    (void)value;
    caller->before = rung(caller->fd);
    return BB_OK;
}

Test(doorbell, is_rung_by_nested_writes_at_once_and_in_its_turn_behind_a_posted_one)
{
    static const enum bb_class classes[] = {BB_CLASS_LOCKFREE, BB_CLASS_DEVICE_LOCK,
                                            BB_CLASS_MAY_SLEEP};
    int fd = event();

    add(probe.region, (struct bb_doorbell){.offset = 0, .size = 4, .fd = fd});
    for (unsigned i = 0; i < 3; i++) {
        struct caller caller = {.fd = fd};
        struct probe from = {.write = write_bell, .arg = &caller};
        struct probe plain = {.write = note_bell, .arg = &caller};

        probe_make(&machine, &from, "from", 1, classes[i]);
        probe_make(&machine, &plain, "plain", 2, BB_CLASS_DEVICE_LOCK);
        mmio_write(&machine, from.gpa, 4, 0);
        cr_assert_eq(caller.at_once, 1);
        caller.plain = &plain;
        mmio_write(&machine, from.gpa, 4, 0);
        cr_assert_eq(caller.at_once, 0);
        cr_assert_eq(plain.writes, 1);
        cr_assert_eq(caller.before, 0);
        cr_assert_eq(rung(fd), 1);
        probe_drop(&from);
        probe_drop(&plain);
    }
    cr_assert_eq(probe.writes, 0);
    close(fd);
}

Test(doorbell, of_a_region_of_any_class_runs_no_callback)
{
    static const enum bb_class classes[] = {BB_CLASS_DEVICE_LOCK, BB_CLASS_MAY_SLEEP};

    for (unsigned i = 0; i < 2; i++) {
        struct probe other = {0};
        int fd = event();

        probe_make(&machine, &other, "other", 1, classes[i]);
        add(other.region, (struct bb_doorbell){.offset = 4, .size = 2, .fd = fd});
        mmio_write(&machine, other.gpa + 4, 2, 0);
        cr_assert_eq(rung(fd), 1);
        cr_assert_eq(other.writes, 0);
        probe_drop(&other);
        close(fd);
    }
}

/* Changes beside writes. */

enum { WRITERS_MAX = 8 };

struct storm {
    uint32_t stop;                /* set by main, relaxed: a hint */
    uint64_t writes[WRITERS_MAX]; /* each by its thread; read when that has ended */
    uint32_t failed;
};

struct writer {
    struct storm *storm;
    unsigned index;
};

static void write_bells(struct bb_ctx *ctx, void *arg)
{
    struct writer *writer = arg;
    struct storm *storm = writer->storm;

    while (bb_load_relaxed(&storm->stop) == 0) {
        if (bb_mmio_write(ctx, machine.mmio, probe.gpa + 8, 4, 1) != BB_OK) {
            bb_store_relaxed(&storm->failed, 1);
        }
        storm->writes[writer->index]++;
    }
}

Test(doorbell, every_write_rings_or_runs_its_callback_while_doorbells_come_and_go)
{
    uint64_t until = host_ns() + (uint64_t)stress_seconds() * 1000000000u;
    unsigned count = stress_threads(2);
    struct storm storm = {0};
    struct worker worker[WRITERS_MAX];
    struct writer writer[WRITERS_MAX];
    uint64_t signals = 0, writes = 0, rounds = 0;

    count = count > WRITERS_MAX ? WRITERS_MAX : count;
    for (unsigned i = 0; i < count; i++) {
        writer[i] = (struct writer){&storm, i};
        worker_start(&worker[i], &machine, "writer", write_bells, &writer[i]);
    }
    while (host_ns() < until) {
        struct bb_doorbell bell = {.offset = 8, .size = rounds % 2 != 0 ? 4 : 0, .fd = event()};

        add(probe.region, bell);
        for (unsigned i = 0; i < 8; i++) {
            add(probe.region, (struct bb_doorbell){.offset = 16 + i, .size = 1, .fd = bell.fd});
        }
        /* On a busy host the writers may not run for rounds on end; some are waited for. */
        uint64_t before = signals, made = bb_load_relaxed(&probe.writes); /* hints */
        while (rounds % 16 == 0 && signals == before) {
            signals += rung(bell.fd);
            sched_yield();
        }
        take_off(probe.region, bell);
        while (rounds % 16 == 0 && bb_load_relaxed(&probe.writes) == made) {
            sched_yield();
        }
        for (unsigned i = 0; i < 8; i++) {
            take_off(probe.region, (struct bb_doorbell){.offset = 16 + i, .size = 1});
        }
        /* What was found before the commit may still ring, until this: then it may be closed. */
        cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
        signals += rung(bell.fd);
        close(bell.fd);
        rounds++;
    }
    bb_store_relaxed(&storm.stop, 1); /* joined next */
    for (unsigned i = 0; i < count; i++) {
        worker_join(&worker[i]);
        writes += storm.writes[i];
    }
    cr_assert_eq(bb_load_relaxed(&storm.failed), 0);
    cr_assert_eq(bb_engine_stats(machine.ctx).doorbells_failed, 0);
    cr_assert_eq(signals + probe.writes, writes);
    cr_assert_gt(signals, 0);
    cr_assert_gt(probe.writes, 0);
}

/* SPDX-License-Identifier: MIT */
/*
 * Listeners: exactly which calls a commit makes, in which order, and what they may rely on. A
 * listener of these tests writes down what it is told:
 *   [1-2+ m0-1+   begin: ranges that go and come, and how many of them are memory
 *   -a 0-ff       removed; + added, = unchanged
 *   -bell 10      doorbell_removed, at its address; + added; -wc 10-1f likewise coalesced ranges
 *   start a 0-ff  log_start; stop, sync likewise
 *   ]             commit
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "../../memory/listener.h"
#include "../../memory/ram.h"
#include "fixture.h"

static struct fixture fixture;
static struct bb_space *mem;

/* What all listeners of a test were told. */
static struct {
    char text[4096];
    size_t used;
} heard;

static void __attribute__((format(printf, 1, 2))) hear(const char *fmt, ...)
{
    va_list args;

    if (heard.used != 0) {
        heard.text[heard.used++] = ' ';
    }
    va_start(args, fmt);
    heard.used +=
        (size_t)vsnprintf(heard.text + heard.used, sizeof(heard.text) - heard.used, fmt, args);
    va_end(args);
    cr_assert_lt(heard.used, sizeof(heard.text));
}

static void forget(void)
{
    heard.used = 0;
    heard.text[0] = '\0';
}

#define HEARD(expected)                                                                            \
    do {                                                                                           \
        cr_assert_str_eq(heard.text, expected, "heard: %s", heard.text);                           \
        forget();                                                                                  \
    } while (0)

/* `opaque` of a listener is the mark before each of its words: "" or "1:", "2:" ... */
static void on_begin(void *opaque, const struct bb_change *change)
{
    hear("%s[%zu-%zu+ m%zu-%zu+", (const char *)opaque, change->removed, change->added,
         change->memory_removed, change->memory_added);
}

static void on_range(void *opaque, const char *what, const struct bb_range *range)
{
    hear("%s%s%s %" PRIx64 "-%" PRIx64, (const char *)opaque, what, bb_region_name(range->region),
         range->first, range->last);
}

static void on_removed(void *opaque, const struct bb_range *range)
{
    on_range(opaque, "-", range);
}

static void on_added(void *opaque, const struct bb_range *range)
{
    on_range(opaque, "+", range);
}

static void on_unchanged(void *opaque, const struct bb_range *range)
{
    on_range(opaque, "=", range);
}

static void on_bell_removed(void *opaque, struct bb_space *space, bb_gpa_t at,
                            const struct bb_doorbell *doorbell)
{
    (void)space;
    (void)doorbell;
    hear("%s-bell %" PRIx64, (const char *)opaque, at);
}

static void on_bell_added(void *opaque, struct bb_space *space, bb_gpa_t at,
                          const struct bb_doorbell *doorbell)
{
    (void)space;
    (void)doorbell;
    hear("%s+bell %" PRIx64, (const char *)opaque, at);
}

static void on_coalesced_removed(void *opaque, struct bb_space *space, bb_gpa_t first,
                                 bb_gpa_t last)
{
    (void)space;
    hear("%s-wc %" PRIx64 "-%" PRIx64, (const char *)opaque, first, last);
}

static void on_coalesced_added(void *opaque, struct bb_space *space, bb_gpa_t first, bb_gpa_t last)
{
    (void)space;
    hear("%s+wc %" PRIx64 "-%" PRIx64, (const char *)opaque, first, last);
}

static void on_commit(void *opaque)
{
    hear("%s]", (const char *)opaque);
}

static void on_log_start(void *opaque, const struct bb_range *range)
{
    on_range(opaque, "start ", range);
}

static void on_log_stop(void *opaque, const struct bb_range *range)
{
    on_range(opaque, "stop ", range);
}

static void on_log_sync(struct bb_ctx *ctx, void *opaque, const struct bb_range *range)
{
    (void)ctx;
    on_range(opaque, "sync ", range);
}

#define MOST_HOOKS                                                                                 \
    .begin = on_begin, .removed = on_removed, .added = on_added,                                   \
    .doorbell_removed = on_bell_removed, .doorbell_added = on_bell_added,                          \
    .coalesced_removed = on_coalesced_removed, .coalesced_added = on_coalesced_added,              \
    .commit = on_commit, .log_start = on_log_start, .log_stop = on_log_stop,                       \
    .log_sync = on_log_sync

static const struct bb_listener_ops most_ops = {MOST_HOOKS};
static const struct bb_listener_ops all_ops = {MOST_HOOKS, .unchanged = on_unchanged};

static struct bb_listener *listen_with(struct bb_space *space, const struct bb_listener_ops *ops,
                                       const char *mark, int priority)
{
    struct bb_listener_config config = {.name = "test",
                                        .space = space,
                                        .ops = ops,
                                        .opaque = (void *)(uintptr_t)mark,
                                        .priority = priority};
    struct bb_listener *listener = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_listener_add(fixture.ctx, &config, &listener, &err), BB_OK, "%s", err.text);
    return listener;
}

static void unlisten(struct bb_listener *listener)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_listener_remove(fixture.ctx, listener, &err), BB_OK, "%s", err.text);
}

static void begin(void)
{
    forget();
    fixture_begin(&fixture);
    mem = fixture_space(&fixture, "mem", BB_SPACE_MMIO, 0);
}

static void end(void)
{
    fixture_end(&fixture);
}

TestSuite(listener, .init = begin, .fini = end);

static struct bb_region *io(const char *name, uint64_t size)
{
    return fixture_region(&fixture, name, size, 1);
}

static struct bb_region *ram(const char *name, uint64_t size)
{
    struct bb_ram_config config = {.name = name, .size_bytes = size};
    struct bb_region *region = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_ram_create(fixture.ctx, &config, &region, &err), BB_OK, "%s", err.text);
    return region;
}

static void map(bb_gpa_t at, struct bb_region *region, int priority)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_region_place(fixture.ctx, bb_space_root(mem), at, region, priority, &err),
                 BB_OK, "%s", err.text);
}

static struct bb_txn *txn_begin(void)
{
    struct bb_txn *txn = NULL;

    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, NULL), BB_OK);
    return txn;
}

static void commit(struct bb_txn *txn)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
}

Test(listener, is_told_of_all_there_is_and_in_the_end_that_it_is_gone)
{
    struct bb_region *a = io("a", 0x100), *b = ram("b", 0x1000);

    map(0, a, 0);
    map(0x2000, b, 0);
    struct bb_listener *listener = listen_with(mem, &most_ops, "", 0);
    HEARD("[0-2+ m0-1+ +a 0-ff +b 2000-2fff ]");
    unlisten(listener);
    HEARD("[2-0+ m1-0+ -b 2000-2fff -a 0-ff ]");
    fixture_remove(&fixture, a);
    fixture_remove(&fixture, b);
    HEARD("");
}

Test(listener, hears_what_goes_in_falling_and_what_comes_in_rising_order)
{
    struct bb_region *a = io("a", 0x1000), *b = ram("b", 0x1000), *c = ram("c", 0x400);
    struct bb_listener *listener = listen_with(mem, &most_ops, "", 0);

    HEARD("[0-0+ m0-0+ ]");
    struct bb_txn *txn = txn_begin();
    cr_assert_eq(bb_txn_map(txn, mem, 0x1000, b, NULL), BB_OK);
    cr_assert_eq(bb_txn_map(txn, mem, 0, a, NULL), BB_OK);
    commit(txn);
    HEARD("[0-2+ m0-1+ +a 0-fff +b 1000-1fff ]");
    map(0xe00, c, 1);
    HEARD("[2-3+ m1-2+ -b 1000-1fff -a 0-fff +a 0-dff +c e00-11ff +b 1200-1fff ]");
    fixture_remove(&fixture, c);
    HEARD("[3-2+ m2-1+ -b 1200-1fff -c e00-11ff -a 0-dff +a 0-fff +b 1000-1fff ]");

    txn = txn_begin();
    cr_assert_eq(bb_txn_move(txn, a, 0x1000, NULL), BB_OK);
    cr_assert_eq(bb_txn_move(txn, b, 0, NULL), BB_OK);
    commit(txn);
    HEARD("[2-2+ m1-1+ -b 1000-1fff -a 0-fff +b 0-fff +a 1000-1fff ]");
    unlisten(listener);
    fixture_remove(&fixture, a);
    fixture_remove(&fixture, b);
}

Test(listener, a_lower_priority_is_told_first_but_of_what_goes_last)
{
    struct bb_region *a = io("a", 0x100);
    struct bb_listener *three = listen_with(mem, &most_ops, "3:", 3);
    struct bb_listener *one = listen_with(mem, &most_ops, "1:", -1);
    struct bb_listener *two = listen_with(mem, &most_ops, "2:", 0);

    forget();
    map(0, a, 0);
    HEARD("1:[0-1+ m0-0+ 2:[0-1+ m0-0+ 3:[0-1+ m0-0+ 1:+a 0-ff 2:+a 0-ff 3:+a 0-ff 1:] 2:] 3:]");
    unlisten(two);
    forget();
    fixture_remove(&fixture, a);
    HEARD("1:[1-0+ m0-0+ 3:[1-0+ m0-0+ 3:-a 0-ff 1:-a 0-ff 1:] 3:]");
    unlisten(one);
    unlisten(three);
}

Test(listener, who_asks_for_them_hears_of_unchanged_ranges_in_between)
{
    struct bb_region *a = io("a", 0x100), *b = io("b", 0x100), *c = io("c", 0x100);
    struct bb_listener *listener = listen_with(mem, &all_ops, "", 0);

    map(0, a, 0);
    map(0x2000, c, 0);
    forget();
    map(0x1000, b, 0);
    HEARD("[0-1+ m0-0+ =a 0-ff +b 1000-10ff =c 2000-20ff ]");
    fixture_remove(&fixture, a);
    HEARD("[1-0+ m0-0+ -a 0-ff =b 1000-10ff =c 2000-20ff ]");
    unlisten(listener);
    fixture_remove(&fixture, b);
    fixture_remove(&fixture, c);
}

Test(listener, hears_nothing_of_changes_that_its_view_does_not_show)
{
    struct bb_space *other = fixture_space(&fixture, "other", BB_SPACE_PIO, 0);
    struct bb_region *a = io("a", 0x1000), *hidden = io("hidden", 0x100), *far = io("far", 4);
    struct bb_listener *listener = listen_with(mem, &all_ops, "", 0);

    map(0, a, 1);
    forget();
    map(0x100, hidden, 0);
    cr_assert_eq(bb_space_map(fixture.ctx, other, 0x80, far, NULL), BB_OK);
    cr_assert_eq(bb_region_enable(fixture.ctx, hidden, false, NULL), BB_OK);
    HEARD("");
    unlisten(listener);
    fixture_remove(&fixture, a);
    fixture_remove(&fixture, hidden);
    fixture_remove(&fixture, far);
}

/* A listener that looks at the map: what goes is still there, what comes is there already. */
static unsigned looks, wrong;

static bool is_there(void *opaque, bb_gpa_t first, bb_gpa_t last, const struct bb_region *region)
{
    struct bb_range *wanted = opaque;

    if (first == wanted->first && last == wanted->last && region == wanted->region) {
        wanted->space = NULL; /* found */
        return false;
    }
    return true;
}

static bool in_view(const struct bb_range *range)
{
    struct bb_range wanted = *range;

    bb_space_each(fixture.ctx, mem, is_there, &wanted);
    return wanted.space == NULL;
}

static void look(void *opaque, const struct bb_range *range)
{
    (void)opaque;
    looks++;
    wrong += in_view(range) ? 0 : 1;
}

static const struct bb_listener_ops looking_ops = {.removed = look, .added = look};

Test(listener, what_goes_is_told_before_accesses_miss_it_and_what_comes_after_they_meet_it)
{
    struct bb_region *a = io("a", 0x100), *b = io("b", 0x100);
    struct bb_listener *listener = listen_with(mem, &looking_ops, "", 0);

    map(0, a, 0);
    struct bb_txn *txn = txn_begin();
    cr_assert_eq(bb_txn_unmap(txn, a, NULL), BB_OK);
    cr_assert_eq(bb_txn_map(txn, mem, 0, b, NULL), BB_OK);
    commit(txn);
    fixture_remove(&fixture, b);
    fixture_remove(&fixture, a);
    cr_assert_eq(looks, 4u);
    cr_assert_eq(wrong, 0u);
    unlisten(listener);
}

static void bell(struct bb_region *region, uint64_t offset, uint64_t value, bool add)
{
    struct bb_doorbell doorbell = {
        .offset = offset, .size = 4, .match_value = true, .value = value, .fd = 2};
    struct bb_txn *txn = txn_begin();
    struct bb_error err = {0};
    int rc = add ? bb_txn_doorbell_add(txn, region, &doorbell, &err)
                 : bb_txn_doorbell_remove(txn, region, &doorbell, &err);

    cr_assert_eq(rc, BB_OK, "%s", err.text);
    commit(txn);
}

static void coalesce(struct bb_region *region, uint64_t offset, uint64_t length, bool add)
{
    struct bb_txn *txn = txn_begin();
    struct bb_error err = {0};
    int rc = add ? bb_txn_coalesce(txn, region, offset, length, &err)
                 : bb_txn_uncoalesce(txn, region, offset, length, &err);

    cr_assert_eq(rc, BB_OK, "%s", err.text);
    commit(txn);
}

Test(listener, doorbells_that_change_leave_their_range_and_the_others_alone)
{
    struct bb_region *a = io("a", 0x100);
    struct bb_listener *listener = listen_with(mem, &all_ops, "", 0);

    map(0x1000, a, 0);
    forget();
    bell(a, 0x10, 1, true);
    HEARD("[0-0+ m0-0+ =a 1000-10ff +bell 1010 ]");
    bell(a, 0x10, 3, true);
    HEARD("[0-0+ m0-0+ =a 1000-10ff +bell 1010 ]");
    bell(a, 0x10, 2, true);
    bell(a, 0x20, 1, true);
    forget();
    bell(a, 0x10, 1, false);
    HEARD("[0-0+ m0-0+ -bell 1010 =a 1000-10ff ]");
    coalesce(a, 0x40, 0x20, true);
    HEARD("[0-0+ m0-0+ =a 1000-10ff +wc 1040-105f ]");
    coalesce(a, 0x80, 8, true);
    HEARD("[0-0+ m0-0+ =a 1000-10ff +wc 1080-1087 ]");
    coalesce(a, 0x40, 0x20, false);
    HEARD("[0-0+ m0-0+ -wc 1040-105f =a 1000-10ff ]");

    cr_assert_eq(bb_region_move(fixture.ctx, a, 0x2000, NULL), BB_OK);
    HEARD("[1-1+ m0-0+ -bell 1010 -bell 1010 -bell 1020 -wc 1080-1087 -a 1000-10ff "
          "+a 2000-20ff +bell 2010 +bell 2010 +bell 2020 +wc 2080-2087 ]");
    unlisten(listener);
    HEARD("[1-0+ m0-0+ -bell 2010 -bell 2010 -bell 2020 -wc 2080-2087 -a 2000-20ff ]");
    fixture_remove(&fixture, a);
}

Test(listener, a_range_that_shows_a_part_has_that_parts_doorbells_alone)
{
    struct bb_region *a = io("a", 0x100), *front = io("front", 0x30), *window = NULL;

    bell(a, 0x10, 1, true);
    bell(a, 0x40, 1, true);
    bell(a, 0x58, 1, true);
    coalesce(a, 0x20, 0x20, true);
    map(0, a, 0);
    map(0x0, front, 1);
    struct bb_alias_config config = {
        .name = "window", .target = a, .offset = 0x38, .size_bytes = 0x20};
    cr_assert_eq(bb_alias_create(fixture.ctx, &config, &window, NULL), BB_OK);
    map(0x1000, window, 0);
    struct bb_listener *listener = listen_with(mem, &most_ops, "", 0);
    HEARD("[0-3+ m0-0+ +front 0-2f +a 30-ff +bell 40 +bell 58 +wc 30-3f "
          "+a 1000-101f +bell 1008 +wc 1000-1007 ]");
    unlisten(listener);
    fixture_remove(&fixture, front);
    fixture_remove(&fixture, window);
    fixture_remove(&fixture, a);
}

Test(listener, a_range_that_is_logged_has_its_log_begun_and_fetched_before_it_goes)
{
    struct bb_region *a = ram("a", 0x2000), *b = io("b", 0x1000);
    struct bb_listener *listener = listen_with(mem, &most_ops, "", 0);

    map(0, a, 0);
    forget();
    bb_listeners_log_(fixture.ctx, a, BB_LOG_START_);
    HEARD("start a 0-1fff");
    bb_listeners_log_(fixture.ctx, a, BB_LOG_START_);
    HEARD("");
    bb_listeners_log_(fixture.ctx, a, BB_LOG_SYNC_);
    HEARD("sync a 0-1fff");
    map(0x1000, b, 1);
    HEARD("[1-2+ m1-1+ sync a 0-1fff stop a 0-1fff -a 0-1fff "
          "+a 0-fff start a 0-fff +b 1000-1fff ]");
    unlisten(listener);
    HEARD("[2-0+ m1-0+ -b 1000-1fff sync a 0-fff stop a 0-fff -a 0-fff ]");
    listener = listen_with(mem, &most_ops, "", 0);
    HEARD("[0-2+ m0-1+ +a 0-fff start a 0-fff +b 1000-1fff ]");
    bb_listeners_log_(fixture.ctx, a, BB_LOG_STOP_);
    HEARD("stop a 0-fff");
    unlisten(listener);
    fixture_remove(&fixture, a);
    fixture_remove(&fixture, b);
}

static void set_rom_mode(struct bb_region *region, bool on)
{
    struct bb_error err = {0};
    struct bb_txn *txn = NULL;

    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_txn_rom_mode(txn, region, on, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
}

static int rom_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                    uint64_t *value)
{
    (void)ctx, (void)opaque, (void)offset, (void)size;
    *value = 0;
    return BB_OK;
}

Test(listener, logs_of_a_rom_device_are_of_its_ranges_that_are_memory)
{
    static const struct bb_region_ops ops = {.read = rom_read};
    struct bb_region_config config = {
        .name = "rom", .size_bytes = 0x1000, .ops = &ops, .rom_device = true};
    struct bb_region *rom = NULL;
    struct bb_listener *listener = listen_with(mem, &most_ops, "", 0);

    cr_assert_eq(bb_region_create_io_(fixture.ctx, &config, &(struct bb_owner_){0}, &rom, NULL),
                 BB_OK);
    map(0, rom, 0);
    set_rom_mode(rom, false);
    forget();
    bb_listeners_log_(fixture.ctx, rom, BB_LOG_START_);
    HEARD("");
    set_rom_mode(rom, true);
    HEARD("[1-1+ m0-1+ -rom 0-fff +rom 0-fff start rom 0-fff ]");
    set_rom_mode(rom, false);
    HEARD("[1-1+ m1-0+ sync rom 0-fff stop rom 0-fff -rom 0-fff +rom 0-fff ]");
    bb_listeners_log_(fixture.ctx, rom, BB_LOG_STOP_);
    HEARD("");
    unlisten(listener);
    fixture_remove(&fixture, rom);
}

Test(listener, a_commit_inside_a_callback_is_told_when_the_callback_is_over)
{
    struct bb_region *a = io("a", 0x100), *b = io("b", 0x100);
    struct bb_listener *listener = listen_with(mem, &most_ops, "", 0);
    struct bb_mem_ctx_ *ctx = bb_mem_ctx_(fixture.ctx);

    forget();
    ctx->base.callback_depth++;
    map(0, a, 0);
    cr_assert_eq(fixture_find(&fixture, mem, 0x80), a, "published at once");
    map(0x1000, b, 0);
    HEARD("");
    cr_assert(ctx->untold && ctx->base.pending);
    cr_assert_eq(bb_pins_held_(a->pins), 1u, "removal waits for the telling");
    ctx->base.callback_depth--;
    bb_listeners_settle_(fixture.ctx);
    HEARD("[0-1+ m0-0+ +a 0-ff ] [0-1+ m0-0+ +b 1000-10ff ]");
    cr_assert(!ctx->untold);
    cr_assert_eq(bb_pins_held_(a->pins), 0u);
    ctx->base.pending = false;
    unlisten(listener);
    fixture_remove(&fixture, a);
    fixture_remove(&fixture, b);
}

static void *commit_elsewhere(void *arg)
{
    struct bb_ctx *ctx = fixture_attach(&fixture, "other");

    bb_region_move(ctx, arg, 0x3000, NULL);
    bb_ctx_detach_(ctx, NULL);
    return NULL;
}

Test(listener, what_a_callback_left_untold_is_told_by_another_threads_commit_ahead_of_its_own)
{
    struct bb_region *a = io("a", 0x100), *b = io("b", 0x100);
    struct bb_listener *listener = listen_with(mem, &most_ops, "", 0);
    struct bb_mem_ctx_ *ctx = bb_mem_ctx_(fixture.ctx);
    pthread_t thread;

    map(0x1000, b, 0);
    forget();
    ctx->base.callback_depth++;
    map(0, a, 0);
    cr_assert_eq(pthread_create(&thread, NULL, commit_elsewhere, b), 0);
    pthread_join(thread, NULL);
    HEARD("[0-1+ m0-0+ +a 0-ff ] [1-1+ m0-0+ -b 1000-10ff +b 3000-30ff ]");
    ctx->base.callback_depth--;
    bb_listeners_settle_(fixture.ctx);
    HEARD("");
    ctx->base.pending = false;
    unlisten(listener);
    fixture_remove(&fixture, a);
    fixture_remove(&fixture, b);
}

Test(listener, one_that_comes_or_goes_leaves_nothing_untold)
{
    struct bb_region *a = io("a", 0x100);
    struct bb_listener *listener = listen_with(mem, &most_ops, "1:", 0);
    struct bb_mem_ctx_ *ctx = bb_mem_ctx_(fixture.ctx);

    forget();
    ctx->base.callback_depth++;
    map(0, a, 0);
    ctx->base.callback_depth--;
    struct bb_listener *late = listen_with(mem, &most_ops, "2:", 0);
    HEARD("1:[0-1+ m0-0+ 1:+a 0-ff 1:] 2:[0-1+ m0-0+ 2:+a 0-ff 2:]");
    unlisten(late);
    forget();
    ctx->base.callback_depth++;
    cr_assert_eq(bb_region_move(fixture.ctx, a, 0x100, NULL), BB_OK);
    ctx->base.callback_depth--;
    unlisten(listener);
    HEARD("1:[1-1+ m0-0+ 1:-a 0-ff 1:+a 100-1ff 1:] 1:[1-0+ m0-0+ 1:-a 100-1ff 1:]");
    bb_listeners_settle_(fixture.ctx);
    ctx->base.pending = false;
    fixture_remove(&fixture, a);
}

Test(listener, a_commit_without_memory_for_its_news_changes_and_tells_nothing)
{
    struct bb_region *a = io("a", 0x100), *b = io("b", 0x100);
    struct bb_listener *listener = listen_with(mem, &most_ops, "", 0);
    struct bb_error err = {0};
    long allowed = 0;

    map(0, a, 0);
    forget();
    for (;; allowed++) {
        struct bb_txn *txn = txn_begin();
        cr_assert_eq(bb_txn_unmap(txn, a, NULL), BB_OK);
        cr_assert_eq(bb_txn_map(txn, mem, 0x80, b, NULL), BB_OK);
        test_memory_fail_after(&fixture.memory, allowed);
        int rc = bb_txn_commit(txn, &err);
        test_memory_fail_after(&fixture.memory, -1);
        if (rc == BB_OK) {
            break;
        }
        cr_assert_eq(rc, BB_E_NOMEM, "%s", err.text);
        HEARD("");
        cr_assert_eq(fixture_find(&fixture, mem, 0x7f), a);
    }
    cr_assert_gt(allowed, 0);
    HEARD("[1-1+ m0-0+ -a 0-ff +b 80-17f ]");
    unlisten(listener);
    fixture_remove(&fixture, a);
    fixture_remove(&fixture, b);
}

Test(listener, careless_calls_are_refused)
{
    struct bb_listener_config good = {.name = "x", .space = mem, .ops = &most_ops, .opaque = ""};
    struct bb_listener_config config = good;
    struct bb_listener *listener = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_listener_add(fixture.ctx, NULL, &listener, &err), BB_E_INVAL);
    cr_assert_eq(bb_listener_add(fixture.ctx, &good, NULL, &err), BB_E_INVAL);
    config.name = "";
    cr_assert_eq(bb_listener_add(fixture.ctx, &config, &listener, &err), BB_E_INVAL);
    config = good;
    config.space = NULL;
    cr_assert_eq(bb_listener_add(fixture.ctx, &config, &listener, &err), BB_E_INVAL);
    config = good;
    config.ops = NULL;
    cr_assert_eq(bb_listener_add(fixture.ctx, &config, &listener, &err), BB_E_INVAL);
    bb_rcu_read_lock(fixture.ctx);
    cr_assert_eq(bb_listener_add(fixture.ctx, &good, &listener, &err), BB_E_CONTEXT);
    bb_rcu_read_unlock(fixture.ctx);
    test_memory_fail_after(&fixture.memory, 0);
    cr_assert_eq(bb_listener_add(fixture.ctx, &good, &listener, &err), BB_E_NOMEM);
    test_memory_fail_after(&fixture.memory, -1);
    cr_assert_null(listener);
    HEARD("");
    cr_assert_eq(bb_listener_remove(fixture.ctx, NULL, &err), BB_E_INVAL);
    listener = listen_with(mem, &most_ops, "", 0);
    bb_rcu_read_lock(fixture.ctx);
    cr_assert_eq(bb_listener_remove(fixture.ctx, listener, &err), BB_E_CONTEXT);
    bb_rcu_read_unlock(fixture.ctx);
    unlisten(listener);
}

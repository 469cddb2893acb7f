/* SPDX-License-Identifier: MIT */
/* Making regions: what is refused, with which words; what zero fields come to mean; RAM. */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <string.h>

#include "fixture.h"

static int no_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                   uint64_t *value)
{
    (void)ctx, (void)opaque, (void)offset, (void)size, (void)value;
    return BB_E_DEVICE;
}

static int no_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                    uint64_t value)
{
    (void)ctx, (void)opaque, (void)offset, (void)size, (void)value;
    return BB_E_DEVICE;
}

static const struct bb_region_ops both = {.read = no_read, .write = no_write};
static const struct bb_region_ops reads_only = {.read = no_read};
static const struct bb_path_row beyond[] = {{"A", 0, 3, BB_PATH_WAIT_FREE, BB_PATH_WAIT_FREE, NULL},
                                            {"B", 4, 16, BB_PATH_WAIT_FREE, BB_PATH_SLEEPS, NULL}};
static const struct bb_path_row nameless[] = {
    {"A", 0, 3, BB_PATH_WAIT_FREE, BB_PATH_NARROW_LOCK, NULL}};

struct bad {
    struct bb_region_config config;
    int code;
    const char *text;
};

#define IO .name = "r", .size_bytes = 16, .ops = &both

static const struct bad bad_io[] = {
    {{.size_bytes = 16, .ops = &both}, BB_E_INVAL, "a region needs a configuration with a name"},
    {{.name = "", .size_bytes = 16, .ops = &both}, BB_E_INVAL, "with a name"},
    {{.name = "r", .size_bytes = 16}, BB_E_INVAL, "region 'r': ops is NULL"},
    {{.name = "r", .size_bytes = 0, .ops = &both}, BB_E_RANGE, "size_bytes is 0x0; it must be 1 "},
    {{.name = "r", .size_bytes = BB_BIT64(63) + 1, .ops = &both},
     BB_E_RANGE,
     "size_bytes is 0x8000000000000001; it must be 1 to 2^63"},
    {{.name = "r", .size_bytes = UINT64_MAX, .ops = &both}, BB_E_RANGE, "1 to 2^63"},
    {{IO, .klass = (enum bb_class)4}, BB_E_INVAL, "klass 4 is no enum bb_class"},
    {{IO, .rules = {.valid_min = 3}},
     BB_E_INVAL,
     "valid_min is 3; it must be a power of two, 64 at most"},
    {{IO, .rules = {.valid_max = 128}},
     BB_E_INVAL,
     "valid_max is 128; it must be a power of two, 64"},
    {{IO, .rules = {.impl_min = 255}},
     BB_E_INVAL,
     "impl_min is 255; it must be a power of two, 8 at most"},
    {{IO, .rules = {.impl_max = 6}},
     BB_E_INVAL,
     "impl_max is 6; it must be a power of two, 8 at most"},
    {{IO, .rules = {.valid_min = 4, .valid_max = 2}},
     BB_E_INVAL,
     "valid_min 4 is over valid_max 2"},
    {{IO, .rules = {.impl_min = 8, .impl_max = 4}}, BB_E_INVAL, "impl_min 8 is over impl_max 4"},
    {{IO, .rules = {.endian = (enum bb_endian)2}}, BB_E_INVAL, "endian 2 is neither"},
    {{.name = "r", .size_bytes = 6, .ops = &both, .rules = {.impl_min = 4}},
     BB_E_INVAL,
     "size 0x6 is no multiple of impl_min 4"},
    {{IO, .path_count = 2}, BB_E_INVAL, "2 path rows, but no table"},
    {{IO, .paths = beyond, .path_count = 2},
     BB_E_INVAL,
     "path row 1 covers 0x4-0x10; it must lie within 0x0-0xf"},
    {{IO, .paths = nameless, .path_count = 1}, BB_E_INVAL, "path row 0 waits for a narrow lock"},
};

Test(region, a_bad_configuration_is_refused_with_the_value_and_what_would_be_right)
{
    struct fixture fixture;
    fixture_begin(&fixture);
    for (size_t i = 0; i < BB_ARRAY_LEN(bad_io); i++) {
        struct bb_region *region = (struct bb_region *)&fixture;
        struct bb_error err = {0};
        cr_assert_eq(bb_region_create_io_(fixture.ctx, &bad_io[i].config,
                                          &(struct bb_owner_){.id = 1}, &region, &err),
                     bad_io[i].code, "case %zu", i);
        cr_assert_eq(err.code, bad_io[i].code);
        cr_assert_not_null(strstr(err.text, bad_io[i].text), "case %zu says: %s", i, err.text);
        cr_assert_eq(region, (struct bb_region *)&fixture, "case %zu wrote its result", i);
    }
    cr_assert_eq(bb_region_create_io_(fixture.ctx, NULL, &(struct bb_owner_){.id = 1}, NULL, NULL),
                 BB_E_INVAL);
    fixture_end(&fixture);
}

struct good {
    struct bb_region_config config;
    struct bb_access_rules rules;
    uint8_t read_sizes, write_sizes;
};

static const struct good good_io[] = {
    {{IO}, {1, 8, 1, 8, false, BB_LITTLE_ENDIAN}, 1 | 2 | 4 | 8, 1 | 2 | 4 | 8},
    {{IO, .rules = {.valid_max = 4, .impl_min = 2}},
     {1, 4, 2, 8, false, BB_LITTLE_ENDIAN},
     2 | 4,
     2 | 4},
    {{IO, .rules = {.valid_min = 4, .impl_max = 2}}, {4, 8, 1, 2, false, BB_LITTLE_ENDIAN}, 0, 0},
    {{IO, .rules = {.endian = BB_BIG_ENDIAN}}, {1, 8, 1, 8, false, BB_BIG_ENDIAN}, 0, 0},
    {{.name = "r", .size_bytes = 1, .ops = &reads_only},
     {1, 8, 1, 8, false, BB_LITTLE_ENDIAN},
     1 | 2 | 4 | 8,
     0},
    {{.name = "r", .size_bytes = BB_BIT64(63), .ops = &both, .rules = {.unaligned = true}},
     {1, 8, 1, 8, true, BB_LITTLE_ENDIAN},
     1 | 2 | 4 | 8,
     1 | 2 | 4 | 8},
};

Test(region, zero_sizes_take_their_defaults)
{
    struct fixture fixture;
    fixture_begin(&fixture);
    for (size_t i = 0; i < BB_ARRAY_LEN(good_io); i++) {
        const struct bb_access_rules *want = &good_io[i].rules;
        struct bb_region *region;
        struct bb_error err = {0};
        cr_assert_eq(bb_region_create_io_(fixture.ctx, &good_io[i].config,
                                          &(struct bb_owner_){.id = 1}, &region, &err),
                     BB_OK, "case %zu: %s", i, err.text);
        cr_assert(region->rules.valid_min == want->valid_min &&
                      region->rules.valid_max == want->valid_max &&
                      region->rules.impl_min == want->impl_min &&
                      region->rules.impl_max == want->impl_max &&
                      region->rules.unaligned == want->unaligned &&
                      region->rules.endian == want->endian,
                  "case %zu", i);
        cr_assert_eq(region->read_sizes, good_io[i].read_sizes, "case %zu", i);
        cr_assert_eq(region->write_sizes, good_io[i].write_sizes, "case %zu", i);
        fixture_remove(&fixture, region);
    }
    fixture_end(&fixture);
}

Test(region, what_was_configured_can_be_asked_for)
{
    struct fixture fixture;
    struct bb_region *region;
    struct bb_region_config config = {.name = "a name of more than thirty-one bytes",
                                      .size_bytes = 32,
                                      .ops = &both,
                                      .klass = BB_CLASS_MAY_SLEEP,
                                      .paths = beyond,
                                      .path_count = 2};
    size_t count = 0;

    fixture_begin(&fixture);
    cr_assert_eq(
        bb_region_create_io_(fixture.ctx, &config, &(struct bb_owner_){.id = 1}, &region, NULL),
        BB_OK);
    cr_assert_str_eq(bb_region_name(region), "a name of more than thirty-one ");
    cr_assert_eq(bb_region_size(region), 32);
    cr_assert_eq(bb_region_class(region), BB_CLASS_MAY_SLEEP);
    cr_assert_eq(bb_region_paths(region, &count), beyond);
    cr_assert_eq(count, 2);
    cr_assert_null(bb_region_host(region));
    fixture_remove(&fixture, region);
    fixture_end(&fixture);
}

Test(region, ram_refuses_bad_sizes_and_host_addresses)
{
    static _Alignas(8) uint8_t memory[16];
    static const struct {
        struct bb_ram_config config;
        int code;
        const char *text;
    } bad[] = {
        {{.size_bytes = 4096}, BB_E_INVAL, "RAM needs a configuration with a name"},
        {{.name = "ram", .size_bytes = 0}, BB_E_RANGE, "size_bytes is 0x0; it must be 1 to 2^46"},
        {{.name = "ram", .size_bytes = BB_BIT64(46) + 1},
         BB_E_RANGE,
         "size_bytes is 0x400000000001; it must be 1 to 2^46"},
        {{.name = "ram", .size_bytes = 8, .host = memory + 4}, BB_E_INVAL, "a multiple of 8"},
    };
    struct fixture fixture;

    fixture_begin(&fixture);
    for (size_t i = 0; i < BB_ARRAY_LEN(bad); i++) {
        struct bb_region *region = NULL;
        struct bb_error err = {0};
        cr_assert_eq(bb_ram_create(fixture.ctx, &bad[i].config, &region, &err), bad[i].code);
        cr_assert_not_null(strstr(err.text, bad[i].text), "case %zu says: %s", i, err.text);
        cr_assert_null(region);
    }
    fixture_end(&fixture);
}

Test(region, ram_of_its_own_is_zero_and_the_embedders_is_left_as_it_is)
{
    static _Alignas(8) uint8_t memory[16] = {1, 2, 3, 4};
    struct bb_ram_config own = {.name = "own", .size_bytes = 12345};
    struct bb_ram_config theirs = {.name = "theirs", .size_bytes = 16, .host = memory};
    struct fixture fixture;
    struct bb_region *region;
    uint64_t value = 1;

    fixture_begin(&fixture);
    cr_assert_eq(bb_ram_create(fixture.ctx, &own, &region, NULL), BB_OK);
    cr_assert_eq(fixture_read(fixture.ctx, region, 12344, 1, &value), BB_OK);
    cr_assert_eq(value, 0);
    fixture_remove(&fixture, region);

    cr_assert_eq(bb_ram_create(fixture.ctx, &theirs, &region, NULL), BB_OK);
    cr_assert_eq(bb_region_host(region), memory);
    cr_assert_eq(fixture_read(fixture.ctx, region, 0, 4, &value), BB_OK);
    cr_assert_eq(value, 0x04030201);
    fixture_remove(&fixture, region);
    cr_assert_eq(memory[3], 4);
    fixture_end(&fixture);
}

Test(region, ram_that_the_system_refuses_says_why_and_leaves_nothing)
{
    /* A few times 64 TiB exceed any x86-64 process; sanitizers leave room for none. */
    struct bb_ram_config config = {.name = "vast", .size_bytes = BB_BIT64(46)};
    struct bb_region *region[8] = {NULL};
    struct fixture fixture;
    struct bb_error err = {0};
    int result = BB_OK;

    fixture_begin(&fixture);
    for (int i = 0; i < 8 && result == BB_OK; i++) {
        result = bb_ram_create(fixture.ctx, &config, &region[i], &err);
        cr_assert_eq(region[i] != NULL, result == BB_OK);
    }
    cr_assert_eq(result, BB_E_SYSTEM);
    cr_assert_not_null(strstr(err.text, "RAM 'vast': its address range can't be reserved: "), "%s",
                       err.text);
    for (int i = 0; i < 8 && region[i] != NULL; i++) {
        fixture_remove(&fixture, region[i]);
    }
    fixture_end(&fixture);
}

Test(region, no_memory_makes_no_region)
{
    struct fixture fixture;
    struct bb_region_config io = {IO};
    struct bb_ram_config ram = {.name = "ram", .size_bytes = 4096};
    struct bb_region *region = NULL;
    struct bb_error err = {0};

    fixture_begin(&fixture);
    test_memory_fail_after(&fixture.memory, 0);
    cr_assert_eq(
        bb_region_create_io_(fixture.ctx, &io, &(struct bb_owner_){.id = 1}, &region, &err),
        BB_E_NOMEM);
    cr_assert_eq(bb_ram_create(fixture.ctx, &ram, &region, &err), BB_E_NOMEM);
    cr_assert_null(region);
    test_memory_fail_after(&fixture.memory, -1);
    fixture_end(&fixture);
}

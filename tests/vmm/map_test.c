/* SPDX-License-Identifier: MIT */
/* `busbar map`: what it shows is the PC, in both forms alike. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "command.h"

static struct command_result result;

static void run(const char *const *args)
{
    command_run(&result, 60, args);
    cr_assert_eq(result.status, 0, "status %d: %s", result.status, result.err);
    cr_assert_str_eq(result.err, "");
}

static json_t *run_json(const char *const *args)
{
    json_error_t error;

    run(args);
    json_t *map = json_loads(result.out, JSON_REJECT_DUPLICATES, &error);
    cr_assert_not_null(map, "line %d: %s", error.line, error.text);
    return map;
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    cr_assert_not_null(text, "no '%s'", key);
    return text;
}

static json_t *space_of(const json_t *map, const char *name)
{
    size_t i;
    json_t *space;

    json_array_foreach(json_object_get(map, "spaces"), i, space)
    {
        if (strcmp(text_of(space, "name"), name) == 0) {
            return space;
        }
    }
    cr_assert(false, "no space '%s'", name);
    return NULL;
}

/* The range of a flat view that begins at `first`. */
static json_t *range_at(const json_t *space, const char *first)
{
    size_t i;
    json_t *range;

    json_array_foreach(json_object_get(space, "flat"), i, range)
    {
        if (strcmp(text_of(range, "first"), first) == 0) {
            return range;
        }
    }
    cr_assert(false, "nothing at %s", first);
    return NULL;
}

Test(map, text_has_tree_flat_view_and_dispatch_structure_of_both_spaces)
{
    run((const char *const[]){"map", NULL});
    cr_assert_not_null(strstr(result.out, "space 'memory'"));
    cr_assert_not_null(strstr(result.out, "space 'ports'"));
    cr_assert_not_null(strstr(result.out, "RAM 'ram', priority 0"));
    cr_assert_not_null(strstr(result.out, "00000000fed00000-00000000fed003ff  I/O 'hpet' + 0x0"));
    cr_assert_not_null(strstr(result.out, "bytes"));
}

Test(map, json_has_the_same_regions_in_the_tree_and_in_the_flat_view)
{
    json_t *map = run_json((const char *const[]){"map", "--json", NULL});
    json_t *memory = space_of(map, "memory");
    json_t *root = json_array_get(json_object_get(memory, "tree"), 0);
    size_t i;
    json_t *child;

    cr_assert_str_eq(text_of(root, "size"), "0x10000000000000000");
    cr_assert_eq(json_array_size(json_object_get(memory, "tree")), 1u);
    json_array_foreach(json_object_get(root, "children"), i, child)
    {
        json_t *range = range_at(memory, text_of(child, "first"));
        cr_assert_str_eq(text_of(range, "region"), text_of(child, "name"));
        cr_assert_str_eq(text_of(range, "kind"), text_of(child, "kind"));
    }
    cr_assert_eq(i, json_array_size(json_object_get(memory, "flat")));
    cr_assert_eq(i, 3u, "RAM, I/O APIC, HPET");
    cr_assert_str_eq(text_of(range_at(memory, "0xfed00000"), "last"), "0xfed003ff");
    cr_assert(json_is_true(json_object_get(range_at(memory, "0x0"), "memory")));

    json_t *dispatch = json_object_get(memory, "dispatch");
    cr_assert_eq(json_integer_value(json_object_get(dispatch, "leaves")), 3);
    cr_assert_eq((size_t)json_integer_value(json_object_get(dispatch, "nodes")),
                 json_array_size(json_object_get(dispatch, "node")));
    cr_assert_gt(json_integer_value(json_object_get(map, "bytes_total")),
                 json_integer_value(json_object_get(dispatch, "bytes")));
    json_decref(map);
}

Test(map, memory_lies_on_both_sides_of_the_hole)
{
    json_t *map = run_json((const char *const[]){"map", "--json", "--memory", "8G", NULL});
    json_t *memory = space_of(map, "memory");

    cr_assert_str_eq(text_of(range_at(memory, "0x0"), "last"), "0xbfffffff");
    cr_assert_str_eq(text_of(range_at(memory, "0x100000000"), "last"), "0x23fffffff");
    json_decref(map);
}

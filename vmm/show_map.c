/* SPDX-License-Identifier: MIT */
/*
 * Printing the map; see show_map.h. README.md has the form of the JSON.
 *
 * Addresses, offsets and sizes are strings of hexadecimal digits there: JSON's numbers end at 2^53
 * in most readers, and a space is 2^64 bytes.
 */
#include "show_map.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "../memory/inspect.h"
#include "machine.h"

enum { DEPTH_MAX = BB_DEPTH_MAX + 1, NUMBER_BYTES = 24 };

static json_t *hex(uint64_t number)
{
    char text[NUMBER_BYTES];

    snprintf(text, sizeof(text), "0x%" PRIx64, number);
    return json_string(text);
}

static json_t *hex_size(uint64_t bytes)
{
    return bytes == BB_SIZE_ALL ? json_string("0x10000000000000000") : hex(bytes);
}

static json_t *name_or_null(const char *name)
{
    return name == NULL ? json_null() : json_string(name);
}

/* The lists that the visits of one space fill. */
struct lists {
    json_t *children[DEPTH_MAX + 1]; /* where a region of this depth goes */
    json_t *flat;
    json_t *nodes;
    bool failed; /* no memory, or a name that is no UTF-8 */
};

/* Hands `object` to `list`; what has not been made is noted. */
static bool append(struct lists *lists, json_t *list, json_t *object)
{
    if (object == NULL || json_array_append_new(list, object) != 0) {
        lists->failed = true;
    }
    return !lists->failed;
}

static bool visit_tree(void *opaque, const struct bb_tree_node *node)
{
    struct lists *lists = opaque;
    json_t *children = json_array();
    json_t *object =
        json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:i, s:b, s:b, s:b, s:I, s:I, s:o}", "name",
                  node->name, "kind", bb_kind_name(node->kind), "device",
                  name_or_null(node->device), "offset", hex(node->offset), "first",
                  hex(node->first), "size", hex_size(node->size_bytes), "priority", node->priority,
                  "enabled", (int)node->enabled, "read_only", (int)node->read_only, "rom_mode",
                  (int)node->rom_mode, "doorbells", (json_int_t)node->doorbells, "coalesced",
                  (json_int_t)node->coalesced, "children", children);

    if (object != NULL && node->kind == BB_KIND_ALIAS) {
        json_object_set_new(
            object, "target",
            name_or_null(node->target == NULL ? NULL : bb_region_name(node->target)));
        json_object_set_new(object, "target_offset", hex(node->target_offset));
    }
    if (node->depth >= DEPTH_MAX || !append(lists, lists->children[node->depth], object)) {
        lists->failed = true;
        return false;
    }
    lists->children[node->depth + 1] = children; /* held by the object */
    return true;
}

static bool visit_flat(void *opaque, const struct bb_range *range)
{
    struct lists *lists = opaque;

    return append(lists, lists->flat,
                  json_pack("{s:o, s:o, s:s, s:o, s:s, s:b, s:b}", "first", hex(range->first),
                            "last", hex(range->last), "region", bb_region_name(range->region),
                            "offset", hex(range->offset), "kind", bb_kind_name(range->kind),
                            "read_only", (int)range->read_only, "memory", (int)range->memory));
}

static bool visit_dispatch(void *opaque, const struct bb_dispatch_node *node)
{
    struct lists *lists = opaque;

    return append(lists, lists->nodes,
                  json_pack("{s:i, s:o, s:i, s:i}", "depth", (int)node->depth, "base",
                            hex(node->base), "shift", (int)node->shift, "used", (int)node->used));
}

/* NULL where something could not be made. */
static json_t *space_json(struct bb_ctx *ctx, struct bb_space *space)
{
    struct lists lists = {.children = {json_array()}, .flat = json_array(), .nodes = json_array()};
    struct bb_dispatch_usage usage = {0};

    if (bb_tree_each(ctx, space, visit_tree, &lists) != BB_OK) {
        lists.failed = true;
    }
    bb_flat_each(ctx, space, visit_flat, &lists);
    bb_dispatch_each(ctx, space, visit_dispatch, &lists, &usage);
    json_t *object =
        json_pack("{s:s, s:o, s:o, s:{s:I, s:I, s:i, s:I, s:o}}", "name", bb_space_name(space),
                  "tree", lists.children[0], "flat", lists.flat, "dispatch", "nodes",
                  (json_int_t)usage.nodes, "leaves", (json_int_t)usage.leaves, "depth",
                  (int)usage.depth, "bytes", (json_int_t)usage.bytes, "node", lists.nodes);
    if (object != NULL && lists.failed) {
        json_decref(object);
        return NULL;
    }
    return object;
}

static int print_json(const struct bb_machine *machine)
{
    struct bb_dispatch_usage usage = {0};
    json_t *spaces = json_array();
    struct bb_space *each[] = {machine->mmio, machine->pio};

    for (unsigned i = 0; i < 2; i++) {
        json_t *space = space_json(machine->ctx, each[i]);
        if (space == NULL || json_array_append_new(spaces, space) != 0) {
            json_decref(spaces);
            return BB_E_NOMEM;
        }
    }
    bb_dispatch_each(machine->ctx, machine->mmio, NULL, NULL, &usage);
    json_t *map =
        json_pack("{s:o, s:I}", "spaces", spaces, "bytes_total", (json_int_t)usage.bytes_total);
    int rc = map == NULL ? BB_E_NOMEM : BB_OK;
    if (rc == BB_OK && json_dumpf(map, stdout, JSON_INDENT(2)) != 0 && !ferror(stdout)) {
        rc = BB_E_NOMEM; /* the caller looks at ferror() */
    }
    fputc('\n', stdout);
    json_decref(map);
    return rc;
}

static void put_line(void *opaque, const char *line)
{
    (void)opaque;
    puts(line);
}

int bb_show_map(const struct bb_options *options)
{
    struct bb_machine_config config = {.vcpus = options->vcpus,
                                       .memory_bytes = options->memory_bytes};
    struct bb_machine *machine;
    struct bb_stop stop;
    struct bb_error err = {0};
    int rc = bb_stop_init(&stop, &err);

    if (rc == BB_OK) {
        config.stop = &stop;
        rc = bb_machine_create(&config, &machine, &err);
        if (rc != BB_OK) {
            bb_stop_fini(&stop);
        }
    }
    if (rc != BB_OK) {
        fprintf(stderr, "busbar: %s\n", err.text);
        return BB_EXIT_USAGE;
    }
    rc = options->json ? print_json(machine)
                       : bb_map_print(machine->ctx, BB_PRINT_ALL, put_line, NULL);
    if (rc != BB_OK) {
        fprintf(stderr, "busbar: the map can't be printed: %s\n", bb_result_text(rc));
    }
    int apart = bb_machine_destroy(machine, &err);
    bb_stop_fini(&stop);
    if (apart != BB_OK) {
        fprintf(stderr, "busbar: %s\n", err.text);
    }
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "busbar: can't write the map: %s\n", strerror(errno));
        return BB_EXIT_FAILED;
    }
    return rc == BB_OK && apart == BB_OK ? BB_EXIT_OK : BB_EXIT_FAILED;
}

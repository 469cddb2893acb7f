/* SPDX-License-Identifier: MIT */
/* Accesses by the model and by the engine: program.h. */
#include "program.h"

#include <inttypes.h>
#include <string.h>

/* The model. */

struct run {
    const struct stage *stage;
    const struct program_access *access;
    uint8_t *arena;
    struct program_outcome *outcome;
};

static const struct topology_region *make_of(const struct run *run, int region)
{
    return &run->stage->region[region].make;
}

/* With the defaults in place of zeros. */
static struct bb_access_rules rules_of(const struct run *run, int region)
{
    struct bb_access_rules rules = make_of(run, region)->rules;

    rules.valid_min = rules.valid_min == 0 ? 1 : rules.valid_min;
    rules.valid_max = rules.valid_max == 0 ? 8 : rules.valid_max;
    rules.impl_min = rules.impl_min == 0 ? 1 : rules.impl_min;
    rules.impl_max = rules.impl_max == 0 ? 8 : rules.impl_max;
    return rules;
}

static void call(struct run *run, struct stage_call call)
{
    call.attrs = run->access->attrs;
    if (run->outcome->call_count < STAGE_CALLS_MAX) {
        run->outcome->call[run->outcome->call_count++] = call;
    }
}

/* Where the byte at `i` of `size` stands in a callback's value. */
static unsigned shift_of(const struct bb_access_rules *rules, unsigned i, unsigned size)
{
    return 8 * (rules->endian == BB_BIG_ENDIAN ? size - 1 - i : i);
}

/* The callbacks for `size` bytes from `offset` on. */
static int run_callbacks(struct run *run, int region, uint64_t offset, unsigned size,
                         uint8_t *bytes)
{
    struct bb_access_rules rules = rules_of(run, region);
    bool write = run->access->write;

    for (unsigned done = 0; done < size;) {
        /* The largest piece that is aligned, left and not over what is implemented... */
        unsigned piece = 1;
        while (piece * 2 <= rules.impl_max && piece * 2 <= size - done &&
               (offset + done) % (piece * 2) == 0) {
            piece *= 2;
        }
        /* ...and what is too small for the callbacks is made as the block around it. */
        piece = piece < rules.impl_min ? rules.impl_min : piece;
        uint64_t at = (offset + done) / piece * piece;
        uint64_t value = 0;
        unsigned served = 0;
        for (unsigned i = 0; i < piece; i++) {
            uint64_t byte = at + i;
            if (byte < offset + done || byte >= offset + size) {
                continue;
            }
            if (write) {
                value |= (uint64_t)bytes[byte - offset] << shift_of(&rules, i, piece);
            }
            served++;
        }
        call(run,
             (struct stage_call){
                 .region = region, .write = write, .offset = at, .size = piece, .value = value});
        if (stage_refuses(region, at, write)) {
            return BB_E_DEVICE;
        }
        done += served;
    }
    for (unsigned i = 0; i < size && !write; i++) {
        bytes[i] = stage_byte(region, offset + i);
    }
    return BB_OK;
}

/* One piece, which lies in one region. */
static int run_piece(struct run *run, struct model_byte found, unsigned size, uint8_t *bytes)
{
    const struct model_region *region = &run->stage->model.region[found.region];
    bool write = run->access->write;

    if (region->kind == BB_KIND_RESERVED) {
        return BB_E_DECODE;
    }
    if (region->kind == BB_KIND_RAM) {
        uint8_t *memory = run->arena + make_of(run, found.region)->arena + found.offset;
        if (write && found.read_only) {
            return BB_E_DEVICE;
        }
        memcpy(write ? memory : bytes, write ? bytes : memory, size);
        return BB_OK;
    }
    if (region->rom_mode && !write) {
        for (unsigned i = 0; i < size; i++) {
            bytes[i] = stage_byte(found.region, found.offset + i);
        }
        return BB_OK;
    }
    struct bb_access_rules rules = rules_of(run, found.region);
    if (size < rules.valid_min || size > rules.valid_max ||
        (!rules.unaligned && found.offset % size != 0)) {
        return BB_E_DEVICE;
    }
    if (make_of(run, found.region)->accept) {
        call(run, (struct stage_call){.region = found.region,
                                      .accept = true,
                                      .write = write,
                                      .offset = found.offset,
                                      .size = size});
        int result = stage_accepts(found.region, found.offset, size, write);
        if (result != BB_OK) {
            return result;
        }
    }
    return run_callbacks(run, found.region, found.offset, size, bytes);
}

/* Whether byte `i` from `found` on continues it: the same part of the same region, or nothing. */
static bool continues(const struct model_byte *found, const struct model_byte *next, unsigned i)
{
    return found->region == next->region &&
           (found->region == MODEL_NONE ||
            (next->offset == found->offset + i && next->read_only == found->read_only));
}

static uint8_t fill_byte(const struct bb_fill *fill, unsigned i)
{
    uint64_t bytes = fill->kind == BB_FILL_PATTERN ? fill->pattern : 0;

    return (uint8_t)(fill->kind == BB_FILL_ONES ? 0xff : bytes >> (8 * (i % 8)));
}

void program_model(const struct stage *stage, uint8_t *arena, const struct program_access *access,
                   struct program_outcome *outcome)
{
    struct run run = {.stage = stage, .access = access, .arena = arena, .outcome = outcome};
    bool refused = false, nothing = false;

    outcome->call_count = 0;
    memset(outcome->bytes, 0x5a, sizeof(outcome->bytes));
    if (access->size == 0 || access->size > (access->plain ? 8 : 64) ||
        access->size - 1 > UINT64_MAX - access->gpa) {
        outcome->result = BB_E_RANGE;
        return;
    }
    if (access->write) {
        memcpy(outcome->bytes, access->bytes, sizeof(outcome->bytes));
    }
    for (unsigned done = 0; done < access->size;) {
        struct model_byte found = model_resolve(&stage->model, access->space, access->gpa + done);
        unsigned piece = 1, together = 1;
        while (done + together < access->size) {
            struct model_byte next =
                model_resolve(&stage->model, access->space, access->gpa + done + together);
            if (!continues(&found, &next, together)) {
                break;
            }
            together++;
        }
        while (piece * 2 <= together) {
            piece *= 2;
        }
        int result = found.region == MODEL_NONE
                         ? BB_E_DECODE
                         : run_piece(&run, found, piece, outcome->bytes + done);
        nothing = nothing || result == BB_E_DECODE;
        refused = refused || result == BB_E_DEVICE;
        for (unsigned i = done; i < done + piece && result != BB_OK && !access->write; i++) {
            outcome->bytes[i] = fill_byte(result == BB_E_DECODE ? &stage_decode_fill[access->space]
                                                                : &stage_device_fill[access->space],
                                          i);
        }
        done += piece;
    }
    if (access->write) {
        memset(outcome->bytes, 0x5a, sizeof(outcome->bytes));
    }
    outcome->result = refused ? BB_E_DEVICE : nothing ? BB_E_DECODE : BB_OK;
}

/* The engine. */

void program_engine(struct stage *stage, const struct program_access *access,
                    struct program_outcome *outcome)
{
    struct bb_space *space = stage->space[access->space];
    uint64_t value = UINT64_C(0x5a5a5a5a5a5a5a5a);

    stage->call_count = 0;
    memset(outcome->bytes, 0x5a, sizeof(outcome->bytes));
    if (!access->plain) {
        outcome->result = access->write
                              ? bb_access_write(stage->ctx, space, access->gpa, access->bytes,
                                                access->size, access->attrs)
                              : bb_access_read(stage->ctx, space, access->gpa, outcome->bytes,
                                               access->size, access->attrs);
    } else if (access->write) {
        memcpy(&value, access->bytes, sizeof(value));
        outcome->result = bb_mmio_write(stage->ctx, space, access->gpa, access->size, value);
    } else {
        outcome->result = bb_mmio_read(stage->ctx, space, access->gpa, access->size, &value);
        if (outcome->result != BB_E_RANGE) {
            memcpy(outcome->bytes, &value, sizeof(value));
            /* It is zero-extended; the bytes behind it are compared as untouched. */
            for (unsigned i = access->size; i < sizeof(value); i++) {
                outcome->bytes[i] = outcome->bytes[i] == 0 ? 0x5a : 0xee;
            }
        }
    }
    outcome->call_count = stage->call_count;
    memcpy(outcome->call, stage->call, stage->call_count * sizeof(stage->call[0]));
}

/* Random accesses. */

static unsigned random_size(struct random *random, bool plain)
{
    static const unsigned powers[] = {1, 2, 4, 8, 16, 32, 64};

    if (random_one_in(random, 40)) {
        return (unsigned)random_below(random, 70);
    }
    if (random_one_in(random, 3)) {
        return 1 + (unsigned)random_below(random, plain ? 8 : 64);
    }
    return powers[random_below(random, plain ? 4 : 7)];
}

/* Where something begins or ends; mostly where there is something. */
static bb_gpa_t random_gpa(struct random *random, const struct model *model, int space,
                           const bb_gpa_t *bounds, unsigned count)
{
    bb_gpa_t gpa = 0;

    for (unsigned tries = 0; tries < 8; tries++) {
        gpa = bounds[random_below(random, count)];
        gpa += random_one_in(random, 2) ? random_below(random, 72)
                                        : -(bb_gpa_t)random_below(random, 72);
        int region = model_resolve(model, space, gpa).region;
        if (region != MODEL_NONE && model->region[region].kind != BB_KIND_RESERVED) {
            break;
        }
    }
    return gpa;
}

void program_make_accesses(struct program *program, const struct model *model)
{
    static bb_gpa_t bounds[MODEL_BOUNDS_MAX];
    struct random random;
    unsigned count = 0;
    int space = -1;

    random_begin(&random, program->topology.seed ^ UINT64_C(0xacce55));
    program->count = 0;
    while (program->count < PROGRAM_ACCESSES_MAX) {
        if (space < 0 || random_one_in(&random, PROGRAM_ACCESSES_MAX / 8)) {
            space = (int)random_below(&random, MODEL_SPACES);
            count = model_bounds(model, space, bounds);
        }
        struct program_access *access = &program->access[program->count++];
        memset(access, 0, sizeof(*access));
        access->space = space;
        access->plain = random_one_in(&random, 2);
        access->write = random_one_in(&random, 2);
        access->size = random_size(&random, access->plain);
        access->gpa = random_gpa(&random, model, space, bounds, count);
        if (random_one_in(&random, 2) && access->size != 0) {
            access->gpa -= access->gpa % access->size;
        }
        if (!access->plain && random_one_in(&random, 2)) {
            access->attrs = (struct bb_attrs){.requester_id = (uint32_t)random_next(&random),
                                              .secure = random_one_in(&random, 2),
                                              .privileged = random_one_in(&random, 2)};
        }
        for (unsigned i = 0; i < sizeof(access->bytes); i++) {
            access->bytes[i] = (uint8_t)random_next(&random);
        }
    }
}

void program_print_access(FILE *out, const struct program_access *access)
{
    fprintf(out, "  %s %u bytes at 0x%" PRIx64 " of %s by %s", access->write ? "write" : "read",
            access->size, access->gpa, topology_space_name[access->space],
            access->plain   ? access->write ? "bb_mmio_write()" : "bb_mmio_read()"
            : access->write ? "bb_access_write()"
                            : "bb_access_read()");
    if (!access->plain) {
        fprintf(out, ", requester 0x%" PRIx32 "%s%s", access->attrs.requester_id,
                access->attrs.secure ? ", secure" : "",
                access->attrs.privileged ? ", privileged" : "");
    }
    if (access->write) {
        fprintf(out, ":");
        for (unsigned i = 0; i < access->size && i < PROGRAM_BYTES_MAX; i++) {
            fprintf(out, " %02x", access->bytes[i]);
        }
    }
    fprintf(out, "\n");
}

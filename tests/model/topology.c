/* SPDX-License-Identifier: MIT */
/*
 * Programs at random. Each has a scale (single bytes, pages, anything up to 2^64) and prefers
 * numbers at which something happens: ends of containers and of siblings, one beside them, the ends
 * of 64 bits. It keeps a model of its own beside it, so that most steps can be made; a few can't.
 */
#include "topology.h"

#include <inttypes.h>
#include <string.h>

#include "../../base/bits.h"

const uint64_t topology_space_last[MODEL_SPACES] = {UINT64_MAX, UINT32_MAX, UINT16_MAX, 0x3ff};
const char *const topology_space_name[MODEL_SPACES] = {"wide", "mmio", "ports", "small"};

void random_begin(struct random *random, uint64_t seed)
{
    uint64_t z = seed + UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    random->state = (z ^ (z >> 31)) | 1;
}

uint64_t random_next(struct random *random)
{
    random->state ^= random->state >> 12;
    random->state ^= random->state << 25;
    random->state ^= random->state >> 27;
    return random->state * UINT64_C(0x2545f4914f6cdd1d);
}

uint64_t random_below(struct random *random, uint64_t bound)
{
    return (random_next(random) >> 16) % bound;
}

struct maker {
    struct random random;
    struct topology *out;
    struct model model;
    struct model pending; /* with the changes of the transactions that are open */
    enum topology_rules rules;
    unsigned unit_bits; /* the scale: sizes and offsets are some of these units */
    unsigned width_bits;
    int made; /* numbers below are made or removed */
    int limit;
};

static uint64_t below(struct maker *maker, uint64_t bound)
{
    return random_below(&maker->random, bound);
}

static bool one_in(struct maker *maker, uint64_t n)
{
    return below(maker, n) == 0;
}

/* A number of the program's scale. */
static uint64_t scaled(struct maker *maker)
{
    uint64_t units =
        random_next(&maker->random) & bb_mask_low(1 + (unsigned)below(maker, maker->width_bits));
    uint64_t number = units << maker->unit_bits;

    return one_in(maker, 12) ? number + below(maker, 5) - 2 : number;
}

static uint64_t random_size(struct maker *maker, uint64_t most)
{
    uint64_t size = scaled(maker);

    size = size == 0 ? 1 + below(maker, 4) : size;
    if (most == UINT64_MAX && one_in(maker, 16)) {
        return one_in(maker, 2) ? BB_SIZE_ALL : BB_SIZE_ALL - 1 - below(maker, 3);
    }
    return size > most ? 1 + below(maker, most) : size;
}

static struct topology_step *add(struct maker *maker, enum topology_step_kind kind)
{
    struct topology_step *step = &maker->out->step[maker->out->count++];

    memset(step, 0, sizeof(*step));
    step->kind = kind;
    return step;
}

static int any_region(struct maker *maker)
{
    for (unsigned tries = 0; tries < 16; tries++) {
        int region = (int)below(maker, (uint64_t)maker->made);
        if (maker->pending.region[region].exists) {
            return region;
        }
    }
    return 0;
}

static void random_rules(struct maker *maker, struct topology_region *make)
{
    struct bb_access_rules *rules = &make->rules;

    if (maker->rules == TOPOLOGY_BYTES) {
        rules->impl_min = (uint8_t)(one_in(maker, 3) ? 1u << below(maker, 4) : 0);
        return;
    }
    rules->impl_min = (uint8_t)(1u << below(maker, one_in(maker, 2) ? 1 : 4));
    rules->impl_max = (uint8_t)(rules->impl_min << below(maker, 4));
    rules->impl_max = rules->impl_max > 8 ? 8 : rules->impl_max;
    rules->valid_min = (uint8_t)(1u << below(maker, one_in(maker, 3) ? 4 : 1));
    rules->valid_max = (uint8_t)(rules->valid_min << below(maker, 7));
    rules->valid_max = rules->valid_max > 64 ? 64 : rules->valid_max;
    if (one_in(maker, 2)) {
        rules->valid_max = 64;
    }
    if (one_in(maker, 6)) {
        *rules = (struct bb_access_rules){0};
    }
    rules->unaligned = one_in(maker, 2);
    rules->endian = one_in(maker, 3) ? BB_BIG_ENDIAN : BB_LITTLE_ENDIAN;
    make->accept = one_in(maker, 4);
}

/* Mostly such that there is something to be seen through it. */
static void random_window(struct maker *maker, struct topology_region *make)
{
    uint64_t last = maker->pending.region[make->target].last;

    make->size = random_size(maker, UINT64_MAX);
    make->window = one_in(maker, 3) ? 0 : scaled(maker);
    if (!one_in(maker, 4) && make->window > last) {
        make->window = last == UINT64_MAX ? 0 : make->window % (last + 1);
    }
    if (one_in(maker, 2) && last - make->window != UINT64_MAX) {
        make->size = last - make->window + 1;
    }
    if (make->size == BB_SIZE_ALL || make->window > UINT64_MAX - make->size) {
        make->window = 0;
    }
}

static void make_region(struct maker *maker)
{
    static const enum bb_kind kinds[] = {
        BB_KIND_CONTAINER, BB_KIND_CONTAINER,  BB_KIND_CONTAINER, BB_KIND_ALIAS, BB_KIND_ALIAS,
        BB_KIND_ALIAS,     BB_KIND_RAM,        BB_KIND_RAM,       BB_KIND_IO,    BB_KIND_IO,
        BB_KIND_IO,        BB_KIND_ROM_DEVICE, BB_KIND_RESERVED,  BB_KIND_IOMMU,
    };
    struct topology_step *step = add(maker, TOPOLOGY_MAKE);
    struct topology_region *make = &step->make;

    step->region = maker->made;
    make->kind = kinds[below(maker, BB_ARRAY_LEN(kinds))];
    if (make->kind == BB_KIND_IOMMU && maker->rules == TOPOLOGY_ANY_RULES) {
        make->kind = BB_KIND_IO; /* how accesses are cut by translations is not the model's */
    }
    make->klass = (enum bb_class)below(maker, 3);
    make->target = MODEL_NONE;
    switch (make->kind) {
    case BB_KIND_RAM:
        make->size = random_size(maker, TOPOLOGY_ARENA_BYTES / 2);
        make->size_max = one_in(maker, 2)
                             ? 0
                             : make->size + below(maker, TOPOLOGY_ARENA_BYTES / 2 - make->size + 1);
        make->arena = below(maker, TOPOLOGY_ARENA_BYTES / 2) & ~UINT64_C(7);
        make->read_only = one_in(maker, 4);
        break;
    case BB_KIND_IO:
    case BB_KIND_ROM_DEVICE:
        random_rules(maker, make);
        make->size = random_size(maker, make->kind == BB_KIND_IO ? UINT64_C(1) << 62
                                                                 : TOPOLOGY_ROM_BYTES_MAX - 8);
        if (make->rules.impl_min > 1) {
            make->size = (make->size + make->rules.impl_min - 1) & -(uint64_t)make->rules.impl_min;
        }
        break;
    case BB_KIND_ALIAS:
        make->target = any_region(maker);
        random_window(maker, make);
        make->read_only = one_in(maker, 4);
        break;
    default:
        make->size = random_size(maker, UINT64_MAX);
        if (make->kind == BB_KIND_CONTAINER && make->size < UINT64_MAX / 4 && !one_in(maker, 3)) {
            make->size *= 1 + below(maker, 4);
        }
        break;
    }
    topology_model_make(&maker->model, step);
    topology_model_make(&maker->pending, step);
    maker->made++;
}

/* Where in `container` something of `last` + 1 bytes might go. */
static uint64_t random_offset(struct maker *maker, int container, uint64_t last)
{
    const struct model *model = &maker->pending;
    uint64_t end = model->region[container].last;

    switch (below(maker, 10)) {
    case 0:
        return 0;
    case 1:
        return end - last; /* wraps where it is too large; then it is refused, or clipped */
    case 2:
        return end - below(maker, end < 64 ? end + 1 : 64);
    case 3:
    case 4:
        for (int i = MODEL_SPACES; i < maker->made; i++) {
            const struct model_region *child = &model->region[i];
            if (child->exists && child->parent == container && one_in(maker, 2)) {
                return one_in(maker, 2) ? child->at + child->last + 1 : child->at - last - 1;
            }
        }
        break;
    case 5:
        if (one_in(maker, 4)) {
            return random_next(&maker->random);
        }
        break;
    default:
        break;
    }
    uint64_t offset = scaled(maker);
    return offset > end ? (end == UINT64_MAX ? offset : offset % (end + 1)) : offset;
}

static int random_priority(struct maker *maker)
{
    static const int odd[] = {INT32_MIN, INT32_MAX, -1, 0, 1};

    return one_in(maker, 10) ? odd[below(maker, BB_ARRAY_LEN(odd))] : (int)below(maker, 30) - 10;
}

static int any_container(struct maker *maker)
{
    for (unsigned tries = 0; tries < 16; tries++) {
        int region = one_in(maker, 3) ? (int)below(maker, MODEL_SPACES) : any_region(maker);
        enum bb_kind kind = maker->pending.region[region].kind;
        if ((kind != BB_KIND_ALIAS && kind != BB_KIND_IOMMU) || one_in(maker, 64)) {
            return region;
        }
    }
    return 0;
}

static void random_place(struct maker *maker, struct model_change *change)
{
    uint64_t last = maker->pending.region[change->region].last;

    if (one_in(maker, 6)) {
        change->kind = MODEL_MAP;
        change->container = (int)below(maker, MODEL_SPACES);
    } else {
        change->kind = MODEL_PLACE;
        change->container = any_container(maker);
        change->priority = random_priority(maker);
    }
    change->number = random_offset(maker, change->container, last);
}

static struct model_change random_change(struct maker *maker)
{
    struct model_change change = {.region = any_region(maker), .container = MODEL_NONE};
    const struct model_region *region = &maker->pending.region[change.region];

    if (change.region < MODEL_SPACES && !one_in(maker, 50)) {
        change.region =
            MODEL_SPACES < maker->made
                ? MODEL_SPACES + (int)below(maker, (uint64_t)(maker->made - MODEL_SPACES))
                : 0;
        region = &maker->pending.region[change.region];
    }
    for (unsigned tries = 0; tries < 3 && region->parent != MODEL_NONE; tries++) {
        int other = any_region(maker); /* what is in no place yet comes first */
        if (other >= MODEL_SPACES && maker->pending.region[other].parent == MODEL_NONE) {
            change.region = other;
            region = &maker->pending.region[other];
        }
    }
    if ((region->parent == MODEL_NONE) != one_in(maker, 12)) {
        random_place(maker, &change);
        return change;
    }
    change.kind = (enum model_change_kind)below(maker, MODEL_CHANGES);
    change.flag = one_in(maker, 2);
    change.priority = random_priority(maker);
    switch (change.kind) {
    case MODEL_PLACE:
    case MODEL_MAP:
        /* Once more than it can be is tried seldom enough above: make room for it here. */
        change.kind = MODEL_ENABLE;
        break;
    case MODEL_MOVE:
        change.number =
            random_offset(maker, region->parent == MODEL_NONE ? 0 : region->parent, region->last);
        break;
    case MODEL_RESIZE:
        change.number = one_in(maker, 40) ? 0 : random_size(maker, UINT64_MAX);
        if (region->kind == BB_KIND_IO && !one_in(maker, 8)) {
            change.number =
                (change.number & bb_mask_low(62) & -(uint64_t)region->impl_min) + region->impl_min;
        }
        if (region->kind == BB_KIND_RAM && !one_in(maker, 8)) {
            change.number = 1 + below(maker, region->last_max + 1);
        }
        break;
    case MODEL_WINDOW:
        change.number = scaled(maker);
        break;
    default:
        break;
    }
    return change;
}

static void one_change(struct maker *maker)
{
    struct topology_step *step = add(maker, TOPOLOGY_CHANGE);
    struct model tried = maker->pending;

    step->change = random_change(maker);
    if (model_ask(&maker->model, &step->change) == BB_OK &&
        model_change(&tried, &step->change) == BB_OK) {
        maker->pending = tried;
    }
}

static bool room(const struct maker *maker)
{
    return maker->out->count + 24 < TOPOLOGY_STEPS_MAX;
}

static void transaction(struct maker *maker, unsigned depth)
{
    struct model before = maker->pending;

    add(maker, TOPOLOGY_BEGIN);
    for (uint64_t changes = 1 + below(maker, 6); changes > 0 && room(maker); changes--) {
        if (depth < 3 && one_in(maker, 8)) {
            transaction(maker, depth + 1);
        } else {
            one_change(maker);
        }
    }
    if (one_in(maker, 10)) {
        add(maker, TOPOLOGY_ABORT);
        maker->pending = before;
    } else {
        add(maker, TOPOLOGY_COMMIT);
        if (depth == 0 && model_judge(&maker->pending) != BB_OK) {
            maker->pending = before;
        }
    }
}

void topology_make(struct topology *topology, uint64_t seed, enum topology_rules rules)
{
    struct maker maker = {.out = topology, .rules = rules, .made = MODEL_SPACES};

    topology->seed = seed;
    topology->count = 0;
    random_begin(&maker.random, seed);
    model_begin(&maker.model, topology_space_last);
    maker.pending = maker.model;
    static const struct {
        unsigned unit, width;
    } scales[] = {{0, 4}, {0, 6}, {0, 10}, {12, 4}, {12, 12}, {6, 10}, {0, 64}, {16, 47}};
    uint64_t scale = below(&maker, BB_ARRAY_LEN(scales));
    maker.unit_bits = scales[scale].unit;
    maker.width_bits = scales[scale].width;
    maker.limit = MODEL_SPACES + 2 + (int)below(&maker, one_in(&maker, 6) ? 40 : 14);
    for (uint64_t rounds = 3 + below(&maker, 14); rounds > 0 && room(&maker); rounds--) {
        for (uint64_t makes = below(&maker, 7);
             makes > 0 && maker.made < maker.limit && maker.made < MODEL_REGIONS_MAX; makes--) {
            make_region(&maker);
        }
        if (maker.made == MODEL_SPACES) {
            continue;
        }
        if (one_in(&maker, 4)) {
            one_change(&maker);
            if (model_judge(&maker.pending) != BB_OK) {
                maker.pending = maker.model;
            }
        } else {
            transaction(&maker, 0);
        }
        maker.model = maker.pending;
        if (one_in(&maker, 8)) {
            int region = any_region(&maker);
            if (region >= MODEL_SPACES) {
                add(&maker, TOPOLOGY_REMOVE)->region = region;
                model_remove(&maker.model, region);
                maker.pending = maker.model;
            }
        }
    }
}

void topology_model_make(struct model *model, const struct topology_step *step)
{
    const struct topology_region *make = &step->make;
    uint64_t last = make->size == BB_SIZE_ALL ? UINT64_MAX : make->size - 1;

    model->region[step->region] = (struct model_region){
        .exists = true,
        .kind = make->kind,
        .last = last,
        .last_max = make->size_max == 0 ? last : make->size_max - 1,
        .impl_min = make->rules.impl_min == 0 ? 1 : make->rules.impl_min,
        .parent = MODEL_NONE,
        .enabled = true,
        .read_only = make->read_only,
        .rom_mode = make->kind == BB_KIND_ROM_DEVICE,
        .target = make->target,
        .window = make->window,
    };
}

static void print_region(FILE *out, int region)
{
    if (region < 0) {
        fprintf(out, "nothing");
    } else if (region < MODEL_SPACES) {
        fprintf(out, "space %s", topology_space_name[region]);
    } else {
        fprintf(out, "#%d", region);
    }
}

static void print_make(FILE *out, const struct topology_step *step)
{
    static const char *const kinds[] = {"container", "alias",    "RAM",  "ROM device",
                                        "I/O",       "reserved", "IOMMU"};
    static const char *const classes[] = {"LOCKFREE", "DEVICE_LOCK", "MAY_SLEEP"};
    const struct topology_region *make = &step->make;
    const struct bb_access_rules *rules = &make->rules;

    fprintf(out, "make ");
    print_region(out, step->region);
    fprintf(out, ": %s of ", kinds[make->kind]);
    if (make->size == BB_SIZE_ALL) {
        fprintf(out, "2^64 bytes");
    } else {
        fprintf(out, "0x%" PRIx64 " bytes", make->size);
    }
    if (make->size_max != 0) {
        fprintf(out, ", at most 0x%" PRIx64, make->size_max);
    }
    if (make->kind == BB_KIND_ALIAS) {
        fprintf(out, ", shows ");
        print_region(out, make->target);
        fprintf(out, " from 0x%" PRIx64, make->window);
    }
    if (make->kind == BB_KIND_RAM) {
        fprintf(out, ", arena 0x%" PRIx64, make->arena);
    }
    if (make->kind == BB_KIND_IO || make->kind == BB_KIND_ROM_DEVICE) {
        fprintf(out, ", %s, valid %u to %u, implemented %u to %u%s%s%s", classes[make->klass],
                rules->valid_min, rules->valid_max, rules->impl_min, rules->impl_max,
                rules->unaligned ? ", unaligned" : "",
                rules->endian == BB_BIG_ENDIAN ? ", big-endian" : "",
                make->accept ? ", accept hook" : "");
    }
    fprintf(out, "%s\n", make->read_only ? ", read-only" : "");
}

static void print_change(FILE *out, const struct model_change *change)
{
    static const char *const names[] = {"place",  "map",    "unmap",  "move",     "priority",
                                        "enable", "resize", "window", "rom mode", "read-only"};

    fprintf(out, "%s ", names[change->kind]);
    print_region(out, change->region);
    switch (change->kind) {
    case MODEL_PLACE:
    case MODEL_MAP:
        fprintf(out, " in ");
        print_region(out, change->container);
        fprintf(out, " at 0x%" PRIx64, change->number);
        if (change->kind == MODEL_PLACE) {
            fprintf(out, ", priority %d", change->priority);
        }
        break;
    case MODEL_MOVE:
    case MODEL_RESIZE:
    case MODEL_WINDOW:
        fprintf(out, " to 0x%" PRIx64, change->number);
        break;
    case MODEL_PRIORITY:
        fprintf(out, " %d", change->priority);
        break;
    case MODEL_ENABLE:
    case MODEL_ROM_MODE:
    case MODEL_READ_ONLY:
        fprintf(out, "%s", change->flag ? ": yes" : ": no");
        break;
    default:
        break;
    }
    fprintf(out, "\n");
}

void topology_print(FILE *out, const struct topology *topology)
{
    int depth = 0;

    for (unsigned i = 0; i < topology->count; i++) {
        const struct topology_step *step = &topology->step[i];
        bool ends = step->kind == TOPOLOGY_COMMIT || step->kind == TOPOLOGY_ABORT;

        depth -= ends && depth > 0;
        fprintf(out, "  %*s", 2 * depth, "");
        switch (step->kind) {
        case TOPOLOGY_MAKE:
            print_make(out, step);
            break;
        case TOPOLOGY_BEGIN:
            fprintf(out, "begin\n");
            depth++;
            break;
        case TOPOLOGY_COMMIT:
            fprintf(out, "commit\n");
            break;
        case TOPOLOGY_ABORT:
            fprintf(out, "abort\n");
            break;
        case TOPOLOGY_CHANGE:
            print_change(out, &step->change);
            break;
        case TOPOLOGY_REMOVE:
            fprintf(out, "remove #%d\n", step->region);
            break;
        }
    }
}

unsigned topology_shrink(struct topology *topology,
                         bool (*wrong)(void *opaque, const struct topology *topology), void *opaque)
{
    static struct topology tried;
    unsigned asked = 0;
    bool again = true;

    while (again) {
        again = false;
        /* From the end: what comes last is needed by nothing. */
        for (unsigned i = topology->count; i-- > 0;) {
            tried = *topology;
            memmove(&tried.step[i], &tried.step[i + 1],
                    (tried.count - i - 1) * sizeof(tried.step[0]));
            tried.count--;
            asked++;
            if (wrong(opaque, &tried)) {
                *topology = tried;
                again = true;
            }
        }
    }
    return asked;
}

/* SPDX-License-Identifier: MIT */
/* Steps of topology.h's programs that make and remove regions, and change where they are. */
#include "topology_internal.h"

/* Regions. */

static int any_device(void)
{
    int number = (int)(take(1) % DEVICES);

    if (world.device[number] == NULL) {
        struct bb_device_config config = {.name = "device", .ops = &device_ops};
        CHECK(bb_device_create(world.ctx, &config, &world.device[number], &world.err));
    }
    return world.device[number] == NULL ? -1 : number;
}

static struct bb_access_rules take_rules(void)
{
    uint64_t bits = take(2);

    /* Also some that are refused. */
    return (struct bb_access_rules){.valid_min = (uint8_t)((1 << (bits & 7)) >> 1),
                                    .valid_max = (uint8_t)((1 << ((bits >> 3) & 7)) >> 1),
                                    .impl_min = (uint8_t)((1 << ((bits >> 6) & 3)) >> 1),
                                    .impl_max = (uint8_t)((1 << ((bits >> 8) & 7)) >> 1),
                                    .unaligned = (bits & 0x800) != 0,
                                    .endian = (enum bb_endian)((bits >> 12) & 1)};
}

static void make_io(struct slot *slot)
{
    static const struct bb_region_ops *const ops[] = {&io_ops, &hooked_ops, &silent_ops, &io_ops};
    uint64_t how = take(1);
    struct bb_region_config config = {.name = "io",
                                      .size_bytes = take_number(),
                                      .ops = ops[how & 3],
                                      .opaque = slot,
                                      .klass = (enum bb_class)((how >> 2) & 3),
                                      .rom_device = (how & 0x30) == 0x30,
                                      .reentrant = (how & 0x40) != 0};
    int device = any_device();

    if ((how & 0x80) != 0) {
        config.rules = take_rules();
    }
    if (config.rom_device && config.size_bytes <= BB_BIT64(46)) {
        config.size_bytes &= 0xffff;
    }
    if (device >= 0 && CHECK(bb_device_region_create(world.ctx, world.device[device], &config,
                                                     &slot->region, &world.err)) == BB_OK) {
        slot->device = device;
    }
}

static void make_iommu(struct slot *slot)
{
    struct bb_iommu_config config = {
        .name = "iommu", .size_bytes = take_number(), .ops = &iommu_ops, .opaque = slot};
    int device = any_device();

    if (device >= 0 && CHECK(bb_device_iommu_create(world.ctx, world.device[device], &config,
                                                    &slot->region, &world.err)) == BB_OK) {
        slot->device = device;
    }
}

static void make_ram(struct slot *slot)
{
    uint64_t how = take(1);
    struct bb_ram_config config = {.name = "ram",
                                   .size_bytes = take_number(),
                                   .read_only = (how & 1) != 0,
                                   .no_guard = (how & 2) != 0,
                                   .prefault = (how & 4) != 0};

    if ((how & 0x80) != 0) {
        config.size_bytes_max = take_number();
    }
    /* What is larger than it may be is refused; what may be is not to eat the machine. */
    bool small = config.size_bytes <= ARENA_BYTES && config.size_bytes_max <= ARENA_BYTES;
    if ((how & 0x70) == 0 && small) {
        config.backing = (how & 8) != 0 ? BB_RAM_MEMFD : BB_RAM_ANONYMOUS;
    } else {
        uint64_t most =
            config.size_bytes_max > config.size_bytes ? config.size_bytes_max : config.size_bytes;
        config.backing = BB_RAM_EMBEDDER;
        config.host = world.arena;
        if (most <= ARENA_BYTES) {
            uint64_t room = ARENA_BYTES - most;
            config.host = world.arena + (take(2) % (room + 1) & ~UINT64_C(7));
        } else if (most <= BB_BIT64(46)) {
            config.size_bytes = ARENA_BYTES;
            config.size_bytes_max = 0;
        }
    }
    CHECK(bb_ram_create(world.ctx, &config, &slot->region, &world.err));
}

static void make_alias(struct slot *slot)
{
    struct slot *target = take_region();
    uint64_t how = take(1);
    struct bb_alias_config config = {.name = "alias",
                                     .target = target == NULL ? NULL : target->region,
                                     .offset = take_number(),
                                     .size_bytes = take_number(),
                                     .read_only = (how & 1) != 0};

    if ((how & 0xc0) == 0xc0) {
        config.target = bb_space_root(world.space[(how >> 1) % SPACES]);
    }
    CHECK(bb_alias_create(world.ctx, &config, &slot->region, &world.err));
}

void make_region_step(void)
{
    struct slot *slot = free_region();
    uint64_t kind = take(1);

    if (slot == NULL) {
        return;
    }
    switch (kind % 8) {
    case 0:
        CHECK(
            bb_container_create(world.ctx, "container", take_number(), &slot->region, &world.err));
        break;
    case 1:
        CHECK(bb_reserved_create(world.ctx, "reserved", take_number(), &slot->region, &world.err));
        break;
    case 2:
    case 3:
        make_alias(slot);
        break;
    case 4:
        make_ram(slot);
        break;
    case 5:
        make_iommu(slot);
        break;
    default:
        make_io(slot);
        break;
    }
}

void adopt_step(void)
{
    struct slot *slot = take_region();
    int device = any_device();

    if (slot != NULL && device >= 0 &&
        CHECK(bb_device_adopt(world.ctx, world.device[device], slot->region, &world.err)) ==
            BB_OK) {
        slot->device = device;
    }
}

void remove_region_step(void)
{
    struct slot *slot = take_region();

    if (slot != NULL) {
        remove_region(slot, take(1) == 0xff);
    }
}

void remove_device_step(void)
{
    int number = (int)(take(1) % DEVICES);

    remove_device(number, take(1) == 0xff);
}

/* Where something is put; accesses will look there. */
static uint64_t take_place(void)
{
    uint64_t place = take_number();

    remember_address(place);
    return place;
}

/* Transactions. */

void begin_step(void)
{
    struct bb_txn **txn = &world.txn[world.txns];

    if (world.txns == TXNS) {
        return;
    }
    int result = world.txns == 0 ? CHECK(bb_txn_begin(world.ctx, txn, &world.err))
                                 : CHECK(bb_txn_nest(txn[-1], txn, &world.err));
    world.txns += result == BB_OK;
}

void commit_step(void)
{
    if (world.txns > 0) {
        world.txns--;
        CHECK(bb_txn_commit(world.txn[world.txns], &world.err));
    }
}

void abort_step(void)
{
    if (world.txns > 0) {
        bb_txn_abort(world.txn[--world.txns]);
    }
}

static struct bb_region *take_container(void)
{
    uint64_t which = take(1);

    if (which < 0x60) {
        return bb_space_root(world.space[which % SPACES]);
    }
    struct slot *slot = take_region();
    return slot == NULL ? NULL : slot->region;
}

static void bell_change(struct bb_txn *txn, struct bb_region *region, uint64_t what)
{
    uint64_t how = take(1);
    struct bb_doorbell bell = {.offset = take_number(),
                               .size = how & 15,
                               .match_value = (how & 0x10) != 0,
                               .value = how >> 6,
                               .fd = (how & 0x20) != 0 ? world.bell : (int)(how >> 6) - 1};

    /* Whatever number is no descriptor of this process is as good as another. */
    bell.fd = bell.fd >= 0 ? world.bell : bell.fd;
    if (what == 0) {
        CHECK(bb_txn_doorbell_add(txn, region, &bell, &world.err));
    } else if (what == 1) {
        CHECK(bb_txn_doorbell_remove(txn, region, &bell, &world.err));
    } else if (what == 2) {
        CHECK(bb_txn_coalesce(txn, region, bell.offset, how, &world.err));
    } else {
        CHECK(bb_txn_uncoalesce(txn, region, bell.offset, how, &world.err));
    }
}

static void add_change(struct bb_txn *txn)
{
    uint64_t what = take(1);
    struct slot *slot = take_region();
    struct bb_region *region = slot == NULL ? NULL : slot->region;
    struct bb_error *err = &world.err;

    switch (what % 16) {
    case 0:
    case 1:
    case 2: {
        struct bb_region *container = take_container();
        uint64_t offset = take_place();
        CHECK(bb_txn_place(txn, container, offset, region, (int)(int8_t)take(1), err));
        break;
    }
    case 3:
        CHECK(bb_txn_map(txn, world.space[(what >> 4) % SPACES], take_place(), region, err));
        break;
    case 4:
        CHECK(bb_txn_unmap(txn, region, err));
        break;
    case 5:
        CHECK(bb_txn_move(txn, region, take_place(), err));
        break;
    case 6:
        CHECK(bb_txn_priority(txn, region, (int)(int8_t)take(1), err));
        break;
    case 7:
        CHECK(bb_txn_enable(txn, region, (what & 0x10) != 0, err));
        break;
    case 8:
        CHECK(bb_txn_resize(txn, region, take_number(), err));
        break;
    case 9:
        CHECK(bb_txn_window(txn, region, take_number(), err));
        break;
    case 10:
        CHECK(bb_txn_rom_mode(txn, region, (what & 0x10) != 0, err));
        break;
    case 11:
        CHECK(bb_txn_read_only(txn, region, (what & 0x10) != 0, err));
        break;
    default:
        bell_change(txn, region, what % 16 - 12);
        break;
    }
}

/* In the transaction that is open, or in one of its own. */
void change_step(void)
{
    if (world.txns > 0) {
        add_change(world.txn[world.txns - 1]);
        return;
    }
    begin_step();
    if (world.txns > 0) {
        add_change(world.txn[0]);
        commit_step();
    }
}

void change_alone_step(void)
{
    uint64_t what = take(1);
    struct slot *slot = take_region();
    struct bb_region *region = slot == NULL ? NULL : slot->region;
    struct bb_error *err = &world.err;

    switch (what % 8) {
    case 0:
        CHECK(bb_space_unmap(world.ctx, region, err));
        break;
    case 1:
    case 2: {
        struct bb_region *container = take_container();
        CHECK(bb_region_place(world.ctx, container, take_place(), region, (int)(what >> 4), err));
        break;
    }
    case 3:
        CHECK(bb_region_enable(world.ctx, region, (what & 0x10) != 0, err));
        break;
    case 4:
        CHECK(bb_region_move(world.ctx, region, take_place(), err));
        break;
    default:
        CHECK(
            bb_space_map(world.ctx, world.space[(what >> 4) % SPACES], take_place(), region, err));
        break;
    }
}

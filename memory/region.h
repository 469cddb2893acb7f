/* SPDX-License-Identifier: MIT */
/*
 * Regions: what address spaces are made of.
 *
 * A region of any kind but an alias or an IOMMU is also a container: other regions can be put into
 * it at an offset, with a priority, and clip at its end. What it shows at an offset is what its
 * enabled children show there, the one with the highest priority first; where all of them have a
 * hole, the region itself; a plain container has nothing of its own. Two enabled children of one
 * region and one priority never overlap: a transaction that would have it so is refused. An alias
 * shows a part of another region, of whatever kind, in any number of places and spaces; a region
 * itself is in one place at most. The root of a space (bb_space_root()) is a container.
 *
 *   | kind       | made by                                  | an access reaches              |
 *   |------------|------------------------------------------|--------------------------------|
 *   | container  | bb_container_create()                    | its children alone             |
 *   | alias      | bb_alias_create()                        | what the target shows there    |
 *   | RAM, ROM   | bb_ram_create() (memory/ram.h)           | memory; ROM refuses writes     |
 *   | reserved   | bb_reserved_create()                     | nothing: a decode error        |
 *   | I/O        | bb_device_region_create(), engine/device.h | callbacks                    |
 *   | ROM device | the same, `rom_device` set               | memory to read, callback to write |
 *   | IOMMU      | bb_device_iommu_create(), engine/device.h | where its translation leads   |
 *
 * Ownership: who creates a region removes it, with bb_region_remove() (engine/device.h), which
 * takes it out of its place, waits until no callback of it runs and no mapping of it is left, and
 * frees it. Children of a removed region are in no place from then on; aliases of it show nothing.
 * Threads: creating and querying from any thread with a context; where a region is, its size and
 * what else a transaction can change (memory/space.h) is changed by transactions alone.
 */
#ifndef BUSBAR_MEMORY_REGION_H
#define BUSBAR_MEMORY_REGION_H

#include "../base/result.h"

BB_BEGIN_DECLS

struct bb_ctx;
struct bb_device;
struct bb_region;
struct bb_space;

enum bb_kind {
    BB_KIND_CONTAINER,
    BB_KIND_ALIAS,
    BB_KIND_RAM,
    BB_KIND_ROM_DEVICE,
    BB_KIND_IO,
    BB_KIND_RESERVED,
    BB_KIND_IOMMU,
};

/* As the size of a container, an alias, a reserved region or an IOMMU: all 2^64 bytes. */
#define BB_SIZE_ALL UINT64_MAX

/* Who makes an access, as the bus tells its target. All zero where nobody says. */
struct bb_attrs {
    uint32_t requester_id; /* PCI bus/device/function, Arm stream ID ... */
    bool secure;           /* Arm: the secure state */
    bool privileged;
};

/* How the engine runs a region's callbacks. docs/architecture.md says how to choose. */
enum bb_class {
    BB_CLASS_LOCKFREE,      /* in a read section; the device synchronises itself */
    BB_CLASS_DEVICE_LOCK,   /* in a read section, under the device's lock */
    BB_CLASS_MAY_SLEEP,     /* outside the section, with a pin on the device; may block */
    BB_CLASS_EXTERNAL_LOCK, /* pinned likewise, under the embedder's lock hooks */
};

enum bb_endian { BB_LITTLE_ENDIAN, BB_BIG_ENDIAN };

/*
 * Callbacks of an I/O region. `offset` is from the region's start; `size` is 1, 2, 4 or 8 and obeys
 * the implemented sizes of the rules. Values are in host order, already converted from the region's
 * endianness; only the low `size` bytes count. Return BB_OK, or BB_E_DEVICE for an access that the
 * device refuses (counted; a read then yields what the space says refused reads yield). The context
 * is the calling thread's; through it the callback makes nested accesses, sets lines, arms timers,
 * posts effects.
 */
struct bb_region_ops {
    int (*read)(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size, uint64_t *value);
    int (*write)(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size, uint64_t value);
    /*
     * Asked first, with the access as it was made (size 1 to 64), when the sizes are in order.
     * Returns BB_OK, or the result that the access is to have: BB_E_DECODE (as if nothing were
     * there) or BB_E_DEVICE. Runs as read and write do. NULL: every access is accepted. A region
     * with this hook always takes the slower path of dispatch.
     */
    int (*accept)(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size, bool write,
                  struct bb_attrs attrs);
};

/*
 * Which accesses a region accepts, and which its callbacks implement. Sizes are powers of two:
 * valid ones from 1 to 64, implemented ones from 1 to 8. An access outside [valid_min, valid_max],
 * or unaligned where `unaligned` is false, is a device error without a callback. An accepted one
 * that the callbacks don't implement is widened to the impl_min bytes around it, aligned (a read
 * takes its part; a write reads nothing: it passes its bytes where they lie, and zeros around them)
 * or split into impl_max pieces, in rising order of offset; the first piece that is refused ends
 * it.
 *
 * A value of n bytes at offset o stands for the region's bytes o to o + n - 1, the one at o least
 * significant where the region is little-endian, most significant where it is big-endian. So a
 * big-endian region sees an access swapped at its size, and a split one as a big-endian guest would
 * make it: the piece at the lowest offset is the most significant.
 *
 * A zero size means 1 for a minimum and 8 for a maximum, so all zero means: 1 to 8 valid, 1 to 8
 * implemented, aligned only, little-endian. The region's size is a multiple of impl_min.
 */
struct bb_access_rules {
    uint8_t valid_min;
    uint8_t valid_max;
    uint8_t impl_min;
    uint8_t impl_max;
    bool unaligned; /* unaligned accesses are valid; they reach callbacks as aligned pieces */
    enum bb_endian endian;
};

/* What one access of a register may have to wait for; what the stall test holds a device to. */
enum bb_path {
    BB_PATH_WAIT_FREE,   /* a bounded number of its own steps */
    BB_PATH_LOCK_FREE,   /* some thread always makes progress; a stopped one stops nobody */
    BB_PATH_NARROW_LOCK, /* waits for the lock named */
    BB_PATH_SLEEPS,      /* may block on something outside the device */
};

/* One row of a device's table of paths: registers [first, last], by offset, inside the region. */
struct bb_path_row {
    const char *name; /* the specification's register name */
    uint64_t first;
    uint64_t last;
    enum bb_path read;
    enum bb_path write;
    const char *waits_for; /* the lock, where either is BB_PATH_NARROW_LOCK; else NULL */
};

/* Everything that makes an I/O region. Pointers are kept, not copied, except for the name. */
struct bb_region_config {
    const char *name;                /* copied, at most 31 bytes; shown in errors and dumps */
    uint64_t size_bytes;             /* 1 to 2^63 */
    const struct bb_region_ops *ops; /* NULL callbacks refuse that direction */
    void *opaque;
    bool rom_device; /* zeroed memory of the region's size is allocated with it: see
                        bb_region_host(), bb_txn_rom_mode(). While in ROM mode, as it begins, reads
                        are of that memory and obey no rules but its bounds; writes go to the
                        callback. Size at most 2^46 */
    enum bb_class klass;
    struct bb_access_rules rules;
    const struct bb_path_row *paths; /* may be NULL: then every access waits for the device's lock
                                        (DEVICE_LOCK), sleeps (MAY_SLEEP, EXTERNAL_LOCK) or is
                                        taken to be lock-free (LOCKFREE) */
    size_t path_count;
    bool reentrant; /* a declared loop: chains may come back to this region's device through it */
};

/*
 * Makes a container: a region that shows its children and nothing of its own. `size_bytes` is 1 to
 * 2^64 - 2, or BB_SIZE_ALL.
 * Returns BB_OK; BB_E_INVAL without a name or a place; BB_E_RANGE for a size of 0; BB_E_NOMEM.
 * Threads: the context's own; allocates.
 * Lifetime: until bb_region_remove().
 */
BB_API int bb_container_create(struct bb_ctx *ctx, const char *name, uint64_t size_bytes,
                               struct bb_region **region, struct bb_error *err);

/* Makes a reserved region: it hides what lies under it and accesses of it are decode errors. As
 * bb_container_create(). */
BB_API int bb_reserved_create(struct bb_ctx *ctx, const char *name, uint64_t size_bytes,
                              struct bb_region **region, struct bb_error *err);

struct bb_alias_config {
    const char *name;         /* copied, at most 31 bytes */
    struct bb_region *target; /* of any kind, another alias or the root of a space too */
    uint64_t offset;          /* of the alias's first byte in the target */
    uint64_t size_bytes; /* 1 to 2^64 - 2, or BB_SIZE_ALL; may reach over the target's end, where
                            it shows nothing. offset + size_bytes does not wrap */
    bool read_only;      /* RAM seen through it refuses writes */
};

/*
 * Makes an alias.
 * Returns as bb_container_create(), and BB_E_INVAL without a target, BB_E_RANGE where offset and
 * size wrap, BB_E_STATE where the target is being removed.
 * Threads: the context's own; allocates, takes the map's lock.
 * Lifetime: until bb_region_remove(); the target may be removed before it.
 */
BB_API int bb_alias_create(struct bb_ctx *ctx, const struct bb_alias_config *config,
                           struct bb_region **region, struct bb_error *err);

/*
 * Returns the host address of the first byte of RAM, or of a ROM device's memory; NULL for other
 * regions. What an embedder writes there itself it reports with bb_dirty_mark() (memory/dirty.h).
 * Threads: any; wait-free.
 */
BB_API void *bb_region_host(const struct bb_region *region);

/*
 * Name, kind, class and owner (NULL: none) as configured; the size now, BB_SIZE_ALL for 2^64; and
 * the device's table of paths with its length.
 * Threads: any; wait-free.
 * Lifetime: what is returned is the region's.
 */
BB_API enum bb_kind bb_region_kind(const struct bb_region *region);
BB_API struct bb_device *bb_region_device(const struct bb_region *region);
BB_API const char *bb_region_name(const struct bb_region *region);
BB_API uint64_t bb_region_size(const struct bb_region *region);
BB_API enum bb_class bb_region_class(const struct bb_region *region);
BB_API const struct bb_path_row *bb_region_paths(const struct bb_region *region, size_t *count);

BB_END_DECLS

#endif

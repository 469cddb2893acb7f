/* SPDX-License-Identifier: MIT */
/*
 * Regions: what can be mapped into an address space. An I/O region belongs to a device and is made
 * by bb_device_region_create() (engine/device.h); a RAM region is made here.
 *
 * Ownership: who creates a region removes it, with bb_region_remove() (engine/device.h), which
 * unmaps it, waits until no callback of it runs, and frees it.
 * Threads: creating and querying from any thread with a context; a region is immutable once
 * created except for where it is mapped.
 */
#ifndef BUSBAR_MEMORY_REGION_H
#define BUSBAR_MEMORY_REGION_H

#include "../base/result.h"

BB_BEGIN_DECLS

struct bb_ctx;
struct bb_region;

/* How the engine runs a region's callbacks. docs/architecture.md says how to choose. */
enum bb_class {
    BB_CLASS_LOCKFREE,      /* in a read section; the device synchronises itself */
    BB_CLASS_DEVICE_LOCK,   /* in a read section, under the device's lock */
    BB_CLASS_MAY_SLEEP,     /* outside the section, with a pin on the device; may block */
    BB_CLASS_EXTERNAL_LOCK, /* pinned likewise, under the embedder's lock hooks */
};

enum bb_endian { BB_LITTLE_ENDIAN, BB_BIG_ENDIAN };

/*
 * Callbacks of an I/O region. `offset` is from the region's start; `size` is 1, 2, 4 or 8 and
 * obeys the implemented sizes of the rules. Values are in host order, already converted from the
 * region's endianness; only the low `size` bytes count.
 * Return BB_OK, or BB_E_DEVICE for an access that the device refuses (counted; a read then yields
 * what the space says refused reads yield).
 * The context is the calling thread's; through it the callback makes nested accesses, sets lines,
 * arms timers, posts effects.
 */
struct bb_region_ops {
    int (*read)(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size, uint64_t *value);
    int (*write)(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size, uint64_t value);
};

/*
 * Which accesses a region accepts, and which its callbacks implement. Sizes are powers of two from
 * 1 to 8. An access outside [valid_min, valid_max], or unaligned where `unaligned` is false, is a
 * device error without a callback. An accepted one that the callbacks don't implement is widened
 * to the impl_min bytes around it, aligned (a read takes its part; a write reads nothing: it passes
 * its bytes where they lie, and zeros around them) or split into impl_max pieces, in rising order
 * of offset; the first piece that is refused ends it.
 *
 * A value of n bytes at offset o stands for the region's bytes o to o + n - 1, the one at o least
 * significant where the region is little-endian, most significant where it is big-endian. So a
 * big-endian region sees an access swapped at its size, and a split one as a big-endian guest
 * would make it: the piece at the lowest offset is the most significant.
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
    enum bb_class klass;
    struct bb_access_rules rules;
    const struct bb_path_row *paths; /* may be NULL: then every access waits for the device's lock
                                        (DEVICE_LOCK), sleeps (MAY_SLEEP, EXTERNAL_LOCK) or is
                                        taken to be lock-free (LOCKFREE) */
    size_t path_count;
    bool reentrant; /* a declared loop: chains may come back to this region's device through it */
};

struct bb_ram_config {
    const char *name;    /* copied, at most 31 bytes */
    uint64_t size_bytes; /* 1 to 2^46 */
    void *host;          /* embedder-owned memory of that size, 8-byte aligned, which must outlive
                            the region; NULL: anonymous memory is mapped, and freed with it */
    bool read_only;      /* guest writes are device errors */
};

/*
 * Makes a RAM region. Accesses to it run at once wherever they are made, as relaxed-atomic loads
 * and stores of up to 8 bytes.
 * Returns BB_OK; BB_E_RANGE for a size of 0 or too large; BB_E_INVAL for an unaligned host
 * address or no name; BB_E_NOMEM; BB_E_SYSTEM where memory can't be mapped.
 * Threads: the context's own; allocates, may block in the operating system.
 * Lifetime: until bb_region_remove().
 */
BB_API int bb_ram_create(struct bb_ctx *ctx, const struct bb_ram_config *config,
                         struct bb_region **region, struct bb_error *err);

/* Returns the host address of RAM's first byte; NULL for other regions. Threads: any; wait-free. */
BB_API void *bb_region_host(const struct bb_region *region);

/*
 * Name, size and class as configured, and the device's table of paths with its length.
 * Threads: any; wait-free. Lifetime: what is returned is the region's.
 */
BB_API const char *bb_region_name(const struct bb_region *region);
BB_API uint64_t bb_region_size(const struct bb_region *region);
BB_API enum bb_class bb_region_class(const struct bb_region *region);
BB_API const struct bb_path_row *bb_region_paths(const struct bb_region *region, size_t *count);

BB_END_DECLS

#endif

/* SPDX-License-Identifier: MIT */
/*
 * Dirty logs: a bitmap for each client and region, set by whoever writes, taken by the client.
 *
 * Invariants, and what they rest on:
 *  1. A bit is set after the data, by a read-modify-write with release, always. The client takes it
 *     by a read-modify-write with acquire, and reads the page after that. All changes of a word are
 *     read-modify-writes, so the taker is ordered after every writer whose bit it took, also one
 *     that found the bit set by another.
 *  2. A writer never looks first whether the bit is set already. Its data may still be on the way
 *     to memory when the look is answered (x86, too, lets a load overtake an earlier store): the
 *     client would take the bit in between and read the page without that data, and no bit would
 *     be left for it. A full fence before each look costs what the read-modify-write costs.
 *  3. A log is published, and its client's bit in dirty_clients set, before the grace period of
 *     bb_dirty_start(). A writer that saw no client was in a section that this period waited for,
 *     so its data is there when bb_dirty_start() returns; a later writer sees the client.
 *  4. A log is freed after it was unpublished and a grace period went by, or with its region, which
 *     then nobody sees any more.
 *  5. Starts, stops and what accelerators are told of them have one order: `control`, held for
 *     writing. Syncs hold it for reading, so a log that a sync works on stays. It is taken before
 *     the listeners' and the map's lock, by threads that may block and hold nothing; no access
 * takes it. A pin keeps the region from the beginning of a call to its end.
 *
 * Bitmaps reach to size_bytes_max: a region may be resized while it is logged.
 */
#include <inttypes.h>

#include "memory_internal.h"

enum {
    PAGE_SHIFT = 12,
    WORD_PAGES = 64,
    SECTION_PAGES = 1 << 18, /* what is marked in one section: 4 096 words a client */
};
_Static_assert(1 << PAGE_SHIFT == BB_DIRTY_PAGE_BYTES, "a bit is a page");

struct bb_dirty_log_ {
    uint64_t pages; /* immutable, from here to `region` */
    size_t bytes;
    struct bb_region *region;
    struct bb_dirty_log_ *next; /* of those that one call stops; so are: */
    unsigned pin;
    bool alone;      /* no other client logs the region */
    uint64_t word[]; /* (a) set by writers in sections, taken by the client */
};

struct bb_dirty_client {
    struct bb_map *map; /* immutable */
    unsigned number;
    char name[BB_CTX_NAME_BYTES];
};

struct bb_dirty_ {
    pthread_rwlock_t control;
    struct bb_dirty_client *client[BB_DIRTY_CLIENTS_MAX]; /* under the map's lock */
};

static uint64_t page_of(uint64_t offset)
{
    return offset >> PAGE_SHIFT;
}

/* The bits of `word` that stand for pages of [first, last]. */
static uint64_t word_mask(uint64_t word, uint64_t first, uint64_t last)
{
    uint64_t mask = UINT64_MAX;

    if (word == first / WORD_PAGES) {
        mask &= UINT64_MAX << first % WORD_PAGES;
    }
    if (word == last / WORD_PAGES) {
        mask &= UINT64_MAX >> (WORD_PAGES - 1 - last % WORD_PAGES);
    }
    return mask;
}

/*
 * Marking.
 */

/* Release, pairs with take_word(): the data was stored before. Unconditional: invariant 2. */
static void set_bits(uint64_t *word, uint64_t bits)
{
    (void)bb_fetch_or_release(word, bits);
}

static void mark_log(struct bb_dirty_log_ *log, uint64_t first, uint64_t last)
{
    if (first >= log->pages) {
        return;
    }
    if (last >= log->pages) {
        last = log->pages - 1;
    }
    for (uint64_t word = first / WORD_PAGES; word <= last / WORD_PAGES; word++) {
        set_bits(&log->word[word], word_mask(word, first, last));
    }
}

/* `pages` bits of `bitmap`, the first of which is page `first`. */
static void merge_log(struct bb_dirty_log_ *log, uint64_t first, const uint64_t *bitmap,
                      uint64_t pages)
{
    if (first >= log->pages) {
        return;
    }
    if (pages > log->pages - first) {
        pages = log->pages - first;
    }
    for (uint64_t done = 0; done < pages; done += WORD_PAGES) {
        uint64_t left = pages - done;
        uint64_t bits = bitmap[done / WORD_PAGES] &
                        bb_mask_low(left < WORD_PAGES ? (unsigned)left : WORD_PAGES);
        uint64_t *word = &log->word[(first + done) / WORD_PAGES];
        unsigned shift = (first + done) % WORD_PAGES;

        if (bits << shift != 0) {
            set_bits(&word[0], bits << shift);
        }
        if (shift != 0 && bits >> (WORD_PAGES - shift) != 0) {
            set_bits(&word[1], bits >> (WORD_PAGES - shift));
        }
    }
}

/*
 * The region's next log of `*clients`, which loses its bit; NULL after the last. In a section.
 */
static struct bb_dirty_log_ *next_log(const struct bb_region *region, uint32_t *clients)
{
    while (*clients != 0) {
        unsigned number = (unsigned)__builtin_ctz(*clients);

        *clients &= *clients - 1;
        /* Pairs with bb_publish_() in log_start_locked(). NULL: just being started or stopped. */
        struct bb_dirty_log_ *log = bb_deref_(&region->dirty_log[number]);
        if (log != NULL) {
            return log;
        }
    }
    return NULL;
}

void bb_dirty_mark_(struct bb_region *region, uint64_t offset, uint64_t length)
{
    /* Relaxed: as in bb_dirty_wrote_(); invariant 3. */
    uint32_t clients = bb_load_relaxed(&region->dirty_clients);
    struct bb_dirty_log_ *log;

    if (length == 0) {
        return;
    }
    while ((log = next_log(region, &clients)) != NULL) {
        mark_log(log, page_of(offset), page_of(offset + (length - 1)));
    }
}

void bb_dirty_mark(struct bb_ctx *ctx, struct bb_region *region, uint64_t offset, uint64_t length)
{
    /* Regions without memory may be of 2^64 bytes. */
    if (region == NULL || region->host == NULL || length == 0) {
        return;
    }
    /* Relaxed: whoever shrinks the region meanwhile is not ordered with this call either. */
    uint64_t end = bb_load_relaxed(&region->last);
    if (offset > end) {
        return;
    }
    if (length - 1 < end - offset) {
        end = offset + (length - 1);
    }
    /* In pieces, so that marking much of a region holds up no grace period. */
    for (uint64_t first = page_of(offset); first <= page_of(end); first += SECTION_PAGES) {
        uint64_t last = page_of(end);
        struct bb_dirty_log_ *log;

        last = last - first < SECTION_PAGES ? last : first + (SECTION_PAGES - 1);
        bb_section_enter_(ctx);
        /* Relaxed: as in bb_dirty_mark_(). */
        uint32_t clients = bb_load_relaxed(&region->dirty_clients);
        while ((log = next_log(region, &clients)) != NULL) {
            mark_log(log, first, last);
        }
        bb_section_leave_(ctx);
    }
}

void bb_dirty_merge(struct bb_ctx *ctx, struct bb_region *region, uint64_t offset,
                    const uint64_t *bitmap, uint64_t pages)
{
    if (region == NULL || bitmap == NULL) {
        return;
    }
    for (uint64_t done = 0; done < pages; done += SECTION_PAGES) {
        uint64_t part = pages - done < SECTION_PAGES ? pages - done : SECTION_PAGES;
        struct bb_dirty_log_ *log;

        bb_section_enter_(ctx);
        /* Relaxed: as in bb_dirty_mark_(). */
        uint32_t clients = bb_load_relaxed(&region->dirty_clients);
        while ((log = next_log(region, &clients)) != NULL) {
            merge_log(log, page_of(offset) + done, bitmap + done / WORD_PAGES, part);
        }
        bb_section_leave_(ctx);
    }
}

uint32_t bb_dirty_clients(const struct bb_region *region)
{
    /* Relaxed: an answer of this moment. */
    return bb_load_relaxed(&region->dirty_clients);
}

/*
 * Taking.
 */

/* Takes the bits of `mask`. Acquire, pairs with set_bits(): the caller reads these pages next. */
static uint64_t take_word(uint64_t *word, uint64_t mask)
{
    /* Relaxed: a bit whose writer the caller knows to be done is seen, and any other is left for
     * the next call. Clean words are the most, and writers' lines stay with them. */
    if ((bb_load_relaxed(word) & mask) == 0) {
        return 0;
    }
    return mask == UINT64_MAX ? bb_xchg_acquire(word, 0) : bb_fetch_and_acquire(word, ~mask) & mask;
}

/* Sets those bits in `bitmap`, whose bit 0 is page `first`, that are set in `bits` of `word`. */
static void put_bits(uint64_t *bitmap, uint64_t first, uint64_t word, uint64_t bits)
{
    if (word == first / WORD_PAGES) {
        bitmap[0] |= bits >> first % WORD_PAGES;
        return;
    }
    uint64_t at = word * WORD_PAGES - first;
    unsigned shift = at % WORD_PAGES;
    bitmap[at / WORD_PAGES] |= bits << shift;
    /* Looked at first: there may be no such word where no page is left for it. */
    if (shift != 0 && bits >> (WORD_PAGES - shift) != 0) {
        bitmap[at / WORD_PAGES + 1] |= bits >> (WORD_PAGES - shift);
    }
}

static uint64_t take(struct bb_dirty_log_ *log, uint64_t first, uint64_t last, uint64_t *bitmap)
{
    uint64_t taken = 0;

    for (uint64_t word = first / WORD_PAGES; word <= last / WORD_PAGES; word++) {
        uint64_t bits = take_word(&log->word[word], word_mask(word, first, last));
        if (bits == 0) {
            continue;
        }
        taken += (uint64_t)__builtin_popcountll(bits);
        if (bitmap != NULL) {
            put_bits(bitmap, first, word, bits);
        }
    }
    return taken;
}

/*
 * Starting, stopping, syncing.
 */

static int check_region(const struct bb_map *map, const struct bb_dirty_client *client,
                        const struct bb_region *region, struct bb_error *err)
{
    if (client->map != map || region->map != map) {
        return bb_error_set(
            err, BB_E_INVAL,
            "dirty client '%s' and region '%s' must both be of the context's engine", client->name,
            region->name);
    }
    if (region->host == NULL) {
        return bb_error_set(err, BB_E_INVAL,
                            "region '%s' has no memory, so nothing in it gets dirty; only RAM and "
                            "ROM devices can be logged",
                            region->name);
    }
    return BB_OK;
}

/*
 * Refuses what all calls refuse, then takes a pin of the region's, so that its removal waits for
 * the call's end. In a section, as pins are taken: a removal that is asked for meanwhile waits for
 * that first.
 */
static int begin_call(struct bb_ctx *ctx, const struct bb_dirty_client *client,
                      struct bb_region *region, unsigned *pin, struct bb_error *err)
{
    if (client == NULL || region == NULL) {
        return bb_error_set(err, BB_E_INVAL, "a dirty log needs a client and a region");
    }
    if (!bb_ctx_may_block_(ctx)) {
        return bb_error_set(err, BB_E_CONTEXT,
                            "dirty client '%s' can't start, stop or sync a log inside a callback, "
                            "a read section, a pin or a lock",
                            client->name);
    }
    bb_section_enter_(ctx);
    int result = check_region(bb_mem_ctx_(ctx)->map, client, region, err);
    if (result == BB_OK) {
        *pin = bb_pins_get_(region->pins);
    }
    bb_section_leave_(ctx);
    return result;
}

static void end_call(struct bb_ctx *ctx, struct bb_region *region, unsigned pin)
{
    bb_pins_put_(ctx->rcu, region->pins, pin);
}

static int not_logged(const struct bb_dirty_client *client, const struct bb_region *region,
                      struct bb_error *err)
{
    return bb_error_set(err, BB_E_NOENT, "dirty client '%s' does not log region '%s'", client->name,
                        region->name);
}

static int is_removed(const struct bb_region *region, struct bb_error *err)
{
    return bb_error_set(err, BB_E_STATE, "region '%s' is being removed, and its dirty logs with it",
                        region->name);
}

/* Clients are changed under the map's lock alone, so the loads there may be relaxed. */
static bool logged_locked(const struct bb_dirty_client *client, const struct bb_region *region)
{
    return bb_load_relaxed(&region->dirty_log[client->number]) != NULL;
}

static int log_start_locked(const struct bb_dirty_client *client, struct bb_region *region,
                            struct bb_dirty_log_ *log, struct bb_error *err)
{
    uint32_t clients = bb_load_relaxed(&region->dirty_clients);

    if (region->removing) {
        return is_removed(region, err);
    }
    if (logged_locked(client, region)) {
        return bb_error_set(err, BB_E_EXIST, "dirty client '%s' logs region '%s' already",
                            client->name, region->name);
    }
    /* Release, pairs with next_log(): an empty bitmap. */
    bb_publish_(&region->dirty_log[client->number], log);
    /* Relaxed: invariant 3; the grace period orders it. */
    bb_store_relaxed(&region->dirty_clients, clients | 1u << client->number);
    log->alone = clients == 0;
    return BB_OK;
}

/* Unpublishes a log that is there, and pins the region until finish_stop(): its removal has not
 * begun, and the map's lock keeps it from that. */
static struct bb_dirty_log_ *log_stop_locked(const struct bb_dirty_client *client,
                                             struct bb_region *region)
{
    struct bb_dirty_log_ *log = bb_load_relaxed(&region->dirty_log[client->number]);
    uint32_t clients = bb_load_relaxed(&region->dirty_clients) & ~(1u << client->number);

    log->pin = bb_pins_get_(region->pins);
    log->alone = clients == 0;
    log->next = NULL;
    /* Relaxed: nothing is published; what is taken away stays for a grace period. */
    bb_store_relaxed(&region->dirty_clients, clients);
    bb_store_relaxed(&region->dirty_log[client->number], NULL);
    return log;
}

/* The rest of stopping, for a list of logs. `control` is held for writing. */
static void finish_stop(struct bb_ctx *ctx, struct bb_map *map, struct bb_dirty_log_ *logs)
{
    if (logs == NULL) {
        return;
    }
    for (struct bb_dirty_log_ *log = logs; log != NULL; log = log->next) {
        if (log->alone) {
            bb_listeners_log_(ctx, log->region, BB_LOG_STOP_);
        }
    }
    /* Can't fail: the caller has asked. */
    (void)bb_rcu_synchronize(ctx);
    while (logs != NULL) {
        struct bb_dirty_log_ *log = logs;
        logs = log->next;
        bb_pins_put_(ctx->rcu, log->region->pins, log->pin);
        bb_heap_free(map->heap, log, log->bytes);
    }
}

static struct bb_dirty_log_ *log_alloc(struct bb_heap *heap, struct bb_region *region,
                                       struct bb_error *err)
{
    uint64_t pages = page_of(region->last_max) + 1;
    uint64_t words = (pages + WORD_PAGES - 1) / WORD_PAGES;
    size_t bytes = sizeof(struct bb_dirty_log_) + words * sizeof(uint64_t);
    struct bb_dirty_log_ *log = bb_heap_alloc(heap, bytes);

    if (log == NULL) {
        bb_error_set(err, BB_E_NOMEM,
                     "no memory for a dirty log of region '%s': %zu bytes are needed", region->name,
                     bytes);
        return NULL;
    }
    log->pages = pages;
    log->bytes = bytes;
    log->region = region;
    return log;
}

int bb_dirty_start(struct bb_ctx *ctx, struct bb_dirty_client *client, struct bb_region *region,
                   struct bb_error *err)
{
    struct bb_map *map = bb_mem_ctx_(ctx)->map;
    unsigned pin = 0;
    int result = begin_call(ctx, client, region, &pin, err);

    if (result != BB_OK) {
        return result;
    }
    struct bb_dirty_log_ *log = log_alloc(map->heap, region, err);
    if (log == NULL) {
        end_call(ctx, region, pin);
        return BB_E_NOMEM;
    }
    pthread_rwlock_wrlock(&map->dirty->control);
    bb_lock_acquire(ctx, &map->lock);
    result = log_start_locked(client, region, log, err);
    bb_lock_release(ctx, &map->lock);
    if (result == BB_OK) {
        if (log->alone) {
            bb_listeners_log_(ctx, region, BB_LOG_START_);
        }
        (void)bb_rcu_synchronize(ctx); /* can't fail: begin_call() has asked */
    }
    pthread_rwlock_unlock(&map->dirty->control);
    if (result != BB_OK) {
        bb_heap_free(map->heap, log, log->bytes);
    }
    end_call(ctx, region, pin);
    return result;
}

static int check_logged_locked(const struct bb_dirty_client *client, struct bb_region *region,
                               struct bb_error *err)
{
    if (region->removing) {
        return is_removed(region, err);
    }
    return logged_locked(client, region) ? BB_OK : not_logged(client, region, err);
}

int bb_dirty_stop(struct bb_ctx *ctx, struct bb_dirty_client *client, struct bb_region *region,
                  struct bb_error *err)
{
    struct bb_map *map = bb_mem_ctx_(ctx)->map;
    struct bb_dirty_log_ *log = NULL;
    unsigned pin = 0;
    int result = begin_call(ctx, client, region, &pin, err);

    if (result != BB_OK) {
        return result;
    }
    pthread_rwlock_wrlock(&map->dirty->control);
    bb_lock_acquire(ctx, &map->lock);
    result = check_logged_locked(client, region, err);
    if (result == BB_OK) {
        log = log_stop_locked(client, region);
    }
    bb_lock_release(ctx, &map->lock);
    finish_stop(ctx, map, log);
    pthread_rwlock_unlock(&map->dirty->control);
    end_call(ctx, region, pin);
    return result;
}

static int check_range(const struct bb_region *region, uint64_t offset, uint64_t length,
                       struct bb_error *err)
{
    /* Relaxed: under the map's lock. */
    uint64_t last = bb_load_relaxed(&region->last);

    if (length == 0 || offset > last || length - 1 > last - offset) {
        return bb_error_set(err, BB_E_RANGE,
                            "0x%" PRIx64 " bytes from 0x%" PRIx64
                            " on are no range of region '%s', which ends at 0x%" PRIx64,
                            length, offset, region->name, last);
    }
    return BB_OK;
}

int bb_dirty_sync_and_clear(struct bb_ctx *ctx, struct bb_dirty_client *client,
                            struct bb_region *region, uint64_t offset, uint64_t length,
                            uint64_t *bitmap, uint64_t *pages, struct bb_error *err)
{
    struct bb_map *map = bb_mem_ctx_(ctx)->map;
    struct bb_dirty_log_ *log = NULL;
    unsigned pin = 0;
    int result = begin_call(ctx, client, region, &pin, err);

    if (result != BB_OK) {
        return result;
    }
    pthread_rwlock_rdlock(&map->dirty->control);
    bb_lock_acquire(ctx, &map->lock);
    result = check_logged_locked(client, region, err);
    if (result == BB_OK) {
        result = check_range(region, offset, length, err);
    }
    if (result == BB_OK) {
        log = bb_load_relaxed(&region->dirty_log[client->number]);
    }
    bb_lock_release(ctx, &map->lock);
    if (result == BB_OK) {
        bb_listeners_log_(ctx, region, BB_LOG_SYNC_);
        uint64_t taken = take(log, page_of(offset), page_of(offset + (length - 1)), bitmap);
        if (pages != NULL) {
            *pages = taken;
        }
    }
    pthread_rwlock_unlock(&map->dirty->control);
    end_call(ctx, region, pin);
    return result;
}

/*
 * Clients.
 */

int bb_dirty_client_create(struct bb_ctx *ctx, const char *name, struct bb_dirty_client **client,
                           struct bb_error *err)
{
    struct bb_map *map = bb_mem_ctx_(ctx)->map;
    unsigned number = 0;

    if (name == NULL || name[0] == '\0' || client == NULL) {
        return bb_error_set(err, BB_E_INVAL, "a dirty client needs a name and a place");
    }
    struct bb_dirty_client *made = bb_heap_alloc(map->heap, sizeof(*made));
    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for dirty client '%.31s'", name);
    }
    made->map = map;
    bb_name_copy_(made->name, name);

    bb_lock_acquire(ctx, &map->lock);
    while (number < BB_DIRTY_CLIENTS_MAX && map->dirty->client[number] != NULL) {
        number++;
    }
    made->number = number;
    if (number < BB_DIRTY_CLIENTS_MAX) {
        map->dirty->client[number] = made;
    }
    bb_lock_release(ctx, &map->lock);
    if (number == BB_DIRTY_CLIENTS_MAX) {
        bb_heap_free(map->heap, made, sizeof(*made));
        return bb_error_set(err, BB_E_LIMIT,
                            "dirty client '%.31s': an engine has at most %d; destroy another first",
                            name, BB_DIRTY_CLIENTS_MAX);
    }
    *client = made;
    return BB_OK;
}

int bb_dirty_client_destroy(struct bb_ctx *ctx, struct bb_dirty_client *client,
                            struct bb_error *err)
{
    struct bb_map *map = bb_mem_ctx_(ctx)->map;
    struct bb_dirty_log_ *logs = NULL;

    if (client == NULL || client->map != map) {
        return bb_error_set(err, BB_E_INVAL,
                            "the dirty client to be destroyed is NULL, or another engine's");
    }
    if (!bb_ctx_may_block_(ctx)) {
        return bb_error_set(err, BB_E_CONTEXT,
                            "dirty client '%s' can't be destroyed inside a callback, a read "
                            "section, a pin or a lock",
                            client->name);
    }
    pthread_rwlock_wrlock(&map->dirty->control);
    bb_lock_acquire(ctx, &map->lock);
    /* Of regions that are being removed the logs go with them. */
    for (struct bb_region *region = map->all; region != NULL; region = region->all_next) {
        if (logged_locked(client, region)) {
            struct bb_dirty_log_ *log = log_stop_locked(client, region);
            log->next = logs;
            logs = log;
        }
    }
    bb_lock_release(ctx, &map->lock);
    finish_stop(ctx, map, logs);
    bb_lock_acquire(ctx, &map->lock);
    map->dirty->client[client->number] = NULL;
    bb_lock_release(ctx, &map->lock);
    pthread_rwlock_unlock(&map->dirty->control);
    bb_heap_free(map->heap, client, sizeof(*client));
    return BB_OK;
}

/*
 * The map's and the regions' ends.
 */

void bb_dirty_free_(struct bb_heap *heap, struct bb_region *region)
{
    for (unsigned i = 0; i < BB_DIRTY_CLIENTS_MAX; i++) {
        struct bb_dirty_log_ *log = region->dirty_log[i];
        if (log != NULL) {
            bb_heap_free(heap, log, log->bytes);
        }
    }
}

int bb_dirty_create_(struct bb_map *map)
{
    struct bb_dirty_ *made = bb_heap_alloc(map->heap, sizeof(*made));
    pthread_rwlockattr_t attr;

    if (made == NULL) {
        return BB_E_NOMEM;
    }
    /* Syncs that overlap for ever must not keep a start waiting for ever. */
    (void)pthread_rwlockattr_init(&attr);
    (void)pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    int code = pthread_rwlock_init(&made->control, &attr);
    (void)pthread_rwlockattr_destroy(&attr);
    if (code != 0) {
        bb_heap_free(map->heap, made, sizeof(*made));
        return BB_E_SYSTEM;
    }
    map->dirty = made;
    return BB_OK;
}

bool bb_dirty_left_(const struct bb_map *map, char name[BB_CTX_NAME_BYTES])
{
    /* No lock: who made or destroyed one has detached since. */
    for (unsigned i = 0; i < BB_DIRTY_CLIENTS_MAX; i++) {
        if (map->dirty->client[i] != NULL) {
            bb_name_copy_(name, map->dirty->client[i]->name);
            return true;
        }
    }
    return false;
}

void bb_dirty_destroy_(struct bb_map *map)
{
    struct bb_dirty_ *dirty = map->dirty;

    if (dirty == NULL) {
        return;
    }
    for (unsigned i = 0; i < BB_DIRTY_CLIENTS_MAX; i++) {
        bb_heap_free(map->heap, dirty->client[i], sizeof(*dirty->client[i]));
    }
    (void)pthread_rwlock_destroy(&dirty->control);
    bb_heap_free(map->heap, dirty, sizeof(*dirty));
    map->dirty = NULL;
}

/* SPDX-License-Identifier: MIT */
/*
 * Doorbells that host threads ring, and writes that they leave for later.
 *
 * Ringing is a search in the leaf's doorbells and one write(2); it belongs to the section of its
 * access, so the descriptor is open (memory/doorbell.h says how long) and nothing is waited for.
 *
 * Coalesced writes lie in the buffer of the context that made them, its ring, until somebody needs
 * them made. One ring at most has writes in it at any time: the engine's `holder`. A context takes
 * the place when it is empty, fills its ring without touching a line of anybody else's, and keeps
 * the place until all that it left has been made. A write by any other context meanwhile is not
 * taken but made as an ordinary access, which has the holder's made first. So no order between
 * rings is needed and none can be wrong; the price is that vCPUs which take turns at writing
 * coalesced ranges have each other's writes made at each turn, about as if nothing were coalesced.
 * What coalescing is for, bursts of one vCPU, costs one swap of a line of its own each write.
 *
 * Whoever makes writes, the maker, has `mutex`. Invariants:
 *  1. A write that was taken lies in the holder's ring, or has been made. A ring is opened by its
 *     owner's taking the place, before which it is empty, and closed by a maker; a write is taken
 *     by a swap of `state` that fails once the ring is closed, so the maker knows all of them.
 *     `holder` is emptied by the maker after the last of them has been made with its effects.
 *  2. Not pending means made and seen. If a write was taken before (in the order of what threads
 *     tell each other) a look at `holder`, that look finds the taker's ring or a later state of the
 *     word. If it finds NULL, that was stored by a maker who had made that write, or who came after
 *     such a one under the mutex; store and look are a release and an acquire.
 *  3. Order. Writes of one context are made in its order: one ring, emptied from its first on, and
 *     none taken while it is being emptied. If A's write was taken before B's is offered, A's has
 *     been made when B's is taken, by invariant 2 and since B takes the place only when it is
 *     empty. If B's is not taken, B's access has A's made before its own section begins.
 *  4. A maker makes what was taken before it closed the ring, RING_WRITES at most, and no more: a
 *     vCPU that writes all the time doesn't keep it. Its own accesses, and those of callbacks and
 *     effects under it, neither take writes nor have any made.
 *  5. No cycle of waiting. Who waits for the mutex holds nothing: outermost accesses, flushes and
 *     detaching contexts where bb_may_block_() says so, and the baseline's big lock is given back
 *     before; bb-control never waits for it. So a maker, who waits for what a chain's epilogue may
 *     wait for (a device's lock, the embedder's lock, a MAY_SLEEP callback; chain.c, invariant 1),
 *     never waits for a thread that waits for it. It passes no gate. What the engine can't see is a
 *     MAY_SLEEP callback that waits for another thread's access: memory/doorbell.h forbids that.
 *  6. A pause is not over while `holder` is set; by the time that it is emptied its maker is busy
 *     (pause.c). So making needs no open gate.
 *
 * A thread that ends inside a callback takes its ring's writes with it, as it does its chain's
 * effects; if it was a maker, the next one goes on behind the write whose callback did not return.
 */
#include <errno.h>
#include <unistd.h>

#include "engine_internal.h"

enum {
    RING_WRITES = 128,
    SIGNAL_TRIES = 4,
};

/* Bit of bb_ring_.state: the ring is the holder's and takes writes. */
#define RING_OPEN UINT32_C(0x80000000)

struct write {
    struct bb_space *space;
    bb_gpa_t gpa;
    uint64_t value;
    uint32_t size;
};

struct bb_ring_ {
    uint32_t state; /* (a) RING_OPEN, and how many writes are in it. The owner adds to it while it
                       is open, and opens it; the maker closes it, and empties it */
    uint32_t made;  /* the maker's, under the mutex: of those */
    bool making;    /* owner only: it is the maker */
    struct write write[RING_WRITES];
};

struct bb_coalescer_ {
    pthread_mutex_t
        mutex; /* the maker's. Without a rank, for callbacks run under it: invariant 5 */
    struct bb_ring_ *holder; /* (a) the ring with writes in it; NULL: none are left */
};

/* Doorbells. */

/* As compare_doorbells() (memory/bells.c), a write with a doorbell: 0 where it rings. */
static int compare(const struct bb_doorbell *bell, uint64_t offset, unsigned size, uint64_t value)
{
    if (offset != bell->offset) {
        return offset < bell->offset ? -1 : 1;
    }
    if (bell->size == 0) {
        return 0;
    }
    if (size != bell->size) {
        return size < bell->size ? -1 : 1;
    }
    if (!bell->match_value || value == bell->value) {
        return 0;
    }
    return value < bell->value ? -1 : 1;
}

static const struct bb_doorbell *find_doorbell(const struct bb_bells_ *bells, uint64_t offset,
                                               unsigned size, uint64_t value)
{
    uint32_t low = 0, high = bells->doorbell_count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = compare(&bells->doorbell[middle], offset, size, value);

        if (order == 0) {
            return &bells->doorbell[middle];
        }
        if (order < 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return NULL;
}

/*
 * False where the descriptor takes no write at all: the embedder's mistake, for which the guest's
 * write is not lost but reaches the callback. A counter that is full (EAGAIN) has been rung and not
 * yet read: whoever waits on it will wake. A signal can only interrupt a write to a descriptor that
 * is not non-blocking, as it ought to be; then it is tried again, a few times.
 */
static bool signal_doorbell(int fd)
{
    static const uint64_t one = 1;
    ssize_t written;
    int tries = 0;

    do {
        written = write(fd, &one, sizeof(one));
    } while (written < 0 && errno == EINTR && ++tries < SIGNAL_TRIES);
    return written == (ssize_t)sizeof(one) || (written < 0 && errno == EAGAIN);
}

bool bb_doorbell_ring_(struct bb_ectx_ *e, const struct bb_flat_ *leaf, uint64_t offset,
                       unsigned size, uint64_t value)
{
    const struct bb_doorbell *bell;

    if (leaf->bells == NULL || leaf->bells->doorbell_count == 0) {
        return false;
    }
    bell = find_doorbell(leaf->bells, offset, size, size < 8 ? value & bb_mask_bytes(size) : value);
    if (bell == NULL) {
        return false;
    }
    if (!signal_doorbell(bell->fd)) {
        bb_count_(e, doorbells_failed);
        return false;
    }
    bb_count_(e, doorbells_rung);
    return true;
}

/* Taking writes. */

/* True where [offset, offset + size) lies in one coalesced range. */
static bool is_coalesced(const struct bb_bells_ *bells, uint64_t offset, unsigned size)
{
    uint32_t low = 0, high = bells->coalesced_count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct bb_coalesced_ *range = &bells->coalesced[middle];

        if (offset < range->first) {
            high = middle;
        } else if (offset > range->last) {
            low = middle + 1;
        } else {
            return range->last - offset >= size - 1;
        }
    }
    return false;
}

bool bb_coalesce_take_(struct bb_ectx_ *e, struct bb_space *space, bb_gpa_t gpa,
                       const struct bb_flat_ *leaf, uint64_t offset, unsigned size, uint64_t value)
{
    struct bb_coalescer_ *coalescer = e->engine->coalescer;
    struct bb_ring_ *ring = e->ring;

    if (leaf->bells == NULL || ring->making || !is_coalesced(leaf->bells, offset, size)) {
        return false;
    }
    struct write taken = {.space = space, .gpa = gpa, .value = value, .size = size};
    /* Acquire: pairs with the maker's release in make_locked(): it is done with our ring, and with
     * all that was taken before (invariant 2). */
    struct bb_ring_ *holder = bb_load_acquire(&coalescer->holder);
    if (holder == NULL) {
        ring->write[0] = taken;
        /* Relaxed: nobody looks at a ring that is not the holder; the swap below publishes it. */
        bb_store_relaxed(&ring->state, RING_OPEN | 1);
        /* Release: pairs with the acquire load in make_locked(). Acquire: as above. */
        if (!bb_cas_acq_rel(&coalescer->holder, &holder, ring)) {
            bb_store_relaxed(&ring->state, 0); /* relaxed: still nobody looks */
            return false;
        }
    } else {
        /* Open only while it is the holder. Relaxed: a value out of date fails the swap. */
        uint32_t state = bb_load_relaxed(&ring->state);
        uint32_t filled = state & ~RING_OPEN;

        if ((state & RING_OPEN) == 0 || filled == RING_WRITES) {
            return false;
        }
        ring->write[filled] = taken;
        /* Release: pairs with the acquire in make_locked() that closes the ring. */
        if (!bb_cas_release(&ring->state, &state, state + 1)) {
            return false; /* closed: the maker knows nothing of this one */
        }
    }
    bb_count_(e, coalesced);
    return true;
}

bool bb_coalesce_pending_(const struct bb_engine *engine)
{
    /* Acquire: pairs with the maker's release in make_locked(); invariant 2. */
    return bb_load_acquire(&engine->coalescer->holder) != NULL;
}

/* Making them. */

/* Makes what the holder has left. Under the mutex, in a chain that has begun. */
static void make_locked(struct bb_ectx_ *e)
{
    struct bb_coalescer_ *coalescer = e->engine->coalescer;
    /* Acquire: pairs with the swap in bb_coalesce_take_(): the ring is open, the first write in. */
    struct bb_ring_ *ring = bb_load_acquire(&coalescer->holder);

    if (ring == NULL) {
        return;
    }
    /* Acquire: pairs with the swaps that took the others. */
    uint32_t count = bb_fetch_and_acq_rel(&ring->state, ~RING_OPEN) & ~RING_OPEN;

    e->ring->making = true;
    bb_chain_step_(e); /* what an earlier piece of this access has posted comes first */
    while (ring->made < count) {
        struct write *left = &ring->write[ring->made++];
        uint8_t bytes[8];

        for (unsigned i = 0; i < sizeof(bytes); i++) {
            bytes[i] = (uint8_t)(left->value >> (8 * i));
        }
        /* Its result is counted: who wrote it has gone on long since. */
        (void)bb_access_pieces_(e, left->space, left->gpa, bytes, left->size, true,
                                (struct bb_attrs){0});
        bb_chain_step_(e); /* all that it causes, before the next */
    }
    e->ring->making = false;
    e->chain.device = NULL; /* as bb_access_pieces_() would find it */
    ring->made = 0;
    bb_store_relaxed(&ring->state, 0); /* relaxed: its owner looks at it after `holder` */
    /* Release: pairs with bb_coalesce_pending_() and bb_coalesce_take_(); invariant 2. */
    bb_store_release(&coalescer->holder, NULL);
}

/* The baseline's big lock comes after the mutex: callbacks under it give it back and take it. */
static void make_and_unlock(struct bb_ectx_ *e, bool had_big)
{
    if (e->engine->lock_mode == BB_LOCK_BIG) {
        bb_big_lock_(e);
    }
    make_locked(e);
    if (e->big && !had_big) {
        bb_big_unlock_(e);
    }
    pthread_mutex_unlock(&e->engine->coalescer->mutex);
}

void bb_coalesce_drain_(struct bb_ectx_ *e)
{
    bool big = e->big;

    if (e->ring->making) {
        return;
    }
    if (big) {
        bb_big_unlock_(e);
    }
    pthread_mutex_lock(&e->engine->coalescer->mutex);
    make_and_unlock(e, big);
}

/* Begins a chain for it alone; invariant 6. */
static void alone_begin(struct bb_ectx_ *e)
{
    bb_chain_settle_(e);
    e->active = true;
    /* Release: pairs with scan_busy() (pause.c), which looks after it has found nothing pending. */
    bb_store_release(&e->busy, 1);
}

static void drain_alone(struct bb_ectx_ *e)
{
    alone_begin(e);
    bb_coalesce_drain_(e);
    bb_chain_finish_(e);
}

void bb_coalesce_try_(struct bb_ectx_ *e)
{
    alone_begin(e);
    if (pthread_mutex_trylock(&e->engine->coalescer->mutex) == 0) {
        make_and_unlock(e, false);
    }
    bb_chain_finish_(e);
}

int bb_coalesced_flush(struct bb_ctx *ctx)
{
    struct bb_ectx_ *e = bb_ectx_(ctx);

    if (!bb_may_block_(e)) {
        return BB_E_CONTEXT;
    }
    if (bb_coalesce_pending_(e->engine)) {
        drain_alone(e);
    }
    return BB_OK;
}

/* Rings and their engine. */

int bb_ring_attach_(struct bb_ectx_ *e)
{
    e->ring = bb_heap_alloc_aligned(e->engine->heap, sizeof(*e->ring), BB_CACHE_LINE_BYTES);
    return e->ring != NULL ? BB_OK : BB_E_NOMEM;
}

/* Lets go of what the ring of a thread that ended in a callback still has. */
static void drop(struct bb_ectx_ *e)
{
    struct bb_coalescer_ *coalescer = e->engine->coalescer;

    pthread_mutex_lock(&coalescer->mutex);
    if (bb_load_relaxed(&coalescer->holder) == e->ring) { /* emptied under the mutex alone */
        /* Release: as in make_locked(). */
        bb_store_release(&coalescer->holder, NULL);
    }
    pthread_mutex_unlock(&coalescer->mutex);
}

void bb_ring_detach_(struct bb_ectx_ *e)
{
    /* As ctx_fini() (engine.c) has it; relaxed: our own. */
    bool ended_in_callback =
        e->active || e->chain.epilogue || bb_load_relaxed(&e->mem.base.device_id) != 0;

    if (e->ring == NULL) {
        return;
    }
    if (e->ring->making) {
        e->ring->making = false;
        pthread_mutex_unlock(&e->engine->coalescer->mutex);
    }
    /* Acquire: as in bb_coalesce_pending_(). Only this thread can have put it there. */
    if (bb_load_acquire(&e->engine->coalescer->holder) == e->ring) {
        if (ended_in_callback) {
            drop(e);
        } else {
            drain_alone(e);
        }
    }
    bb_heap_free(e->engine->heap, e->ring, sizeof(*e->ring));
    e->ring = NULL;
}

int bb_coalescer_create_(struct bb_engine *engine)
{
    struct bb_coalescer_ *made =
        bb_heap_alloc_aligned(engine->heap, sizeof(*made), BB_CACHE_LINE_BYTES);

    if (made == NULL) {
        return BB_E_NOMEM;
    }
    if (pthread_mutex_init(&made->mutex, NULL) != 0) {
        bb_heap_free(engine->heap, made, sizeof(*made));
        return BB_E_SYSTEM;
    }
    engine->coalescer = made;
    return BB_OK;
}

void bb_coalescer_destroy_(struct bb_engine *engine)
{
    pthread_mutex_destroy(&engine->coalescer->mutex);
    bb_heap_free(engine->heap, engine->coalescer, sizeof(*engine->coalescer));
    engine->coalescer = NULL;
}

/* SPDX-License-Identifier: MIT */
/*
 * I/O APIC (Intel 82093AA, order number 290566; EOI register and version 0x20 as in Intel's later
 * I/O controller hubs). Section numbers below are the 82093AA's.
 *
 * State: one 64-bit word a pin. It holds the redirection entry at the bits where the guest sees
 * it, and in the entry's reserved bits (17 to 55) what must change together with it:
 *
 *     63     56 55   48 47        42 41          18  17   16   15   14         13..0
 *     | dest  |   0   | generation | consumed    |held|mask|trig|RemoteIRR|  as written |
 *
 * - consumed: how many of the line's rises (modulo 2^24) this pin has taken note of. A rise is
 *   consumed, and judged by mask and trigger mode, in one compare-and-swap: it can't be delivered
 *   twice, nor by an entry that is masked by then.
 * - generation counts the clearings of Remote IRR, so that a delivery that was decided before an
 *   end of interrupt can't be taken for one decided after it.
 * - held: a route update is under way for this pin; it is not serviced until that is published.
 *
 * Why no level gets stale: none is stored. Whoever changes a line or an entry services the pin
 * after that, with a full fence between (pin_service()). Service loads the entry, then the line,
 * and swaps the entry only if it is still what it loaded.
 *  1. Delivery linearises at the reading of the line: entry and line were what delivery takes
 *     them for at that moment, since the entry has not changed up to the swap.
 *  2. Of two threads, one changing the line and one the entry, at least one sees both changes.
 *  3. `consumed` never goes back: who loads an entry with acquire reads the line after the thread
 *     that wrote that entry did.
 *
 * With config.routes, a guest's write changes `wanted`, and a versioned updater, posted to the
 * epilogue, makes that the entry (update_routes() says how).
 *
 * Deviations: messages are accepted at once, so Delivery Status always reads idle. Lines carry
 * "asserted", not a voltage, so the polarity bit is kept and has no effect. Remote IRR is set for
 * level-triggered Fixed and Lowest Priority entries alone; the other delivery modes are edge
 * triggered whatever bit 15 says (3.2.4 has them so, or forbids the combination). A message that
 * nobody accepts leaves a level pin as it was until its line or entry changes again.
 * Left out: the three-wire APIC bus and its arbitration, extended destinations, saved state.
 */
#include "ioapic.h"

#include "../../base/atomic.h"
#include "../../base/bits.h"

/* Memory-mapped registers (3.1, and the EOI register of version 0x20). */
enum { IOREGSEL = 0x00, IOWIN = 0x10, EOIR = 0x40 };
/* Registers behind the window (3.2). */
enum { IOAPICID = 0x00, IOAPICVER = 0x01, IOAPICARB = 0x02, IOREDTBL0 = 0x10 };

enum { VERSION = 0x20 };

#define RTE_VECTOR UINT64_C(0xff)
#define RTE_DESTMOD BB_BIT64(11)
#define RTE_REMOTE_IRR BB_BIT64(14)
#define RTE_TRIGGER BB_BIT64(15)
#define RTE_MASK BB_BIT64(16)
/* INTVEC, DELMOD, DESTMOD, INTPOL, trigger, mask, destination: everything but DELIVS (12) and
 * Remote IRR. */
#define RTE_WRITABLE UINT64_C(0xff0000000001afff)
#define RTE_VISIBLE (RTE_WRITABLE | RTE_REMOTE_IRR)
enum { RTE_DELMOD_LOW = 8, RTE_DELMOD_WIDTH = 3, RTE_DEST_LOW = 56, RTE_DEST_WIDTH = 8 };
enum { DELMOD_FIXED = 0, DELMOD_LOWEST = 1 };

/* Ours, in reserved bits of the entry. */
#define PIN_HELD BB_BIT64(17)
enum { PIN_CONSUMED_LOW = 18, PIN_CONSUMED_WIDTH = 24, PIN_GEN_LOW = 42, PIN_GEN_WIDTH = 6 };
/* In `wanted`: at some moment since the last snapshot the entry was not level-triggered. */
#define WANTED_CLEARS_IRR BB_BIT64(17)

_Static_assert((RTE_VISIBLE & PIN_HELD) == 0, "held lies in a reserved bit");
_Static_assert(PIN_CONSUMED_LOW + PIN_CONSUMED_WIDTH == PIN_GEN_LOW, "fields are adjacent");
_Static_assert(IOREDTBL0 + 2 * BB_IOAPIC_PINS_MAX - 1 == 0xff, "every pin has an 8-bit index");

struct pin {
    uint64_t entry;       /* (a) above; vCPUs, line setters and updaters, by compare-and-swap */
    uint64_t wanted;      /* (a) with routes: what guests wrote; vCPUs and updaters, likewise */
    uint64_t snapshot;    /* guarded by the device's lock: what this update publishes */
    struct bb_line *line; /* (a) written by bb_ioapic_connect(), read by service */
    char apart[32];       /* no two pins' entries share a cache line */
};
_Static_assert(sizeof(struct pin) == BB_CACHE_LINE_BYTES, "a pin is a cache line long");

struct bb_ioapic {
    /* Immutable after create. */
    struct bb_engine *engine;
    struct bb_device *device;
    struct bb_region *region;
    unsigned pins;
    struct bb_ioapic_routes routes;
    void (*resample)(struct bb_ctx *ctx, void *opaque, unsigned pin);
    void *resample_opaque;

    /* Atomic. */
    uint32_t select;    /* IOREGSEL; vCPUs race for it by the device's nature */
    uint32_t id;        /* IOAPICID, bits 27:24 in place */
    uint32_t arb;       /* IOAPICARB, likewise */
    uint64_t requested; /* version of `wanted`: writes so far */
    uint64_t sends_refused;
    uint64_t routes_installed;
    uint64_t routes_failed;

    /* Guarded by the device's lock, which the LOCKFREE region never needs for itself. */
    uint64_t installed; /* version of `wanted` that is in force */
    struct bb_ioapic_route table[BB_IOAPIC_PINS_MAX];

    struct pin pin[BB_IOAPIC_PINS_MAX];
};

/* A set of pins. */
struct pin_set {
    uint64_t word[2];
};

static void set_add(struct pin_set *set, unsigned n)
{
    set->word[n / 64] |= BB_BIT64(n % 64);
}

static bool set_has(const struct pin_set *set, unsigned n)
{
    return (set->word[n / 64] & BB_BIT64(n % 64)) != 0;
}

static unsigned rte_delmod(uint64_t rte)
{
    return (unsigned)bb_field_get(rte, RTE_DELMOD_LOW, RTE_DELMOD_WIDTH);
}

/* True where Remote IRR and EOI apply. */
static bool rte_is_level(uint64_t rte)
{
    return (rte & RTE_TRIGGER) != 0 && rte_delmod(rte) <= DELMOD_LOWEST;
}

static uint64_t rte_address(uint64_t rte)
{
    uint64_t address = UINT64_C(0xfee00000);
    address |= bb_field_get(rte, RTE_DEST_LOW, RTE_DEST_WIDTH) << 12;
    if (rte_delmod(rte) == DELMOD_LOWEST) {
        address |= BB_BIT64(3); /* redirection hint */
    }
    if (rte & RTE_DESTMOD) {
        address |= BB_BIT64(2);
    }
    return address;
}

static uint32_t rte_data(uint64_t rte)
{
    uint32_t level = rte_is_level(rte) ? 0xc000 : 0; /* trigger mode level, asserted */
    return (uint32_t)(rte & RTE_VECTOR) | rte_delmod(rte) << 8 | level;
}

/* The word with Remote IRR cleared; a new generation where it was set. */
static uint64_t word_clear_irr(uint64_t word)
{
    if ((word & RTE_REMOTE_IRR) == 0) {
        return word;
    }
    uint64_t generation = bb_field_get(word, PIN_GEN_LOW, PIN_GEN_WIDTH) + 1;
    return bb_field_set(word & ~RTE_REMOTE_IRR, PIN_GEN_LOW, PIN_GEN_WIDTH, generation);
}

/* The word with the guest's bits taken from `rte`; Remote IRR survives only as a level's. */
static uint64_t word_with_rte(uint64_t word, uint64_t rte)
{
    uint64_t next = bb_merge(word, rte, RTE_WRITABLE);
    return rte_is_level(next) ? next : word_clear_irr(next);
}

/* Delivery has failed: a level pin must not wait for an end of interrupt that won't come. */
static void take_back(struct pin *pin, uint64_t sent)
{
    /* Acquire and release as in pin_service(): the pin may be serviced anew from here on. */
    uint64_t word = bb_load_acquire(&pin->entry);
    const uint64_t same = bb_mask_low(PIN_GEN_WIDTH) << PIN_GEN_LOW | RTE_REMOTE_IRR;
    while ((word & same) == (sent & same) &&
           !bb_cas_acq_rel(&pin->entry, &word, word_clear_irr(word))) {
    }
}

/*
 * Looks at the pin and does what is due: notes rises, delivers an edge, or a level that is not
 * being serviced. Called in a read section after every change of line or entry; lock-free.
 */
static void pin_service(struct bb_ctx *ctx, struct bb_ioapic *ioapic, unsigned n)
{
    struct pin *pin = &ioapic->pin[n];
    /*
     * Keeps the caller's change (of the line by a setter, of the entry by a write, an EOI or an
     * updater) before the loads below. Without it a raise and an EOI at once could each miss the
     * other, and an asserted level would stay undelivered. Pairs with itself.
     */
    bb_fence_full();
    /* Acquire: pairs with the swap below and those in entry_write(), bb_ioapic_eoi() and
     * publish_routes_locked(): the line is read after their authors read it (invariant 3). */
    uint64_t word = bb_load_acquire(&pin->entry);
    for (;;) {
        if (word & PIN_HELD) {
            return; /* publish_routes_locked() lets go, and update_routes() services the pin then */
        }
        /* Acquire: pairs with bb_ioapic_connect(); the line is initialised. */
        struct bb_line *line = bb_load_acquire(&pin->line);
        if (line == NULL) {
            return;
        }
        struct bb_line_state state = bb_line_read(line);
        uint64_t next = bb_field_set(word, PIN_CONSUMED_LOW, PIN_CONSUMED_WIDTH, state.rises);
        bool send = false;
        if ((word & RTE_MASK) == 0) {
            if (!rte_is_level(word)) {
                send = next != word;
            } else if (state.level && (word & RTE_REMOTE_IRR) == 0) {
                next |= RTE_REMOTE_IRR;
                send = true;
            }
        }
        if (next == word) {
            return;
        }
        /* Release: pairs with the acquire loads of `entry`; what was seen of the line is behind. */
        if (!bb_cas_acq_rel(&pin->entry, &word, next)) {
            continue;
        }
        if (send && bb_msi_send(ctx, rte_address(next), rte_data(next)) != BB_OK) {
            bb_fetch_add_relaxed(&ioapic->sends_refused, 1); /* a statistic orders nothing */
            if (rte_is_level(next)) {
                take_back(pin, next);
            }
        }
        return;
    }
}

static void line_changed(struct bb_ctx *ctx, void *opaque, unsigned n)
{
    pin_service(ctx, opaque, n);
}

static void no_pin(struct bb_ctx *ctx, void *opaque, unsigned n)
{
    (void)ctx;
    (void)opaque;
    (void)n;
}

void bb_ioapic_eoi(struct bb_ctx *ctx, struct bb_ioapic *ioapic, uint8_t vector)
{
    struct pin_set ended = {{0, 0}};
    bb_rcu_read_lock(ctx); /* lines that are pulled stay; callers outside callbacks have none */
    for (unsigned n = 0; n < ioapic->pins; n++) {
        struct pin *pin = &ioapic->pin[n];
        uint64_t word = bb_load_acquire(&pin->entry); /* as in pin_service() */
        while (rte_is_level(word) && (word & RTE_REMOTE_IRR) != 0 &&
               (word & RTE_VECTOR) == vector) {
            /* The end of this pin's interrupt linearises here. Release and acquire as in
             * pin_service(). */
            if (bb_cas_acq_rel(&pin->entry, &word, word_clear_irr(word))) {
                set_add(&ended, n);
                break;
            }
        }
    }
    for (unsigned n = 0; n < ioapic->pins; n++) {
        if (set_has(&ended, n)) {
            if (ioapic->resample != NULL) {
                ioapic->resample(ctx, ioapic->resample_opaque, n);
            }
            pin_service(ctx, ioapic, n); /* redelivery linearises at its reading of the line */
        }
    }
    bb_rcu_read_unlock(ctx);
}

/*
 * First half of an update: takes each pin's `wanted`, and holds the pins for which it is news, so
 * that none of them delivers by its old entry once the table without it is being installed: the
 * end of such an interrupt would never be reported. Returns whether there is anything to install.
 */
static bool snapshot_routes_locked(struct bb_ioapic *ioapic, struct pin_set *held)
{
    for (unsigned n = 0; n < ioapic->pins; n++) {
        struct pin *pin = &ioapic->pin[n];
        /* Acquire: pairs with the release in want(). Takes the wish to clear Remote IRR with it,
         * so that it is granted once. */
        uint64_t wanted = bb_load_acquire(&pin->wanted);
        while (!bb_cas_acq_rel(&pin->wanted, &wanted, wanted & ~WANTED_CLEARS_IRR)) {
        }
        pin->snapshot = wanted;

        uint64_t word = bb_load_acquire(&pin->entry); /* as in pin_service() */
        if (((word ^ wanted) & RTE_WRITABLE) != 0 || (wanted & WANTED_CLEARS_IRR) != 0) {
            set_add(held, n);
            /* Release: a service that sees the pin held leaves it to the second half. */
            while (!bb_cas_acq_rel(&pin->entry, &word, word | PIN_HELD)) {
            }
        }
        /* Remote IRR of a held pin can fall from here on, not rise; of another, rise only where
         * the pin is unmasked and has its route anyway. */
        bool awaited = (word & RTE_REMOTE_IRR) != 0 && rte_is_level(wanted) &&
                       (wanted & WANTED_CLEARS_IRR) == 0;
        struct bb_ioapic_route *route = &ioapic->table[n];
        route->valid = (wanted & RTE_MASK) == 0 || awaited;
        route->address = rte_address(wanted);
        route->data = rte_data(wanted);
    }
    return (held->word[0] | held->word[1]) != 0;
}

/* Second half: makes the snapshot the entries in force, or, where it could not be installed, masks
 * what they were; and lets the pins go. */
static void publish_routes_locked(struct bb_ioapic *ioapic, const struct pin_set *held, bool ok)
{
    for (unsigned n = 0; n < ioapic->pins; n++) {
        struct pin *pin = &ioapic->pin[n];
        if (!set_has(held, n)) {
            continue;
        }
        uint64_t word = bb_load_acquire(&pin->entry); /* as in pin_service() */
        uint64_t next;
        do {
            next = word & ~PIN_HELD;
            if (!ok) {
                next |= RTE_MASK; /* vector and Remote IRR as in the table that still is in force */
            } else {
                next = word_with_rte(next, pin->snapshot);
                if (pin->snapshot & WANTED_CLEARS_IRR) {
                    next = word_clear_irr(next);
                }
            }
            /* The guest's writes take effect here. Release: pairs with pin_service(). */
        } while (!bb_cas_acq_rel(&pin->entry, &word, next));
        if (!ok && (pin->snapshot & WANTED_CLEARS_IRR) != 0) {
            /* The wish stands, for the next update. Pairs with snapshot_routes_locked(). */
            bb_fetch_or_acq_rel(&pin->wanted, WANTED_CLEARS_IRR);
        }
    }
}

/*
 * Posted by each guest write of an entry; runs in the epilogue, before that access returns. Brings
 * into force every version of `wanted` that was requested before it began; where another updater
 * has done that meanwhile, nothing is left to do.
 */
static void update_routes(struct bb_ctx *ctx, void *opaque, uint64_t written_pin)
{
    struct bb_ioapic *ioapic = opaque;
    struct pin_set held = {{0, 0}};
    int result = BB_OK;
    bool first_failure = false;

    uint64_t version = bb_load_acquire(&ioapic->requested); /* pairs with want() */
    bb_device_lock(ctx, ioapic->device);
    if (ioapic->installed < version) {
        version = bb_load_acquire(&ioapic->requested); /* pairs with want(): its `wanted` follows */
        if (snapshot_routes_locked(ioapic, &held)) {
            result =
                ioapic->routes.install(ctx, ioapic->routes.opaque, ioapic->table, ioapic->pins);
            publish_routes_locked(ioapic, &held, result == BB_OK);
            /* Statistics: order nothing; the count of failures is only written under the lock. */
            if (result == BB_OK) {
                bb_fetch_add_relaxed(&ioapic->routes_installed, 1);
            } else {
                first_failure = bb_fetch_add_relaxed(&ioapic->routes_failed, 1) == 0;
            }
        }
        ioapic->installed = version;
    }
    bb_device_unlock(ctx, ioapic->device);

    if (first_failure && ioapic->routes.failed != NULL) {
        ioapic->routes.failed(ioapic->routes.opaque, result);
    }
    set_add(&held, (unsigned)written_pin);
    bb_rcu_read_lock(ctx);
    for (unsigned n = 0; n < ioapic->pins; n++) {
        if (set_has(&held, n)) {
            pin_service(ctx, ioapic, n);
        }
    }
    bb_rcu_read_unlock(ctx);
}

/* A guest's write with routes: a wish, and somebody to grant it. */
static int want(struct bb_ctx *ctx, struct bb_ioapic *ioapic, unsigned n, uint64_t value,
                uint64_t mask)
{
    struct pin *pin = &ioapic->pin[n];
    /* Posted first: where that is refused nothing has changed. It runs after this callback. */
    if (bb_post(ctx, ioapic->device, update_routes, ioapic, n) != BB_OK) {
        return BB_E_DEVICE;
    }
    uint64_t wanted =
        bb_load_acquire(&pin->wanted); /* pairs with the swap below, of another vCPU */
    uint64_t next;
    do {
        next = bb_merge(wanted, value, mask & RTE_WRITABLE);
        if (!rte_is_level(next)) {
            next |= WANTED_CLEARS_IRR; /* even if another vCPU makes it a level again by then */
        }
    } while (!bb_cas_acq_rel(&pin->wanted, &wanted, next)); /* snapshot_routes_locked() */
    /* Release: who sees this version sees the wish. Pairs with update_routes(). */
    bb_fetch_add_acq_rel(&ioapic->requested, 1);
    return BB_OK;
}

/* A guest's write of half an entry. */
static int entry_write(struct bb_ctx *ctx, struct bb_ioapic *ioapic, unsigned n, uint64_t value,
                       uint64_t mask)
{
    if (ioapic->routes.install != NULL) {
        return want(ctx, ioapic, n, value, mask);
    }
    struct pin *pin = &ioapic->pin[n];
    uint64_t word = bb_load_acquire(&pin->entry); /* as in pin_service() */
    /* The write takes effect at the swap. Release: pairs with pin_service(). */
    while (!bb_cas_acq_rel(&pin->entry, &word,
                           word_with_rte(word, bb_merge(word, value, mask & RTE_WRITABLE)))) {
    }
    pin_service(ctx, ioapic, n);
    return BB_OK;
}

static uint32_t window_read(struct bb_ioapic *ioapic, unsigned index)
{
    switch (index) {
    case IOAPICID:
        return bb_load_relaxed(&ioapic->id); /* a word on its own */
    case IOAPICVER:
        return VERSION | (ioapic->pins - 1) << 16;
    case IOAPICARB:
        return bb_load_relaxed(&ioapic->arb); /* likewise */
    default:
        break;
    }
    if (index < IOREDTBL0 || (index - IOREDTBL0) / 2 >= ioapic->pins) {
        return 0;
    }
    /* Acquire: a guest that sees Remote IRR gone may rely on what its end brought about. Pairs
     * with the swaps of `entry`. */
    uint64_t word = bb_load_acquire(&ioapic->pin[(index - IOREDTBL0) / 2].entry) & RTE_VISIBLE;
    return (uint32_t)(index % 2 == 0 ? word : word >> 32);
}

static int window_write(struct bb_ctx *ctx, struct bb_ioapic *ioapic, unsigned index,
                        uint32_t value)
{
    if (index == IOAPICID) {
        /* Relaxed: two words that describe nothing but themselves. Writing the ID loads the
         * arbitration register (3.2.3). */
        bb_store_relaxed(&ioapic->id, value & 0x0f000000);
        bb_store_relaxed(&ioapic->arb, value & 0x0f000000);
        return BB_OK;
    }
    if (index < IOREDTBL0 || (index - IOREDTBL0) / 2 >= ioapic->pins) {
        return BB_OK; /* read-only or not there */
    }
    unsigned n = (index - IOREDTBL0) / 2;
    unsigned shift = index % 2 == 0 ? 0 : 32;
    return entry_write(ctx, ioapic, n, (uint64_t)value << shift, bb_mask_low(32) << shift);
}

static int ioapic_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                       uint64_t *value)
{
    struct bb_ioapic *ioapic = opaque;
    (void)ctx;
    *value = 0;
    if (offset == IOREGSEL) {
        *value = bb_load_relaxed(&ioapic->select); /* a word on its own */
    } else if (offset == IOWIN) {
        if (size != 4) {
            return BB_E_DEVICE;
        }
        *value = window_read(ioapic, bb_load_relaxed(&ioapic->select)); /* likewise */
    }
    return BB_OK;
}

static int ioapic_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                        uint64_t value)
{
    struct bb_ioapic *ioapic = opaque;
    switch (offset) {
    case IOREGSEL:
        bb_store_relaxed(&ioapic->select, (uint32_t)value & 0xff); /* a word on its own */
        return BB_OK;
    case IOWIN:
        if (size != 4) {
            return BB_E_DEVICE; /* 3.0: the window is accessed by doublewords */
        }
        return window_write(ctx, ioapic, bb_load_relaxed(&ioapic->select), (uint32_t)value);
    case EOIR:
        bb_ioapic_eoi(ctx, ioapic, (uint8_t)value);
        return BB_OK;
    default:
        return BB_OK; /* reserved */
    }
}

static const struct bb_region_ops ioapic_ops = {.read = ioapic_read, .write = ioapic_write};

static const struct bb_path_row direct_paths[] = {
    {"IOREGSEL", IOREGSEL, IOREGSEL + 3, BB_PATH_WAIT_FREE, BB_PATH_WAIT_FREE, NULL},
    {"IOWIN", IOWIN, IOWIN + 3, BB_PATH_WAIT_FREE, BB_PATH_LOCK_FREE, NULL},
    {"EOI", EOIR, EOIR + 3, BB_PATH_WAIT_FREE, BB_PATH_LOCK_FREE, NULL},
};

static const struct bb_path_row routed_paths[] = {
    {"IOREGSEL", IOREGSEL, IOREGSEL + 3, BB_PATH_WAIT_FREE, BB_PATH_WAIT_FREE, NULL},
    {"IOWIN", IOWIN, IOWIN + 3, BB_PATH_WAIT_FREE, BB_PATH_NARROW_LOCK,
     "the I/O APIC's lock, held while routes are installed"},
    {"EOI", EOIR, EOIR + 3, BB_PATH_WAIT_FREE, BB_PATH_LOCK_FREE, NULL},
};

static void ioapic_destroy(void *opaque)
{
    struct bb_ioapic *ioapic = opaque;
    bb_device_free(ioapic->engine, ioapic, sizeof *ioapic);
}

static const struct bb_device_ops device_ops = {.destroy = ioapic_destroy};

struct bb_device *bb_ioapic_device(const struct bb_ioapic *ioapic)
{
    return ioapic->device;
}

struct bb_region *bb_ioapic_region(const struct bb_ioapic *ioapic)
{
    return ioapic->region;
}

struct bb_line_sink bb_ioapic_line_sink(struct bb_ioapic *ioapic, unsigned pin)
{
    struct bb_line_sink sink = {
        .notify = line_changed, .opaque = ioapic, .pin = pin, .device = ioapic->device};
    if (pin >= ioapic->pins) {
        sink.notify = no_pin;
    }
    return sink;
}

int bb_ioapic_connect(struct bb_ctx *ctx, struct bb_ioapic *ioapic, unsigned n,
                      struct bb_line *line)
{
    if (n >= ioapic->pins) {
        return BB_E_RANGE;
    }
    struct pin *pin = &ioapic->pin[n];
    /* Acquire: pairs with the store below, of another control thread. */
    if (line != NULL && bb_load_acquire(&pin->line) != NULL) {
        return BB_E_EXIST;
    }
    if (line != NULL) {
        /* Rises from before are nobody's. As in pin_service(). */
        uint64_t word = bb_load_acquire(&pin->entry);
        while (!bb_cas_acq_rel(
            &pin->entry, &word,
            bb_field_set(word, PIN_CONSUMED_LOW, PIN_CONSUMED_WIDTH, bb_line_read(line).rises))) {
        }
    }
    bb_store_release(&pin->line, line); /* pairs with pin_service() */
    bb_rcu_read_lock(ctx);
    pin_service(ctx, ioapic, n);
    bb_rcu_read_unlock(ctx);
    return BB_OK;
}

struct bb_ioapic_stats bb_ioapic_stats(const struct bb_ioapic *ioapic)
{
    /* Relaxed: statistics, each on its own. */
    struct bb_ioapic_stats stats = {
        .sends_refused = bb_load_relaxed(&ioapic->sends_refused),
        .routes_installed = bb_load_relaxed(&ioapic->routes_installed),
        .routes_failed = bb_load_relaxed(&ioapic->routes_failed),
    };
    return stats;
}

int bb_ioapic_create(struct bb_ctx *ctx, const struct bb_ioapic_config *config,
                     struct bb_ioapic **out, struct bb_error *err)
{
    static const struct bb_ioapic_config defaults;
    if (config == NULL) {
        config = &defaults;
    }
    const char *name = config->name != NULL ? config->name : "ioapic";
    unsigned pins = config->pins != 0 ? config->pins : BB_IOAPIC_PINS_MIN;
    if (pins < BB_IOAPIC_PINS_MIN || pins > BB_IOAPIC_PINS_MAX) {
        return bb_error_set(err, BB_E_RANGE, "I/O APIC %s: %u pins; it can have %d to %d", name,
                            pins, BB_IOAPIC_PINS_MIN, BB_IOAPIC_PINS_MAX);
    }
    if (config->id > 15) {
        return bb_error_set(err, BB_E_RANGE, "I/O APIC %s: APIC ID %u; it has 4 bits", name,
                            (unsigned)config->id);
    }

    struct bb_engine *engine = bb_ctx_engine(ctx);
    struct bb_ioapic *ioapic = bb_device_alloc(engine, sizeof *ioapic);
    if (ioapic == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for I/O APIC %s", name);
    }
    ioapic->engine = engine;
    ioapic->pins = pins;
    ioapic->routes = config->routes;
    ioapic->resample = config->resample;
    ioapic->resample_opaque = config->resample_opaque;
    ioapic->id = ioapic->arb = (uint32_t)config->id << 24;
    for (unsigned n = 0; n < pins; n++) {
        ioapic->pin[n].entry = ioapic->pin[n].wanted = RTE_MASK;
    }

    const struct bb_device_config device = {.name = name, .ops = &device_ops, .opaque = ioapic};
    int result = bb_device_create(ctx, &device, &ioapic->device, err);
    if (result != BB_OK) {
        bb_device_free(engine, ioapic, sizeof *ioapic);
        return result;
    }
    bool routed = ioapic->routes.install != NULL;
    const struct bb_region_config region = {
        .name = name,
        .size_bytes = BB_IOAPIC_SIZE_BYTES,
        .ops = &ioapic_ops,
        .opaque = ioapic,
        .klass = BB_CLASS_LOCKFREE,
        .rules = {.valid_min = 1, .valid_max = 4, .impl_min = 1, .impl_max = 4},
        .paths = routed ? routed_paths : direct_paths,
        .path_count = routed ? BB_ARRAY_LEN(routed_paths) : BB_ARRAY_LEN(direct_paths),
        /* A message may reach a local APIC whose end of interrupt comes back to the EOI register;
         * nothing here is half done when a message is sent. */
        .reentrant = true,
    };
    result = bb_device_region_create(ctx, ioapic->device, &region, &ioapic->region, err);
    if (result != BB_OK) {
        /* Without regions, timers or sources there is nothing to wait for; frees `ioapic`. */
        (void)bb_device_remove(ctx, ioapic->device, NULL, NULL, NULL);
        return result;
    }
    *out = ioapic;
    return BB_OK;
}

/* SPDX-License-Identifier: MIT */
/*
 * Keeping KVM's idea of the machine's memory in step with the engine's map: memory slots,
 * ioeventfds and coalesced ranges, through a listener on each space. See kvm.h.
 *
 * KVM changes one slot at a time. The order in which the map calls its listeners makes each step
 * safe: what is removed leaves KVM before the map shows something else, so that an access in
 * between exits and meets the old map; what is added comes after the map has it, so that an access
 * in between exits and meets the new one. Only where memory takes the place of memory would such an
 * access see neither; and a slot whose writes are logged would lose what is written between the
 * reading of its log and its end. For these vCPUs are kept out of the guest from begin to commit.
 *
 * A slot consists of whole pages. The ends of a range that don't fill a page have no slot: accesses
 * of them exit and are made by the engine, which knows all of the range.
 *
 * A doorbell or coalesced range that KVM has no room for is left to the engine likewise, which does
 * the same with each write that exits. Whatever else KVM refuses would make the guest see something
 * wrong, so it ends the run.
 *
 * Threads: the hooks run one at a time, under the map's locks, on whatever thread commits.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "../base/bits.h"
#include "../memory/dirty.h"
#include "../memory/listener.h"
#include "kvm_internal.h"
#include "options.h"

enum { PAGE = 4096, SLOTS_DEFAULT = 32, SLOT_WORD_BITS = 64 };

/* KVM counts the pages of a slot in 31 bits. */
#define SLOT_BYTES_MAX (UINT64_C(1) << 42)

struct slot {
    bb_gpa_t gpa;
    uint64_t bytes;
    uint8_t *host;
    struct bb_region *region;
    uint64_t offset; /* in the region */
    uint32_t number;
    uint32_t flags;
};

struct bb_kvm_memory {
    struct bb_kvm *kvm;
    struct bb_stop *stop;
    struct bb_listener *mmio, *pio;
    bool readonly_slots, any_length, coalesced, coalesced_pio; /* what this KVM can do */

    struct slot *slots; /* in rising order of address */
    size_t count, room;
    uint64_t *numbers; /* a bit for each slot number in use */
    unsigned number_max;
    unsigned logged;       /* slots whose writes KVM logs */
    bool halted;           /* vCPUs are out until commit */
    size_t bells_left_out; /* that KVM had no room for, ever */
    size_t ranges_left_out;
    bool starting;         /* being attached: errors go to who attaches */
    struct bb_error error; /* the first; code 0: none */
};

/* Something that KVM refused. The first ends the run, with the one line that says why. */
static void __attribute__((format(printf, 2, 3)))
refused(struct bb_kvm_memory *m, const char *fmt, ...)
{
    va_list args;
    char text[BB_ERROR_TEXT_BYTES];

    if (m->error.code != 0) {
        return;
    }
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    bb_error_set(&m->error, BB_E_SYSTEM, "%s", text);
    if (!m->starting && bb_stop_request(m->stop, BB_STOP_ERROR, BB_EXIT_FAILED)) {
        fprintf(stderr, "busbar: %s\n", text);
    }
}

/* The whole pages of a memory range; false where there are none. */
static bool whole_pages(const struct bb_range *range, struct slot *slot)
{
    if (range->first > UINT64_MAX - (PAGE - 1) || range->last < PAGE - 1) {
        return false;
    }
    bb_gpa_t first = (range->first + (PAGE - 1)) & ~(bb_gpa_t)(PAGE - 1);
    bb_gpa_t last = ((range->last + 1) & ~(bb_gpa_t)(PAGE - 1)) - 1;
    if (first > last) {
        return false;
    }
    uint64_t skipped = first - range->first;
    *slot = (struct slot){
        .gpa = first,
        .bytes = last - first + 1,
        .host = (uint8_t *)range->host + skipped,
        .region = range->region,
        .offset = range->offset + skipped,
    };
    return (uintptr_t)slot->host % PAGE == 0;
}

/* Index of the first slot that ends behind `gpa`. */
static size_t find_slot(const struct bb_kvm_memory *m, bb_gpa_t gpa)
{
    size_t low = 0;
    size_t high = m->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (m->slots[middle].gpa + (m->slots[middle].bytes - 1) < gpa) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static bool take_number(struct bb_kvm_memory *m, uint32_t *number)
{
    for (unsigned word = 0; word * SLOT_WORD_BITS < m->number_max; word++) {
        if (m->numbers[word] != UINT64_MAX) {
            unsigned bit = (unsigned)__builtin_ctzll(~m->numbers[word]);
            *number = word * SLOT_WORD_BITS + bit;
            if (*number >= m->number_max) {
                return false;
            }
            m->numbers[word] |= BB_BIT64(bit);
            return true;
        }
    }
    return false;
}

static void put_number(struct bb_kvm_memory *m, uint32_t number)
{
    m->numbers[number / SLOT_WORD_BITS] &= ~BB_BIT64(number % SLOT_WORD_BITS);
}

static int set_slot(const struct bb_kvm_memory *m, const struct slot *slot, uint64_t bytes)
{
    struct kvm_userspace_memory_region region = {
        .slot = slot->number,
        .flags = slot->flags,
        .guest_phys_addr = slot->gpa,
        .memory_size = bytes,
        .userspace_addr = (uintptr_t)slot->host,
    };
    return ioctl(m->kvm->vm_fd, KVM_SET_USER_MEMORY_REGION, &region);
}

static bool make_room(struct bb_kvm_memory *m)
{
    if (m->count < m->room) {
        return true;
    }
    size_t room = m->room == 0 ? 16 : 2 * m->room;
    struct slot *slots = realloc(m->slots, room * sizeof(slots[0]));
    if (slots == NULL) {
        return false;
    }
    m->slots = slots;
    m->room = room;
    return true;
}

static void add_slot(struct bb_kvm_memory *m, struct slot slot)
{
    bb_gpa_t last = slot.gpa + (slot.bytes - 1);

    if (!make_room(m)) {
        refused(m, "no memory for one more memory slot");
        return;
    }
    if (!take_number(m, &slot.number)) {
        refused(m,
                "memory at %#" PRIx64 "-%#" PRIx64 " ('%s'): this KVM has no more than %u memory "
                "slots",
                slot.gpa, last, bb_region_name(slot.region), m->number_max);
        return;
    }
    if (set_slot(m, &slot, slot.bytes) != 0) {
        refused(m, "KVM refused memory at %#" PRIx64 "-%#" PRIx64 " ('%s'): %s", slot.gpa, last,
                bb_region_name(slot.region), strerror(errno));
        put_number(m, slot.number);
        return;
    }
    size_t at = find_slot(m, slot.gpa);
    memmove(&m->slots[at + 1], &m->slots[at], (m->count - at) * sizeof(m->slots[0]));
    m->slots[at] = slot;
    m->count++;
    m->logged += (slot.flags & KVM_MEM_LOG_DIRTY_PAGES) != 0 ? 1 : 0;
}

/*
 * Memory that somebody logs is logged from its slot's beginning: vCPUs run, and log_start comes too
 * late for what they write in between. Whoever has set a client's bit has log_start called, and
 * whoever takes the last one away log_stop, so what is missed or too early here is set right.
 */
static void memory_added(void *opaque, const struct bb_range *range)
{
    struct bb_kvm_memory *m = opaque;
    bool readonly = range->read_only || range->kind == BB_KIND_ROM_DEVICE;
    bool logged = bb_dirty_clients(range->region) != 0;
    struct slot all;

    if (!range->memory || !whole_pages(range, &all) || (readonly && !m->readonly_slots)) {
        return;
    }
    for (uint64_t done = 0; done < all.bytes; done += SLOT_BYTES_MAX) {
        struct slot slot = all;
        slot.gpa += done;
        slot.host += done;
        slot.offset += done;
        slot.bytes = all.bytes - done < SLOT_BYTES_MAX ? all.bytes - done : SLOT_BYTES_MAX;
        slot.flags = readonly ? KVM_MEM_READONLY : logged ? KVM_MEM_LOG_DIRTY_PAGES : 0;
        add_slot(m, slot);
    }
}

static void memory_removed(void *opaque, const struct bb_range *range)
{
    struct bb_kvm_memory *m = opaque;
    size_t from = find_slot(m, range->first);
    size_t to = from;

    while (to < m->count && m->slots[to].gpa <= range->last) {
        struct slot *slot = &m->slots[to++];
        m->logged -= (slot->flags & KVM_MEM_LOG_DIRTY_PAGES) != 0 ? 1 : 0;
        slot->flags = 0;
        if (set_slot(m, slot, 0) != 0) {
            refused(m, "KVM keeps memory at %#" PRIx64 " ('%s'): %s", slot->gpa,
                    bb_region_name(slot->region), strerror(errno));
        }
        put_number(m, slot->number);
    }
    memmove(&m->slots[from], &m->slots[to], (m->count - to) * sizeof(m->slots[0]));
    m->count -= to - from;
}

static void memory_begin(void *opaque, const struct bb_change *change)
{
    struct bb_kvm_memory *m = opaque;

    if (change->memory_removed != 0 && (change->memory_added != 0 || m->logged != 0)) {
        bb_kvm_halt_(m->kvm);
        m->halted = true;
    }
}

static void memory_commit(void *opaque)
{
    struct bb_kvm_memory *m = opaque;

    if (m->halted) {
        m->halted = false;
        bb_kvm_unhalt_(m->kvm);
    }
}

static void set_logging(struct bb_kvm_memory *m, const struct bb_range *range, bool on)
{
    for (size_t i = find_slot(m, range->first); i < m->count && m->slots[i].gpa <= range->last;
         i++) {
        struct slot *slot = &m->slots[i];
        bool is_on = (slot->flags & KVM_MEM_LOG_DIRTY_PAGES) != 0;

        if (slot->region != range->region || (slot->flags & KVM_MEM_READONLY) != 0 || is_on == on) {
            continue;
        }
        slot->flags ^= KVM_MEM_LOG_DIRTY_PAGES;
        m->logged += on ? 1u : -1u;
        if (set_slot(m, slot, slot->bytes) != 0) {
            refused(m, "KVM refused to %s logging writes at %#" PRIx64 " ('%s'): %s",
                    on ? "begin" : "end", slot->gpa, bb_region_name(slot->region), strerror(errno));
        }
    }
}

static void memory_log_start(void *opaque, const struct bb_range *range)
{
    set_logging(opaque, range, true);
}

static void memory_log_stop(void *opaque, const struct bb_range *range)
{
    set_logging(opaque, range, false);
}

/* A slot's pages are the region's unless the region's memory begins inside a page. */
static void merge_log(struct bb_ctx *ctx, const struct slot *slot, const uint64_t *bitmap)
{
    uint64_t pages = slot->bytes / PAGE;

    if (slot->offset % BB_DIRTY_PAGE_BYTES == 0) {
        bb_dirty_merge(ctx, slot->region, slot->offset, bitmap, pages);
        return;
    }
    for (uint64_t i = 0; i < pages; i++) {
        if ((bitmap[i / 64] >> i % 64 & 1) != 0) {
            bb_dirty_mark(ctx, slot->region, slot->offset + i * PAGE, PAGE);
        }
    }
}

static void memory_log_sync(struct bb_ctx *ctx, void *opaque, const struct bb_range *range)
{
    struct bb_kvm_memory *m = opaque;

    for (size_t i = find_slot(m, range->first); i < m->count && m->slots[i].gpa <= range->last;
         i++) {
        const struct slot *slot = &m->slots[i];
        if (slot->region != range->region || (slot->flags & KVM_MEM_LOG_DIRTY_PAGES) == 0) {
            continue;
        }
        uint64_t words = (slot->bytes / PAGE + 63) / 64;
        uint64_t *bitmap = calloc(words, sizeof(bitmap[0]));
        struct kvm_dirty_log log = {.slot = slot->number, .dirty_bitmap = bitmap};
        if (bitmap == NULL || ioctl(m->kvm->vm_fd, KVM_GET_DIRTY_LOG, &log) != 0) {
            bb_dirty_mark(ctx, slot->region, slot->offset, slot->bytes);
            refused(m, "no log of writes at %#" PRIx64 " ('%s'): %s", slot->gpa,
                    bb_region_name(slot->region), bitmap == NULL ? "no memory" : strerror(errno));
        } else {
            merge_log(ctx, slot, bitmap);
        }
        free(bitmap);
    }
}

static void set_bell(struct bb_kvm_memory *m, bool pio, bb_gpa_t at,
                     const struct bb_doorbell *doorbell, bool on)
{
    struct kvm_ioeventfd bell = {
        .addr = at,
        .len = doorbell->size,
        .fd = doorbell->fd,
        .flags = (pio ? (uint32_t)KVM_IOEVENTFD_FLAG_PIO : 0) |
                 (on ? 0 : (uint32_t)KVM_IOEVENTFD_FLAG_DEASSIGN),
    };
    if (doorbell->match_value) {
        bell.flags |= KVM_IOEVENTFD_FLAG_DATAMATCH;
        bell.datamatch = doorbell->value & bb_mask_bytes(doorbell->size);
    }
    if (doorbell->size == 0 && !m->any_length) {
        return;
    }
    if (ioctl(m->kvm->vm_fd, KVM_IOEVENTFD, &bell) == 0) {
        return;
    }
    if (on && errno == ENOSPC) {
        m->bells_left_out++;
    } else if (on || errno != ENOENT || m->bells_left_out == 0) {
        refused(m, "KVM refused %s doorbell of %u bytes at %s %#" PRIx64 ": %s",
                on ? "a" : "to end a", doorbell->size, pio ? "port" : "address", at,
                strerror(errno));
    }
}

static void mmio_bell_added(void *opaque, struct bb_space *space, bb_gpa_t at,
                            const struct bb_doorbell *doorbell)
{
    (void)space;
    set_bell(opaque, false, at, doorbell, true);
}

static void mmio_bell_removed(void *opaque, struct bb_space *space, bb_gpa_t at,
                              const struct bb_doorbell *doorbell)
{
    (void)space;
    set_bell(opaque, false, at, doorbell, false);
}

static void pio_bell_added(void *opaque, struct bb_space *space, bb_gpa_t at,
                           const struct bb_doorbell *doorbell)
{
    (void)space;
    set_bell(opaque, true, at, doorbell, true);
}

static void pio_bell_removed(void *opaque, struct bb_space *space, bb_gpa_t at,
                             const struct bb_doorbell *doorbell)
{
    (void)space;
    set_bell(opaque, true, at, doorbell, false);
}

static void set_coalesced(struct bb_kvm_memory *m, bool pio, bb_gpa_t first, bb_gpa_t last, bool on)
{
    struct kvm_coalesced_mmio_zone zone = {.addr = first, .pio = pio ? 1 : 0};

    if (!m->coalesced || (pio && !m->coalesced_pio)) {
        return;
    }
    if (last - first >= UINT32_MAX) { /* KVM can't say so; the engine can */
        m->ranges_left_out += on ? 1 : 0;
        return;
    }
    zone.size = (uint32_t)(last - first + 1);
    if (ioctl(m->kvm->vm_fd, on ? KVM_REGISTER_COALESCED_MMIO : KVM_UNREGISTER_COALESCED_MMIO,
              &zone) == 0) {
        return;
    }
    if (on && errno == ENOSPC) {
        m->ranges_left_out++;
    } else if (on || m->ranges_left_out == 0) {
        refused(m, "KVM refused %s coalescing writes to %s %#" PRIx64 "-%#" PRIx64 ": %s",
                on ? "to begin" : "to end", pio ? "ports" : "addresses", first, last,
                strerror(errno));
    }
}

static void mmio_coalesced_added(void *opaque, struct bb_space *space, bb_gpa_t first,
                                 bb_gpa_t last)
{
    (void)space;
    set_coalesced(opaque, false, first, last, true);
}

static void mmio_coalesced_removed(void *opaque, struct bb_space *space, bb_gpa_t first,
                                   bb_gpa_t last)
{
    (void)space;
    set_coalesced(opaque, false, first, last, false);
}

static void pio_coalesced_added(void *opaque, struct bb_space *space, bb_gpa_t first, bb_gpa_t last)
{
    (void)space;
    set_coalesced(opaque, true, first, last, true);
}

static void pio_coalesced_removed(void *opaque, struct bb_space *space, bb_gpa_t first,
                                  bb_gpa_t last)
{
    (void)space;
    set_coalesced(opaque, true, first, last, false);
}

static const struct bb_listener_ops mmio_ops = {
    .begin = memory_begin,
    .removed = memory_removed,
    .added = memory_added,
    .doorbell_removed = mmio_bell_removed,
    .doorbell_added = mmio_bell_added,
    .coalesced_removed = mmio_coalesced_removed,
    .coalesced_added = mmio_coalesced_added,
    .commit = memory_commit,
    .log_start = memory_log_start,
    .log_stop = memory_log_stop,
    .log_sync = memory_log_sync,
};

/* Ports are never memory to KVM. */
static const struct bb_listener_ops pio_ops = {
    .doorbell_removed = pio_bell_removed,
    .doorbell_added = pio_bell_added,
    .coalesced_removed = pio_coalesced_removed,
    .coalesced_added = pio_coalesced_added,
};

static int capability(const struct bb_kvm *kvm, unsigned number)
{
    return ioctl(kvm->vm_fd, KVM_CHECK_EXTENSION, (unsigned long)number);
}

static void look_at_capabilities(struct bb_kvm_memory *m)
{
    int slots = capability(m->kvm, KVM_CAP_NR_MEMSLOTS);

    m->number_max = slots > 0 ? (unsigned)slots : SLOTS_DEFAULT;
    m->readonly_slots = capability(m->kvm, KVM_CAP_READONLY_MEM) > 0;
    m->any_length = capability(m->kvm, KVM_CAP_IOEVENTFD_ANY_LENGTH) > 0;
    m->coalesced = capability(m->kvm, KVM_CAP_COALESCED_MMIO) > 0;
    m->coalesced_pio = capability(m->kvm, KVM_CAP_COALESCED_PIO) > 0;
}

static int add_listeners(struct bb_kvm_memory *m, const struct bb_kvm_spaces *spaces,
                         struct bb_error *err)
{
    struct bb_listener_config config = {
        .name = "KVM memory", .space = spaces->mmio, .ops = &mmio_ops, .opaque = m};
    int rc = bb_listener_add(spaces->ctx, &config, &m->mmio, err);

    if (rc == BB_OK) {
        config.name = "KVM ports";
        config.space = spaces->pio;
        config.ops = &pio_ops;
        rc = bb_listener_add(spaces->ctx, &config, &m->pio, err);
    }
    if (rc == BB_OK && m->error.code != 0) {
        rc = bb_error_set(err, m->error.code, "%s", m->error.text);
    }
    return rc;
}

int bb_kvm_follow(struct bb_kvm *kvm, const struct bb_kvm_spaces *spaces, struct bb_error *err)
{
    struct bb_kvm_memory *m = calloc(1, sizeof(*m));

    if (m != NULL) {
        m->kvm = kvm;
        m->stop = spaces->stop;
        m->starting = true;
        look_at_capabilities(m);
        m->numbers = calloc(m->number_max / SLOT_WORD_BITS + 1, sizeof(m->numbers[0]));
    }
    if (m == NULL || m->numbers == NULL) {
        free(m);
        return bb_error_set(err, BB_E_NOMEM, "no memory to follow the map");
    }
    kvm->memory = m;
    kvm->control_ctx = spaces->ctx;
    int rc = add_listeners(m, spaces, err);
    m->starting = false;
    if (rc != BB_OK) {
        bb_kvm_unfollow(kvm);
    }
    return rc;
}

void bb_kvm_unfollow(struct bb_kvm *kvm)
{
    struct bb_kvm_memory *m = kvm->memory;

    if (m == NULL) {
        return;
    }
    if (m->pio != NULL) {
        bb_listener_remove(kvm->control_ctx, m->pio, NULL);
    }
    if (m->mmio != NULL) {
        bb_listener_remove(kvm->control_ctx, m->mmio, NULL);
    }
    kvm->memory = NULL;
    kvm->control_ctx = NULL;
    free(m->numbers);
    free(m->slots);
    free(m);
}
